# Sourced by quickstart.sh and run_tests.sh: makes .venv with the packages of the file named in $requirements, once.
# PYTHON names another interpreter; pip's own settings (PIP_INDEX_URL for a mirror) are honoured.


stamp() {
    echo ".venv/installed-$1-$(cat "$1" requirements.txt constraints.txt | cksum | cut -d ' ' -f 1)"
}

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

if [ ! -x .venv/bin/python ]; then
    for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3 python}; do
        if fits "$candidate"; then
            found=$candidate
            break
        fi
    done
    if [ -z "${found:-}" ]; then
        echo "error: no Python 3.10, 3.11 or 3.12 found (${PYTHON:-python3}); install one, or name it: PYTHON=/path/to/python3.11 sh $0" >&2
        exit 2
    fi
    echo "== making .venv with $("$found" --version)"
    "$found" -m venv .venv || {
        rm -rf .venv
        echo "error: $found cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
    }
fi

if [ ! -e "$(stamp "$requirements")" ]; then
    echo "== installing $requirements into .venv (about 2.4 GB, once)"
    .venv/bin/python -m pip install --disable-pip-version-check -q -U 'pip>=23.1' &&
        .venv/bin/python -m pip install --disable-pip-version-check --progress-bar "${PIP_BAR:-on}" -r "$requirements" ||
        {
            echo "error: pip could not install $requirements; its message stands above (no network? a mirror goes into PIP_INDEX_URL)" >&2
            exit 1
        }
    rm -f .venv/installed-*
    touch "$(stamp "$requirements")" "$(stamp requirements.txt)" # every file includes requirements.txt
fi
