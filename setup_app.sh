#!/bin/sh
# Makes .venv-app with the web page's packages (requirements-app.txt), once. PYTHON names another interpreter.
set -eu
. "$(dirname "$0")/no_arguments.sh"
cd "$(dirname "$0")"
. ./pip_install.sh
stamp=.venv-app/installed-$(cksum <requirements-app.txt | cut -d ' ' -f 1)
[ ! -e "$stamp" ] || exit 0
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
echo "== installing requirements-app.txt into .venv-app (about 360 MB, once)"
"$python" -m venv .venv-app
pip_install .venv-app/bin/python -q -r requirements-app.txt
rm -f .venv-app/installed-*
touch "$stamp"
