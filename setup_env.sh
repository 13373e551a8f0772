# Sourced by quickstart.sh and run_tests.sh: makes .venv with the toolkit's packages and, if $more names a second
# requirements file, with those too, once. With Paddle's GPU wheel in .venv the toolkit's file is requirements-gpu.txt.
# PYTHON names another interpreter; pip's own settings (PIP_INDEX_URL for a mirror) are honoured.

. ./pip_install.sh

stamp() {
    echo ".venv/installed-$1-$(cat "$1" constraints.txt stand_ins/*.whl | cksum | cut -d ' ' -f 1)"
}

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

first_fit() {
    for candidate in "$@"; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

python=.venv/bin/python
if [ ! -x "$python" ]; then
    if [ -n "${PYTHON:-}" ]; then
        python=$(first_fit "$PYTHON")
    else
        python=$(first_fit python3.11 python3.12 python3.10 python3 python)
    fi
    if [ -z "$python" ]; then
        echo "error: no Python 3.10, 3.11 or 3.12 found (${PYTHON:-python3}); install one, or name it: PYTHON=/path/to/python3.11 sh $0" >&2
        exit 2
    fi
fi
"$python" -m sd.versions --libraries || exit # before a long download

if [ ! -x .venv/bin/python ]; then
    echo "== making .venv with $("$python" --version)"
    "$python" -m venv .venv || {
        rm -rf .venv
        echo "error: $python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 2
    }
fi

requirements=$(.venv/bin/python -m sd.versions --requirements) || exit
for file in $requirements ${more:-}; do
    if [ ! -e "$(stamp "$file")" ]; then
        echo "== installing $requirements ${more:-} into .venv (about 2 GB, once)"
        pip_install .venv/bin/python -q -U 'pip>=23.1' || exit 1
        # shellcheck disable=SC2086  # $more is one option or none
        pip_install .venv/bin/python --progress-bar "${PIP_BAR:-on}" -r "$requirements" ${more:+-r "$more"} || exit 1
        rm -f .venv/installed-*
        for installed in $requirements ${more:-}; do touch "$(stamp "$installed")"; done
        break
    fi
done
