"""Kills a small training run repeatedly at random moments, and compares its result with an uninterrupted run.

python scripts/kill_test.py --kills 20 --pair-kills 10    # SIGKILL; the ten hit one of two processes
python scripts/kill_test.py --kills 0 --four-kills 20     # one of four
python scripts/kill_test.py --kills 20 --signals TERM     # it must save and say so

Every other SIGKILL comes while a checkpoint is being written. No committed step may be lost, no process may outlive a
killed run, and the final arrays must be equal bit for bit.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import random
import re
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from job import begin, left, start

BEGUN = "training has begun"
RESUMES = re.compile(r"resumes from step (\d+)")
ALONE_SECONDS = 15.0  # that a process may live on when the other is killed


def recipe(steps: int) -> Any:
    """The tokenizer of Moving Shapes at its smallest; it saves, samples and logs all the time."""
    from tokvid.config import DataConfig, Recipe, TokenizerConfig, TrainConfig

    size, layers = (16, 16), {"encoder": ("space",), "decoder": ("time",), "time_window": 1}
    return Recipe(
        data=DataConfig(size=size, frames=3, videos=50, threads=1),
        tokenizer=TokenizerConfig(size=size, width=16, heads=2, mlp=32, quantizer="fsq", levels=(4, 4), **layers),
        train_tokenizer=TrainConfig(steps=steps, batch=4, warmup=2, save_every=2, sample_every=5, log_every=3),
    )


def work(rank: int, address: str, folder: Path, steps: int, processes: int) -> None:
    """The training itself, in a process of its own."""
    begin(folder.with_suffix(".log"))
    from tokvid.distributed import joined
    from tokvid.train.loop import train
    from tokvid.train.tokenizer_step import TokenizerTraining

    class Told(TokenizerTraining):
        def batches(self, shard: tuple[int, int] = (0, 1)) -> Any:
            print(BEGUN, file=sys.stderr, flush=True)  # from here on a SIGTERM is heeded
            return super().batches(shard)

    logging.basicConfig(level=logging.WARNING)
    training = Told(recipe(steps))
    with joined(address, processes, rank) if processes > 1 else contextlib.nullcontext():
        train(training, training.recipe.train_tokenizer, folder)


def kill(workers: list[BaseProcess], folder: Path, number: int, seconds: float, saving: bool) -> str | None:
    """Signals the last of `workers` after `seconds`; says in which moment it came, or None where all had ended before.

    `saving` waits for the next moment in which a checkpoint is half written. SIGTERM is counted from the moment that
    training begins: before, there is nothing to save. RuntimeError where a worker fails by itself, doesn't save and
    leave in peace at a SIGTERM, or something lives on after it.
    """
    log, worker = folder.with_suffix(".log"), workers[-1]
    begun = said(log).count(BEGUN)
    while number == signal.SIGTERM and worker.is_alive() and said(log).count(BEGUN) == begun:
        time.sleep(0.01)
    end = time.monotonic() + seconds
    while worker.is_alive() and (time.monotonic() < end or (saving and not checkpoints(folder)[1])):
        time.sleep(0.003)
    if ended := not worker.is_alive():
        end_of(workers, 600)
    else:
        os.kill(worker.pid or 0, number)
        worker.join(600)
    at = time.monotonic()
    codes = end_of(workers, ALONE_SECONDS)
    if any(map(left, workers)):
        raise RuntimeError(f"something of {workers} lives on")
    if ended and any(codes):
        raise RuntimeError(f"a worker failed by itself, see {log}:\n{said(log)[-2000:]}")
    if ended:
        return None
    saved, unfinished = checkpoints(folder)
    moment = f"{signal.Signals(number).name} at {seconds:.2f} s, saved {saved or 'nothing'}"
    if len(workers) > 1:
        moment += f", the others gone {time.monotonic() - at:.1f} s later"
    if number == signal.SIGTERM:
        ends = re.findall(r"(?:stopped at|trained to) step (\d+)", said(log))
        if any(codes) or unfinished or not saved or not ends or int(ends[-1]) != saved[-1]:
            raise RuntimeError(f"after {moment}: exit codes {codes}, see {log}:\n{said(log)[-2000:]}")
    return moment + (f", while saving {' '.join(unfinished)}" if unfinished else "")


def end_of(workers: list[BaseProcess], seconds: float) -> list[int]:
    """The exit codes, once all have ended. RuntimeError where one hasn't after `seconds`."""
    for worker in workers:
        worker.join(seconds)
        if worker.exitcode is None:
            raise RuntimeError(f"{worker} still lives after {seconds:g} s")
    return [worker.exitcode or 0 for worker in workers]


