#!/usr/bin/env bash
# Makes .venv, installs what the tests need, checks style and runs the tests.
#
#     bash scripts/test.sh [--slow] [arguments of pytest]
#
# The tests run in one process per core, at most four (pytest-xdist); with -n 0 in this process alone. --slow also runs the
# tests marked slow. PyTorch is only for the tests. CAPPY_TORCH says what pip installs as PyTorch: a requirement, a wheel
# file or an address (a CPU build is enough, and on Linux it is gigabytes smaller than the usual one); if it is empty,
# PyTorch is left out and its tests are skipped. pip's own settings, such as PIP_EXTRA_INDEX_URL, apply.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

install_for_tests() {
    local torch=${CAPPY_TORCH-torch==2.13.0}
    if [ -n "$torch" ]; then
        quiet_pip "$torch" # before the rest, so that the extra's torch is there already
        quiet_pip --editable '.[test]'
    else
        quiet_pip --editable . pytest pytest-xdist ruff
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
n_processes=$(.venv/bin/python -c 'import os; print(min(4, len(os.sched_getaffinity(0))))')
status=0
.venv/bin/ruff check . || status=$?
.venv/bin/ruff format --check . || status=$?
# The tests of a file stay in one process, which makes what they share only once.
.venv/bin/python -m pytest -n "$n_processes" --dist loadfile --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"} || status=$?
exit "$status"
