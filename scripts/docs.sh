#!/usr/bin/env bash
# Builds the documentation as a site, dist/site, and fails at a dead link. With "serve", shows it while you write.
set -euo pipefail
TOKVID_EXTRAS="${TOKVID_EXTRAS:+$TOKVID_EXTRAS,}docs"
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up run
cd "$root"

case "${1:-build}" in
    build) "$bin/python" -m mkdocs build --quiet --strict && echo "dist/site/index.html" ;;
    serve) "$bin/python" -m mkdocs serve ;;
    *) echo "scripts/docs.sh [build|serve]" >&2; exit 2 ;;
esac
