#!/usr/bin/env bash
# Runs tokvid on every worker of a TPU VM slice, as one job. Made once: the slice, and tokvid on all of its workers.
#
#   gcloud compute tpus tpu-vm create pod --zone us-east5-a --accelerator-type v6e-256 --version v2-alpha-tpuv6e
#   TPU=pod ZONE=us-east5-a scripts/pod/tpu_vm.sh install
#   TPU=pod ZONE=us-east5-a scripts/pod/tpu_vm.sh train transformer configs/base_350m.py --workdir /mnt/runs/base
#
# The workdir lies on a file system that all workers see (Filestore, or a bucket through gcsfuse with --file-mode=666).
# Run it again after anything that stopped it: training goes on from the last checkpoint.
set -euo pipefail
: "${TPU:?the slice\'s name}" "${ZONE:?its zone}"
repository="${REPOSITORY:-$(git -C "$(dirname -- "${BASH_SOURCE[0]}")" remote get-url origin 2>/dev/null || true)}"

on_all() { gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all --command "$1"; }

if [ "${1:-}" = install ]; then
    : "${repository:?set REPOSITORY to the URL that workers clone tokvid from}"
    on_all "[ -d tokvid ] || git clone $(printf %q "$repository") tokvid; cd tokvid && git pull --ff-only &&
        python3 -m venv .venv && .venv/bin/pip install --quiet --editable '.[tpu]'"
else
    # --distributed: nothing in these machines' environment says that there are others.
    on_all "cd tokvid && .venv/bin/tokvid $(printf '%q ' "$@") --distributed"
fi
