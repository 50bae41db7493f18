#!/usr/bin/env bash
# Makes .venv, installs what the tests need, checks style and runs the tests.
#
#     bash scripts/test.sh [--slow] [arguments of pytest]
#
# --slow runs the tests marked slow too. PyTorch serves the tests only. CAPPY_TORCH is what pip installs as it: a
# requirement, a wheel file or an address (a CPU build will do, and on Linux it is gigabytes smaller than the usual one);
# empty, PyTorch is left out and its tests are skipped. pip's own settings, such as PIP_EXTRA_INDEX_URL, apply.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

install_for_tests() {
    local torch=${CAPPY_TORCH-torch==2.13.0}
    if [ -n "$torch" ]; then
        quiet_pip "$torch" # before the rest, so that the extra's torch is there already
        quiet_pip --editable '.[test]'
    else
        quiet_pip --editable . pytest ruff
    fi
}

arguments=()
for argument in "$@"; do
    if [ "$argument" = --slow ]; then
        arguments+=(-m 'slow or not slow')
    else
        arguments+=("$argument")
    fi
done

make_venv
install_once test install_for_tests
status=0
.venv/bin/ruff check . || status=$?
.venv/bin/ruff format --check . || status=$?
.venv/bin/python -m pytest ${arguments[@]+"${arguments[@]}"} || status=$?
exit "$status"
