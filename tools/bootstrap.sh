#!/bin/sh
# Make the virtual environment $1 and install the project into it. Needs python3 only; uv comes from the package index.
set -eu

venv=$1
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
started=$(date +%s)

fail() {
    printf 'simlap: %s\n' "$1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 || fail "$python not found. Install Python 3.11 or newer, or name one: make PYTHON=python3.12 env"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: Python 3.11 or newer is needed. Name one: make PYTHON=python3.12 env"

# An environment that was moved, or whose Python is gone, is made anew; one whose installation was interrupted is completed.
if ! "$venv/bin/python" -c 'import pip, sys, os; sys.exit(not os.path.samefile(sys.prefix, sys.argv[1]))' "$venv" 2>/dev/null ||
    ! grep -qsF "$root" "$venv/bin/activate"; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments (no ensurepip). On Debian and Ubuntu: apt-get install python3-venv"
    echo "Making the environment in $venv. The first time this downloads several GB, most of them torch."
    "$python" -m venv --clear "$venv"
fi

# -qq: warnings about this machine's own pip configuration are of no use here. uv does not read that configuration, so that
# everybody gets the same packages; for a mirror set UV_DEFAULT_INDEX.
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt uv

export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" UV_COMPILE_BYTECODE_TIMEOUT="${UV_COMPILE_BYTECODE_TIMEOUT:-600}"
[ -t 2 ] || export UV_NO_PROGRESS=1
quiet=
[ -t 2 ] || quiet=-q
# shellcheck disable=SC2086  # $quiet is one word or none
"$venv/bin/uv" pip install $quiet --python "$venv/bin/python" --compile-bytecode -c constraints.txt -e '.[dev]'

touch "$venv/.stamp"
echo "environment ready in $(($(date +%s) - started)) s"
