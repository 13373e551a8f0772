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
# A worker for each core, at most 4 (about 1 GB each), in whole files, which share their models and runs; none beside
# this process on one core, and where the tests share a card.
workers=$(.venv/bin/python -c 'from sd.runtime import usable_cores; print(min(4, usable_cores()))')
case " $*" in *" -m gpu"*) workers=1 ;; esac
[ "$workers" -gt 1 ] || workers=0
echo "== pytest, $workers workers"
exec .venv/bin/python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
