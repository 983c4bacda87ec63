#!/usr/bin/env bash
# A story of each world from the weights in data/, on this machine's CPU. Arguments go to `tokvid demo` (see --help), which
# then runs once.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up run

if (($#)); then
    exec "$bin/tokvid" demo "$@"
fi
"$bin/tokvid" demo
"$bin/tokvid" demo --world robots --out demo/robots
