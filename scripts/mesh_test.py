"""Trains on one device, and again with another mesh and number of processes every few steps; compares the losses.

python scripts/mesh_test.py --steps 400 --every 20        # both models, three numbers of processes, five meshes
python scripts/mesh_test.py --kinds tokenizer --anew      # each part from one device's checkpoint

Each part resumes from the last one's checkpoint, with four devices in 1, 2 or 4 processes. The losses of all steps must
agree with those of one device within --tolerance, relative, in float32. Rounding differs between meshes, and the
difference grows from step to step; with --anew, only over a part.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from job import begin, start
from kill_test import end_of, said
from soak_world import SLOWEST, World

from tokvid.io.progress import progress

DEVICES = 4
PROCESSES = (1, 2, 4)
MESHES = ((4, 1, 1, 1), (1, 4, 1, 1), (2, 2, 1, 1), (2, 1, 2, 1), (1, 2, 2, 1))  # data, fsdp, tensor, context
OWN = "--train_{kind}.schedule stable --train_{kind}.decay 0 --train_{kind}.log_every 1 --train_{kind}.val_every 0"


def work(rank: int, address: str, folder: Path, log: Path, command: str, processes: int, devices: int) -> None:
    """One process of a training."""
    begin(log, devices)
    os.chdir(folder)
    from tokvid.cli.main import main as tokvid

    together = ["--coordinator", address, "--processes", str(processes), "--process", str(rank)]
    tokvid([*command.split(), *(together if processes > 1 else [])])


def train(folder: Path, kind: str, steps: int, mesh: tuple[int, ...], processes: int, devices: int) -> None:
    """Trains up to `steps`. Ends the script where that fails."""
    shape = " ".join(map(str, mesh))
    command = f"train {kind} recipe.py --workdir w --train_{kind}.steps {steps} --train_{kind}.mesh {shape}"
    command += f" --{kind}.dtype float32 {OWN.format(kind=kind)}"
    log = folder.with_suffix(".log")
    if any(end_of(start(processes, work, folder, log, command, processes, devices // processes), SLOWEST)):
        sys.exit(f"training fails with mesh {mesh} and {processes} processes:\n{said(log)[-3000:]}")


def losses(folder: Path, kind: str) -> list[float]:
    lines = (folder / "w" / kind / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kinds", nargs="+", choices=("tokenizer", "transformer"), default=("tokenizer", "transformer")
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="steps of a part")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--anew", action="store_true", help="begin each part from the checkpoint of one device")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="mesh.") as temporary:
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": f"{temporary}/programs"}
        os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        world = World(Path(temporary) / "truth")
        world.prepare(options.kinds)
        for kind in options.kinds:
            with world.copy(kind, Path(temporary)) as alone, world.copy(kind, Path(temporary)) as other:
                for folder in (alone, other):
                    shutil.rmtree(folder / "w" / kind, ignore_errors=True)
                ends = [*range(options.every, options.steps, options.every), options.steps]
                kinds = itertools.cycle(itertools.product(PROCESSES, MESHES))
                seen, found = set(), []
                with progress(kind, len(ends), "parts") as advance:
                    for step, (processes, mesh) in zip(ends, kinds, strict=False):
                        if options.anew:
                            shutil.rmtree(other)
                            shutil.copytree(alone, other)
                        train(alone, kind, step, (1, 1, 1, 1), 1, 1)
                        train(other, kind, step, mesh, processes, DEVICES)
                        found += losses(other, kind)[len(found) :]
                        seen.add((processes, mesh))
                        advance(1, processes=processes, mesh=mesh)
                wanted = losses(alone, kind)
            if not len(wanted) == len(found) == options.steps:
                sys.exit(f"{len(found)} losses of {kind}, {len(wanted)} undisturbed, {options.steps} were asked for")
            off = [abs(a - b) / abs(a) for a, b in zip(wanted, found, strict=True)]
            worst = max(worst, *off)
            early = next((step for step, each in enumerate(off) if each > options.tolerance), options.steps)
            print(
                f"{kind}: {len(ends)} parts, {len(seen)} arrangements, loss {wanted[0]:.4f} → {wanted[-1]:.4f}, "
                f"within {options.tolerance:g} up to step {early}, off by {max(off):.1e} at most",
                flush=True,
            )
    sys.exit(worst > options.tolerance)


if __name__ == "__main__":
    main()