def said(log: Path) -> str:
    return log.read_text() if log.exists() else ""


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
    from tokvid.train.metrics_log import RATES
    from tokvid.train.state import abstract_state
    from tokvid.train.tokenizer_step import TokenizerTraining

    training, config = TokenizerTraining(recipe(steps)), recipe(steps).train_tokenizer
    with Checkpoints(folder / "checkpoints", config.keep, agreement(training, config)) as kept:
        restored = kept.restore(abstract_state(training, config, make_mesh(config.mesh))[0])
    assert restored is not None and restored[0] == steps, f"{folder} ends at another step than {steps}"
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(restored[1])}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name not in RATES} for line in lines]
    return arrays, lines, (folder / "weights.safetensors").read_bytes()


def compare(one: Path, other: Path, steps: int) -> None:
    """AssertionError with the name of what differs."""
    (arrays, lines, weights), (others, other_lines, other_weights) = result(one, steps), result(other, steps)
    assert arrays.keys() == others.keys(), f"other arrays in {one} than in {other}"
    for name, array in arrays.items():
        assert array.dtype == others[name].dtype and array.tobytes() == others[name].tobytes(), f"{name} differs"
    assert lines == other_lines, f"metrics.jsonl of {one} and {other} differ"
    assert weights == other_weights, f"weights of {one} and {other} differ"


def torment(alone: Path, name: str, options: argparse.Namespace, kills: int, processes: int) -> None:
    """`kills` kills, in as many trainings as it takes; each must end as `alone` did."""
    moments = random.Random(f"{options.seed} {processes}")
    began = time.monotonic()
    if any(end_of(start(processes, work, alone, options.steps, processes), 3600)):
        sys.exit(f"the training fails by itself:\n{said(alone.with_suffix('.log'))[-2000:]}")
    took = time.monotonic() - began
    print(f"{name}, uninterrupted: {options.steps} steps in {took:.1f} s; moments of seed {options.seed}", flush=True)
    signals = itertools.cycle(signal.Signals[f"SIG{signal_name}"] for signal_name in options.signals)
    done = caught = 0
    for attempt in itertools.count():
        folder, moment = alone.with_name(f"{alone.name}-{attempt}"), ""
        while moment is not None:  # until it comes to its end
            saved, before = checkpoints(folder)[0], RESUMES.findall(said(folder.with_suffix(".log")))
            workers, last = start(processes, work, folder, options.steps, processes), done == kills
            number, seconds = (signal.SIGKILL, 3600) if last else (next(signals), moments.uniform(0, took))
            began = time.monotonic()
            if processes > 1 and moments.random() < 0.5:
                workers.reverse()  # the first one, which the others meet at, is hit
            try:
                moment = kill(workers, folder, number, seconds, saving=not last and done % 2 == 1)
            finally:
                for worker in workers:
                    worker.kill()
            gone_on = RESUMES.findall(said(folder.with_suffix(".log")))[len(before) :]
            if gone_on and int(gone_on[0]) != saved[-1]:
                raise RuntimeError(f"{saved[-1]} was committed, and training went on from step {gone_on[0]}")
            if moment is None:  # programs that were compiled before make it faster
                took = min(took, time.monotonic() - began)
            else:
                done, caught = done + 1, caught + ("while saving" in moment)
                print(f"{done}/{kills}: {moment}", flush=True)
        compare(alone, folder, options.steps)
        print(f"training {attempt + 1} came to its end: equal", flush=True)
        if done == kills:
            break
    equal = "final parameters equal the uninterrupted run's bit for bit"
    print(f"{name}, {done} kills, {caught} of them while saving: {equal}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of a training that is one process")
    parser.add_argument("--pair-kills", type=int, default=0, help="of one of the two processes of a training")
    parser.add_argument("--four-kills", type=int, default=0, help="of one of the four processes of a training")
    parser.add_argument("--signals", nargs="+", choices=("KILL", "TERM"), default=["KILL"], help="taken in turn")
    parser.add_argument("--steps", type=int, default=40, help="of a training")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name, kills, processes in (
            ("one process", options.kills, 1),
            ("two processes", options.pair_kills, 2),
            ("four processes", options.four_kills, 4),
        ):
            if kills:
                torment(Path(temporary) / f"{processes}", name, options, kills, processes)


if __name__ == "__main__":
    main()
