"""Kills a small training at random moments, again and again, and compares its end with one that was left alone.

python scripts/kill_test.py --kills 20                  # SIGKILL, from the start of the process on
python scripts/kill_test.py --kills 20 --signals TERM   # it must save, say so and leave with exit code 0
"""

import argparse
import itertools
import json
import logging
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BEGUN = "training has begun"


def recipe(steps: int) -> Any:
    """The tokenizer of Moving Shapes at its smallest; it saves, samples and logs all the time."""
    from tokvid.config import DataConfig, Recipe, TokenizerConfig, TrainConfig

    size, layers = (16, 16), {"encoder": ("space",), "decoder": ("time",), "time_window": 1}
    return Recipe(
        data=DataConfig(size=size, frames=3, videos=50, threads=1),
        tokenizer=TokenizerConfig(size=size, width=16, heads=2, mlp=32, quantizer="fsq", levels=(4, 4), **layers),
        train_tokenizer=TrainConfig(steps=steps, batch=2, warmup=2, save_every=2, sample_every=5, log_every=3),
    )


def work(folder: Path, steps: int) -> None:
    """The training itself, in a process of its own."""
    from tokvid.train.loop import train
    from tokvid.train.tokenizer_step import TokenizerTask

    class Told(TokenizerTask):
        def batches(self, block: tuple[int, int] = (0, 1)) -> Any:
            print(BEGUN, file=sys.stderr, flush=True)  # from here on a SIGTERM is heeded
            return super().batches(block)

    logging.basicConfig(level=logging.WARNING)
    task = Told(recipe(steps))
    train(task, task.recipe.train_tokenizer, folder)


def start(folder: Path, steps: int) -> subprocess.Popen:
    """A worker, its stderr in `folder`.log."""
    with open(folder.with_suffix(".log"), "a") as log:
        command = [sys.executable, __file__, "--work", str(folder), "--steps", str(steps)]
        return subprocess.Popen(command, stdout=log, stderr=log)


def kill(worker: subprocess.Popen, folder: Path, number: int, seconds: float) -> str | None:
    """Sends the signal after `seconds`; says in which moment it came, or None where the worker had ended before.

    SIGTERM is counted from the moment that training begins: before, there is nothing to save. RuntimeError where the
    worker then doesn't save, say so and leave in peace.
    """
    log = folder.with_suffix(".log")
    begun = log.read_text().count(BEGUN) if log.exists() else 0
    while number == signal.SIGTERM and worker.poll() is None and log.read_text().count(BEGUN) == begun:
        time.sleep(0.01)
    try:
        worker.wait(seconds)
    except subprocess.TimeoutExpired:
        worker.send_signal(number)
        code = worker.wait(600)
    else:
        if worker.returncode:
            raise RuntimeError(f"the worker failed by itself, see {log}:\n{log.read_text()[-2000:]}") from None
        return None
    saved, unfinished = checkpoints(folder)
    moment = f"{signal.Signals(number).name} at {seconds:.2f} s, saved {saved or 'nothing'}"
    if number == signal.SIGTERM:
        said = re.findall(r"(?:stopped at|trained to) step (\d+)", log.read_text())
        if code or unfinished or not saved or not said or int(said[-1]) != saved[-1]:
            raise RuntimeError(f"after {moment}: exit code {code}, see {log}:\n{log.read_text()[-2000:]}")
    return moment + (f", while saving {' '.join(unfinished)}" if unfinished else "")


def checkpoints(folder: Path) -> tuple[list[int], list[str]]:
    """The steps that are committed, and the names of what isn't."""
    found = [path for path in (folder / "checkpoints").glob("*") if path.is_dir()]
    whole = [path for path in found if (path / "commit.json").exists()]
    return sorted(int(path.name) for path in whole), sorted(path.name for path in found if path not in whole)


def result(folder: Path, steps: int) -> tuple[dict[str, Any], list[dict[str, float]], bytes]:
    """Every array of the last checkpoint by name, the lines of the metrics without rates, and the weights."""
    import jax
    import numpy as np

    from tokvid.sharding import make_mesh
    from tokvid.train.checkpoints import Checkpoints
    from tokvid.train.loop import agreement
    from tokvid.train.state import abstract_state
    from tokvid.train.tokenizer_step import TokenizerTask

    task, config = TokenizerTask(recipe(steps)), recipe(steps).train_tokenizer
    with Checkpoints(folder / "checkpoints", config.keep, agreement(task, config)) as kept:
        restored = kept.restore(abstract_state(task, config, make_mesh(config.mesh))[0])
    assert restored is not None and restored[0] == steps, f"{folder} ends at another step than {steps}"
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(restored[1])}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("clips_per_second", None)
    return arrays, lines, (folder / "weights.safetensors").read_bytes()


def compare(one: Path, other: Path, steps: int) -> None:
    """AssertionError with the name of what differs."""
    (arrays, lines, weights), (others, other_lines, other_weights) = result(one, steps), result(other, steps)
    assert arrays.keys() == others.keys(), f"other arrays in {one} than in {other}"
    for name, array in arrays.items():
        assert array.dtype == others[name].dtype and array.tobytes() == others[name].tobytes(), f"{name} differs"
    assert lines == other_lines, f"metrics.jsonl of {one} and {other} differ"
    assert weights == other_weights, f"weights of {one} and {other} differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signals", nargs="+", choices=("KILL", "TERM"), default=["KILL"], help="taken in turn")
    parser.add_argument("--steps", type=int, default=40, help="of a training")
    parser.add_argument("--seed", type=int, default=None, help="of the moments")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.steps)

    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    moments, signals = random.Random(seed), itertools.cycle(signal.Signals[f"SIG{name}"] for name in options.signals)
    with tempfile.TemporaryDirectory() as temporary:
        began, alone = time.monotonic(), Path(temporary) / "alone"
        if start(alone, options.steps).wait():
            sys.exit(f"the training fails by itself:\n{alone.with_suffix('.log').read_text()[-2000:]}")
        took = time.monotonic() - began
        print(f"uninterrupted: {options.steps} steps in {took:.1f} s; moments of seed {seed}", flush=True)
        kills = 0
        for attempt in itertools.count():
            folder, moment = Path(temporary) / f"killed-{attempt}", ""
            while moment is not None:  # until it comes to its end
                worker, last = start(folder, options.steps), kills == options.kills
                number, seconds = (signal.SIGKILL, 3600) if last else (next(signals), moments.uniform(0, took))
                try:
                    moment = kill(worker, folder, number, seconds)
                finally:
                    worker.kill()
                if moment is not None:
                    kills += 1
                    print(f"{kills}/{options.kills}: {moment}", flush=True)
            compare(alone, folder, options.steps)
            print(f"training {attempt + 1} came to its end: equal", flush=True)
            if kills == options.kills:
                break
    print(f"{kills} kills: final parameters equal the uninterrupted run's bit for bit")


if __name__ == "__main__":
    main()
