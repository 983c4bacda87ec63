"""Tests whether training the tokenizer in bfloat16 reaches the same loss as in float32, within 1 %.

python scripts/compare/dtypes.py --start shapes             # fine-tunes trained weights, at a tenth of their rate
python scripts/compare/dtypes.py --quantizer vq             # the tokenizer of configs/tiny.py from scratch

Trains in both types, from the same parameters on the same clips, until the learning rate is 0, and compares the mean
loss of the last quarter of the steps. A single rounding makes two runs diverge, most of all while the loss falls
steeply, so there is one pair per seed, and the mean of their ratios has a standard error. Also prints the loss of the
same trained parameters on the same clips in both types, the effect of the arithmetic alone. Exits with 1 unless the
mean ratio is within 1 % of 1 by two standard errors.
"""

import argparse
import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from tokvid import weights
from tokvid.config import DataConfig, Recipe, TokenizerConfig
from tokvid.io.settings import from_dict
from tokvid.sharding import make_mesh, shard_batch
from tokvid.train.recipe import open_recipe
from tokvid.train.state import TrainState, abstract_state, init_state, make_step, start_from
from tokvid.train.tokenizer_step import TokenizerTraining

DTYPES = ("float32", "bfloat16")
QUANTIZERS: dict[str, dict[str, Any]] = {
    "fsq": {"quantizer": "fsq"},
    "vq": {"quantizer": "vq", "codes": 256},
    "lfq": {"quantizer": "lfq", "codes": 256},
}
MARGIN = 0.01


class Training:
    """Trainings in one type, compiled once for all seeds."""

    def __init__(self, recipe: Recipe, dtype: str, start: Path | None):
        tokenizer = dataclasses.replace(recipe.tokenizer, dtype=dtype)
        self.config, self.start = recipe.train_tokenizer, start
        self.task = TokenizerTraining(dataclasses.replace(recipe, tokenizer=tokenizer))
        self.mesh = make_mesh(self.config.mesh)
        self.like, self.graph = abstract_state(self.task, self.config, self.mesh)
        self.step = make_step(self.task, self.config, self.mesh, self.like, self.graph)

    def run(self, seed: int, clips: list[Any]) -> tuple[float, TrainState]:
        """The mean loss of the last quarter of the steps, and the state at the end."""
        state, losses = init_state(self.task, dataclasses.replace(self.config, seed=seed), self.like), []
        if self.start is not None:
            state = start_from(state, self.start, "tokenizer")
        for batch in clips:
            state, metrics = self.step(state, shard_batch(batch, self.mesh))
            losses.append(float(metrics["loss"]))
        return float(np.mean(losses[-len(losses) // 4 :])), state

    def loss(self) -> Callable[[TrainState, Any], jax.Array]:
        """The loss of a state on a batch, jitted."""

        def loss(state: TrainState, batch: Any) -> jax.Array:
            model = nnx.merge(self.graph, state.params, state.buffers, copy=True)
            return self.task.loss(model, batch, jax.random.key(0))[0]

        return jax.jit(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantizer", choices=QUANTIZERS, default="fsq")
    parser.add_argument("--start", type=weights.find, help="a weights folder whose tokenizer is trained on")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    recipe = open_recipe(Path(__file__).parents[2] / "configs" / "tiny.py", [])
    tokenizer = dataclasses.replace(recipe.tokenizer, **QUANTIZERS[options.quantizer])
    settings = dataclasses.replace(recipe.train_tokenizer, steps=options.steps, final_learning_rate=0.0)
    if options.start is not None:
        about = weights.describe(options.start / "tokenizer", "tokenizer")
        tokenizer = from_dict(TokenizerConfig, about["config"], "the tokenizer's config")
        recipe = dataclasses.replace(recipe, data=from_dict(DataConfig, about["data"], "the tokenizer's data"))
        settings = dataclasses.replace(settings, learning_rate=settings.learning_rate / 10, batch=4)
    recipe = dataclasses.replace(recipe, tokenizer=tokenizer, train_tokenizer=settings)
    trainings = [Training(recipe, dtype, options.start) for dtype in DTYPES]
    losses = [training.loss() for training in trainings]
    trained, same = [], []
    for seed in range(options.seeds):
        task = TokenizerTraining(dataclasses.replace(recipe, train_tokenizer=dataclasses.replace(settings, seed=seed)))
        with contextlib.closing(task.batches()) as batches:
            *clips, probe = itertools.islice(batches, options.steps + 1)
        (wide, state), (narrow, _) = (training.run(seed, clips) for training in trainings)
        trained.append((wide, narrow))
        same.append([float(loss(state, probe)) for loss in losses])
        print(f"seed {seed}: trained {wide:.5f} {narrow:.5f}, the same parameters {same[-1][0]:.5f} {same[-1][1]:.5f}")
    for name, pairs in (("trained", np.array(trained)), ("the same parameters", np.array(same))):
        ratios = pairs[:, 1] / pairs[:, 0]
        mean, error = float(ratios.mean()), float(ratios.std(ddof=1) / len(ratios) ** 0.5)
        print(
            f"{tokenizer.quantizer}, {name}: float32 {pairs[:, 0].mean():.5f}, bfloat16 {pairs[:, 1].mean():.5f}, "
            f"ratio {mean:.4f} ± {error:.4f}"
        )
        if name == "trained":
            within = abs(mean - 1) + 2 * error <= MARGIN  # not so of one seed, whose error is NaN
    sys.exit(not within)


if __name__ == "__main__":
    main()
