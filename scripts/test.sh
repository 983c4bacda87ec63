#!/usr/bin/env bash
# Lint, format, types and tests. Arguments go to pytest: scripts/test.sh -k layout; scripts/test.sh -m slow
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up dev
cd "$root"

step() {
    echo "── $*" >&2
    "$bin/python" -m "$@"
}
step ruff check .
step ruff format --check .
step mypy
# One process more than there are cores, because tests of several processes mostly wait (tests/conftest.py).
processes=$(($(getconf _NPROCESSORS_ONLN) + 1))
step pytest --numprocesses "$processes" --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
