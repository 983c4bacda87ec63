#!/usr/bin/env bash
# Copies what sampling needs of a finished workdir into data/, measures it there, and tells the demo's story for the README.
#   scripts/ship.sh runs/shapes [SAMPLES]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up run
workdir="$1" samples="${2:-512}"
for part in tokenizer transformer; do
    mkdir -p "$root/data/$part"
    cp "$workdir/$part/config.json" "$workdir/$part/weights.safetensors" "$root/data/$part/"
done
cp "$workdir/text.model" "$root/data/"
rm -rf "$root/data/transformer/loras"    # of the weights before
"$bin/tokvid" evaluate shapes --samples "$samples" --json "$root/data/evaluation.json"
"$bin/tokvid" evaluate reconstruction --samples 128 --json "$root/data/reconstruction.json"
"$bin/tokvid" demo --out "$root/demo"
cp "$root/demo/story.gif" "$root/demo/sheet.png" "$root/data/demo/"
