#!/usr/bin/env bash
# The tests with the oldest versions that pyproject.toml allows, on the oldest Python, in an environment that is removed
# afterwards. Needs uv. Arguments go to pytest: scripts/oldest.sh tests/nn; PYTHON names another interpreter.
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
if ! command -v uv >/dev/null; then
    echo "scripts/oldest.sh needs uv, which can install the oldest versions: pip install uv" >&2
    exit 2
fi
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
export VIRTUAL_ENV="$folder/env"

uv venv --quiet --python "${PYTHON:-3.11}" "$VIRTUAL_ENV"
uv pip install --quiet --resolution lowest-direct --editable "$root[import,studio,tensorboard,tfds]"
uv pip freeze --exclude-editable >"$folder/oldest.txt"
# Of the group dev, what most tests need: `datasets` would bring a newer pyarrow, and its tests skip without it.
tools=(beartype hatchling httpx hypothesis pytest pytest-timeout pytest-xdist)
uv pip install --quiet --constraint "$folder/oldest.txt" "${tools[@]}"
cat "$folder/oldest.txt"
cd "$root"
"$VIRTUAL_ENV/bin/python" -m pytest "$@"
