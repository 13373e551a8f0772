#!/bin/sh
# Makes .venv-app with the web page's packages (requirements-app.txt), once. PYTHON names another interpreter.
set -eu
cd "$(dirname "$0")"
stamp=.venv-app/installed-$(cksum <requirements-app.txt | cut -d ' ' -f 1)
[ ! -e "$stamp" ] || exit 0
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
echo "== installing requirements-app.txt into .venv-app (about 360 MB, once)"
if "$python" -m venv .venv-app &&
    .venv-app/bin/python -m pip install --disable-pip-version-check -q \
        -r requirements-app.txt; then
    rm -f .venv-app/installed-*
    touch "$stamp"
else
    echo "error: the web page's packages could not be installed; the message stands above (no network? a mirror goes into PIP_INDEX_URL)" >&2
    exit 1
fi
