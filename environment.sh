#!/bin/bash
# Make the virtual environment: bash environment.sh FOLDER, or, with --lock, write requirements.lock anew.
set -euo pipefail
cd "$(dirname "$0")"

# A Python that runs, has the right version and can make a virtual environment. Each candidate is tried for real:
# version managers leave commands of the right name that only say that they are not installed.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3 python /usr/bin/python3.11 /usr/bin/python3.12; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    {
        echo "error: no Python 3.11 or 3.12 that can make virtual environments (found: $(python3 --version 2>/dev/null || echo no python3))."
        echo "Install one (on Debian: python3.11 and python3.11-venv), or name it: make PYTHON=/path/to/python3.11"
    } >&2
    exit 2
}

torch_line() { grep -E '^torch==' requirements.lock; }

if [ "${1:-}" = "--lock" ]; then
    python=$(find_python)
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    torch=$(torch_line)
    "$python" -m venv "$scratch/venv"
    "$scratch/venv/bin/python" -m pip install ".[all]" "$torch" setuptools
    {
        sed -n '/^#/p;/^[^#]/q' requirements.lock
        # The environment's own installer and this package stay out, and so does the build of torch ("+cpu", "+cu...").
        "$scratch/venv/bin/python" -m pip freeze --all \
            | grep -v -i -E '^(rlcircuits|pip|wheel)\b' | sed -E 's/^([^ ]+==[^+]+)\+.*/\1/'
    } > "$scratch/lock"
    mv "$scratch/lock" requirements.lock
    echo "==> requirements.lock: $(grep -c == requirements.lock) packages"
    exit 0
fi

folder=${1:?usage: bash environment.sh FOLDER}
python=$(find_python)
started=$(date +%s)
if [ ! -x "$folder/bin/python" ] || ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "==> virtual environment in $folder with $("$python" --version)"
    "$python" -m venv --clear "$folder"
fi
echo "==> $(grep -c == requirements.lock) packages from requirements.lock (1 to 5 min; the largest is $(torch_line))"
# One line for every 20 packages instead of pip's several for each; what it says of an error goes to stderr untouched.
# Compiling is left to all cores together: pip does it on one, which takes longer than fetching.
"$folder/bin/python" -m pip install --no-compile -r requirements.lock | awk '
    /^Collecting /             { if (++n % 20 == 0) print "    " n " fetched" ; fflush() }
    /^Installing collected/    { print "    installing (about a minute)"; fflush() }'
"$folder/bin/python" -m compileall -q -j 0 "$folder/lib" >/dev/null 2>&1 || true  # a few packages carry templates that are no Python
"$folder/bin/python" -m pip install --quiet --no-deps --no-build-isolation -e .
echo "==> environment ready after $(($(date +%s) - started)) s"
