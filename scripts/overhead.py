"""Cost of checkpoints and their hashes at the default interval, and of the loop around the jitted step.

python scripts/overhead.py                       # configs/tiny.py's tokenizer
python scripts/overhead.py configs/base.py --steps 20

A checkpoint is timed twice: while training waits for it, and up to its commit, as if none of it ran concurrently (an
overestimate that is large at 20 ms per step, since orbax takes at least half a second). The loop is timed on ready
batches, alternating with a bare loop over the same step. Times are wall-clock and CPU seconds; the latter are more
reliable on a shared machine.
"""

import argparse
import contextlib
import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tokvid.config import TrainConfig
from tokvid.sharding import make_mesh, shard_batch
from tokvid.train import checkpoints, loop
from tokvid.train.recipe import open_recipe
from tokvid.train.state import abstract_state, init_state, make_step
from tokvid.train.tokenizer_step import TokenizerTraining

SAVES = 8


class Ready(TokenizerTraining):
    """The tokenizer's training, with one batch made beforehand; it remembers when each was asked for."""

    def batches(self, shard: tuple[int, int] = (0, 1)) -> Any:
        with contextlib.closing(super().batches(shard)) as made:
            return Same(next(made), self)


class Same:
    def __init__(self, batch: Any, training: Ready):
        self.batch, self.training = batch, training
        training.asked = []

    def __next__(self) -> Any:
        self.training.asked.append(now())
        return self.batch

    def get_state(self) -> dict[str, int]:
        return {}

    def set_state(self, state: dict[str, int]) -> None:
        pass

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=Path(__file__).parents[1] / "configs" / "tiny.py")
    parser.add_argument("--steps", type=int, default=50, help="that are timed at a time")
    parser.add_argument("--rounds", type=int, default=60, help="that the loop and the bare step are timed in turn")
    options, rest = parser.parse_known_args()
    recipe = open_recipe(options.config, rest)
    config = dataclasses.replace(recipe.train_tokenizer, steps=options.steps + 2, save_every=0, sample_every=0)
    training = Ready(dataclasses.replace(recipe, train_tokenizer=config))
    mesh = make_mesh(config.mesh)
    like, graph = abstract_state(training, config, mesh)
    step = make_step(training, config, mesh, like, graph)
    # The loop takes the step that is compiled already.
    loop.make_step = lambda *arguments: step  # type: ignore[assignment]
    training.finish = lambda *arguments: None  # type: ignore[method-assign]
    batch = training.batches().batch
    state, metrics = step(init_state(training, config, like), shard_batch(batch, mesh))
    jax.block_until_ready(metrics)

    bare, looped = [], []
    for _ in range(options.rounds):
        on_device, before = shard_batch(batch, mesh), None
        began = now()
        for _ in range(options.steps):
            state, metrics = step(state, on_device)
            jax.block_until_ready(before)
            before = metrics
        jax.block_until_ready(before)
        bare.append((now() - began) / options.steps)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            loop.train(training, config, Path(folder))
        looped.append((training.asked[-1] - training.asked[1]) / (len(training.asked) - 2))

    waits, wholes, hashes = [], [], []
    with tempfile.TemporaryDirectory() as name, checkpoints.Checkpoints(Path(name), 2, {}) as kept:
        for number in range(SAVES + 1):  # the first one compiles
            began = now()
            kept.save(number, state, {})
            wait = now() - began
            kept.wait()
            whole, began = now() - began, now()
            checkpoints._hashes(kept.folder / str(number))
            if number:
                waits.append(wait)
                wholes.append(whole)
                hashes.append(now() - began)
        size = sum(path.stat().st_size for path in (kept.folder / str(SAVES)).rglob("*") if path.is_file())
    every = TrainConfig().save_every
    print(f"{options.config.name}, tokenizer, batch {config.batch}; {size / 1e6:.2f} MB saved every {every} steps")
    for i, kind in enumerate(("clock", "processor")):
        alone, within, wait, whole, hashed = (
            float(np.median(np.array(times)[:, i])) for times in (bare, looped, waits, wholes, hashes)
        )
        more = np.array(looped)[:, i] / np.array(bare)[:, i] - 1
        low, middle, high = np.quantile(more, (0.25, 0.5, 0.75))
        drawn = np.random.default_rng(0).choice(more, (1000, len(more)))  # with replacement: how sure the median is
        share = 1 / (every * within)
        print(
            f"{kind}: bare step {1e3 * alone:.2f} ms, in the loop {1e3 * within:.2f} ms: {middle:+.1%} "
            f"± {np.median(drawn, axis=1).std():.1%} (quartiles {low:+.1%}, {high:+.1%}); "
            f"of training: waiting for a checkpoint {share * wait:.2%} "
            f"({1e3 * wait:.0f} ms), all of it {share * whole:.2%} ({1e3 * whole:.0f} ms), hashing {share * hashed:.3%}"
        )


def now() -> Any:
    """Seconds of the clock, and of the processor in all threads."""
    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    main()
