#!/bin/sh
# Sets up .venv and runs the tests; further arguments go to pytest (`sh run_tests.sh -m slow`, `-m gpu`, `-k packer`).
set -eu
cd "$(dirname "$0")"
more="requirements-test.txt"
. ./setup_env.sh
sh setup_app.sh || echo "the tests of the web page are skipped"
echo "== ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
echo "== mypy"
.venv/bin/mypy
echo "== pytest"
exec .venv/bin/python -m pytest "$@"
