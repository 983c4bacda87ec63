"""Training of the transformer on the token cache: its loss and its batches."""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from tokvid import weights
from tokvid.config import DataConfig, Recipe, computed, to_dict
from tokvid.flops import TRAINING, transformer_flops
from tokvid.input_pipeline.sources import fingerprint
from tokvid.train.state import TrainState
from tokvid.train.token_cache import TokenCache
from tokvid.train.windows import batch_kinds, token_batches
from tokvid.transformer.head import Scores
from tokvid.transformer.layout import Sequence, clip_slots, corrupted, lay_out, stalled, tokens_before
from tokvid.transformer.lora import LoRA
from tokvid.transformer.model import Transformer
from tokvid.types import TokenBatch

VALIDATION_SEED = 1


def scored(
    model: Transformer | LoRA, sequence: Sequence, clip: slice, seen_BLQ: Int[Array, "b l q"] | None = None
) -> tuple[Scores, Float[Array, "b l"]]:
    """The scores of a window's tokens, at its slots `clip`, and which of them count: 1 where generated, else 0.

    `seen_BLQ`: the tokens in these slots that a head may copy; None: the true ones.
    """
    model = _merged(model)
    hidden, _ = model.run(sequence, None, 0)
    target_BLQ = sequence.target[:, clip]
    previous_BLQ = tokens_before(target_BLQ if seen_BLQ is None else seen_BLQ, sequence.previous[:, clip])
    scores = model.head.scores(model.norm(hidden[:, clip]), target_BLQ, previous_BLQ)
    return scores, sequence.generated[:, clip].astype(jnp.float32)


class TransformerTraining:
    """`Training` of the transformer, for `train.loop.train`."""

    name = "transformer"

    def __init__(self, recipe: Recipe, cache: TokenCache | None = None, show: Callable[..., None] | None = None):
        """Without a `cache`, there are no batches.

        `show(model, directory, step)` generates sample videos; it comes from outside, as `train` doesn't import
        `sampling`.
        """
        self.recipe, self.config, self.show = recipe, recipe.transformer, show
        if cache is not None:
            self.cache = cache

    @functools.cached_property
    def _base(self) -> str:
        """The fingerprint of the weights that a LoRA updates."""
        return weights.describe(weights.find(self.recipe.train_transformer.start) / self.name, self.name)["fingerprint"]

    def make_model(self, rngs: nnx.Rngs) -> Transformer | LoRA:
        rank = self.recipe.train_transformer.lora
        return LoRA(self.config, rank, rngs=rngs) if rank else Transformer(self.config, rngs=rngs)

    def loss(
        self, model: Transformer | LoRA, batch: TokenBatch, key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the generated video tokens, all sub-codes together, plus z-loss (PaLM, section 5)."""
        model = _merged(model)
        sequence, clip, seen_BLQ = lay_out(self.config, batch), clip_slots(batch), None
        if key is not None and (most := self.recipe.layouts.stalls):
            stopped = batch._replace(tokens=stalled(batch.tokens, most, jax.random.fold_in(key, 1)))
            seen = lay_out(self.config, stopped)
            sequence, seen_BLQ = seen._replace(target=sequence.target), seen.target[:, clip]
        if key is not None and (most := self.recipe.layouts.corruption):
            sequence = corrupted(sequence, clip, most, model.vocabulary, key)
        scores, weight_BL = scored(model, sequence, clip, seen_BLQ)
        count = jnp.maximum(weight_BL.sum(), 1.0)
        cross_entropy = -jnp.sum(weight_BL * scores.log_likelihood) / count
        z = self.config.z_loss * jnp.sum(weight_BL * scores.normaliser) / count
        right = jnp.sum(weight_BL * scores.right) / count
        return cross_entropy + z, {"cross_entropy": cross_entropy, "z_loss": z, "accuracy": right}

    def weight(self, batch: TokenBatch) -> jax.Array:
        """The number of generated tokens, over which `loss` averages."""
        return lay_out(self.config, batch).generated.sum().astype(jnp.float32)

    def flops(self) -> float:
        c, tokens = self.config, math.prod(self.config.grid)
        rows = [
            each.share * each.windows * transformer_flops(c, each.slots, each.slots, each.kind.frames * tokens)
            for each in batch_kinds(self.recipe.layouts, c)
        ]
        return TRAINING * sum(rows)

    def batches(self, shard: tuple[int, int] = (0, 1)) -> Any:
        return self._batches(self.cache, self.recipe.train_transformer.seed, shard)

    def prepare(self, batch: TokenBatch, state: TrainState, mesh: Mesh) -> Any:
        return batch

    def validation(self, shard: tuple[int, int] = (0, 1)) -> Any:
        held_out = self.cache.held_out
        return None if held_out is None else self._batches(held_out, VALIDATION_SEED, shard)

    def _batches(self, cache: TokenCache, seed: int, shard: tuple[int, int]) -> Any:
        batch = self.recipe.train_transformer.batch // shard[1]
        return token_batches(cache, batch, seed, threads=self.recipe.data.threads, shard=shard)

    def alarm(self, metrics: Mapping[str, float]) -> str:
        return ""

    def samples(self, model: Transformer | LoRA, directory: Path, step: int) -> None:
        if self.show is not None:
            self.show(_merged(model), directory, step)

    def finish(self, variables: nnx.State, directory: Path, step: int) -> None:
        about = {name: self.cache.about[name] for name in ("tokenizer", "text_model", "fps", "size")}
        about["layouts"] = to_dict(self.recipe.layouts)
        if self.recipe.train_transformer.lora:
            about |= {"steps": step, "rank": self.recipe.train_transformer.lora}
            updates = nnx.to_flat_state(variables["updates"])
            weights.save_lora(directory / weights.LORA_FILE, updates, self._base, **about)
            return
        weights.save(directory, "transformer", self.config, variables, steps=step, **about)

    def describe(self) -> Mapping[str, Any]:
        about, path = self.cache.about, str(self.cache.source.path)
        return {
            "transformer": computed(self.config),
            **({"lora of": self._base} if self.recipe.train_transformer.lora else {}),
            "layouts": to_dict(self.recipe.layouts),
            "tokenizer": about["tokenizer"],
            "text_model": about["text_model"],
            "data": about["data"],
            "tokens": about["tokens"] | {"files": fingerprint(DataConfig(source="records", path=path))},
        }


def _merged(model: Transformer | LoRA) -> Transformer:
    return model.merged() if isinstance(model, LoRA) else model
