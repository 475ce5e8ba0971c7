#!/bin/sh
# Runs the paper; `./run_all.sh --help` says how. The active Python is used as it is if it has what requirements.txt
# asks for; else an environment, .venv, is made beside this file.
set -eu
script=$(readlink -f -- "$0" 2>/dev/null || echo "$0")   # a link to it may lie elsewhere
root=$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH

# Does this Python have every required package, in the required major and minor version? Asks no network.
satisfied() {
    "$1" - "$root/requirements.txt" >/dev/null 2>&1 <<'END'
import sys
from importlib.metadata import version
assert sys.version_info >= (3, 11)
for line in open(sys.argv[1], encoding="utf-8"):
    name, _, pin = line.split("#")[0].strip().partition("==")
    assert not name or version(name).split(".")[:2] == pin.split(".")[:2]
END
}

recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

first() { # TEST PYTHON...: the first Python that passes the test
    test=$1
    shift
    for candidate in "$@"; do
        if "$test" "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

python=$(first satisfied python python3 "$root/.venv/bin/python")
if [ -z "$python" ]; then
    base=$(first recent python3 python python3.14 python3.13 python3.12 python3.11)
    if [ -z "$base" ]; then
        echo "error: Python 3.11 or newer is needed, and none is on the PATH: install one and run again." >&2
        exit 2
    fi
    echo "Making the environment $root/.venv, once: a few minutes." >&2
    "$base" -m venv "$root/.venv"
    python="$root/.venv/bin/python"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.txt"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$root"
fi
exec "$python" -P -m lib.run "$@"
