#!/usr/bin/env bash
# Measures this machine's NVIDIA GPU, then trains a recipe on it. Run it again, and it goes on where it was.
#
#   scripts/gpu.sh                                                    tests and measurements
#   scripts/gpu.sh configs/shapes.py --minutes 5                      then five minutes of training, or what is left of
#                                                                     the call's; fields of the recipe can be changed
#   scripts/gpu.sh --tiny                                             all of it on a CPU, at the smallest size
#
# See scripts/gpu.py --help. TOKVID_EXTRAS is cuda13 or cuda12, as the driver allows, unless you set it.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
if [[ " $* " != *" --tiny "* && -z "${TOKVID_EXTRAS:-}" ]]; then
    driver="$(nvidia-smi)" || { echo "there is no NVIDIA driver here; scripts/gpu.sh --tiny runs on a CPU" >&2; exit 2; }
    TOKVID_EXTRAS=cuda12
    if [[ "$driver" =~ CUDA\ Version:\ ([0-9]+) ]] && ((BASH_REMATCH[1] >= 13)); then TOKVID_EXTRAS=cuda13; fi
fi
set_up dev

exec "$bin/python" "$root/scripts/gpu.py" "$@" --spent "$SECONDS"
