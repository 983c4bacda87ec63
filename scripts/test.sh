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
step pytest --numprocesses auto --maxprocesses 8 --dist loadfile "$@"
