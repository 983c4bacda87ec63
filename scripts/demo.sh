#!/usr/bin/env bash
# A story from the small weights in data/demo, on this machine's CPU. Arguments go to `tokvid demo` (see --help).
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up run

"$bin/tokvid" demo "$@"
