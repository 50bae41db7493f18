# Sourced by test.sh and quickstart.sh, in the repository's root: makes .venv and installs into it once.

# make_venv: makes .venv with a Python that the project supports: python3, or the one that PYTHON names.
make_venv() {
    local python=${PYTHON:-python3}
    if [ ! -x .venv/bin/python ]; then
        need_python "$python"
        echo "Making .venv with $("$python" --version)"
        "$python" -m venv .venv || { rm -rf .venv; echo "$0: $python -m venv failed; see above" >&2; exit 1; }
    else
        need_python .venv/bin/python
    fi
}

# need_python COMMAND: ends the script unless COMMAND is a Python that the project supports.
need_python() {
    if ! "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
        echo "$0: $1 is $("$1" --version 2> /dev/null || echo missing); it must be Python 3.11 or newer." \
            "Name another one and make .venv again: rm -rf .venv; PYTHON=python3.12 bash $0" >&2
        exit 1
    fi
}

# install_once NAME FUNCTION: calls FUNCTION, unless it ran before with the same requirements and scripts.
install_once() {
    local stamp=.venv/installed-$1 wanted
    wanted=$(cat requirements.txt pyproject.toml scripts/venv.sh "$0" | .venv/bin/python -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')" ${CAPPY_TORCH-}"
    if [ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ]; then
        echo "Installing what ${0##*/} needs into .venv (once; it takes some minutes)"
        "$2"
        echo "$wanted" > "$stamp"
    fi
}

# quiet_pip ARGUMENTS: pip install, which prints only when it fails.
quiet_pip() {
    local log
    log=$(mktemp)
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" > "$log" 2>&1; then
        cat "$log" >&2
        echo "$0: pip install $* failed; see above" >&2
        rm -f "$log"
        exit 1
    fi
    rm -f "$log"
}
