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
from tokvid.config import DataConfig, Recipe, computed
from tokvid.errors import UserError
from tokvid.flops import TRAINING, transformer_flops
from tokvid.input_pipeline.sources import fingerprint
from tokvid.train.state import TrainState
from tokvid.train.token_cache import TokenCache
from tokvid.train.windows import Share, batch_kinds, token_batches
from tokvid.transformer import lora_files
from tokvid.transformer.head import Near, Number, Scores
from tokvid.transformer.layout import Sequence, clip_slots, corrupted, in_order, lay_out, stalled, tokens_before
from tokvid.transformer.lora import LoRA
from tokvid.transformer.model import Transformer
from tokvid.types import AnyArray, TokenBatch

VALIDATION_SEED = 1


def scored(
    model: Transformer | LoRA,
    sequence: Sequence,
    clip: slice,
    seen_BLQ: Int[Array, "b l q"] | None = None,
    temperature_BL: Float[Array, "b l"] | None = None,
) -> tuple[Scores, Float[Array, "b l"]]:
    """The scores of a window's tokens, at its slots `clip`, and which of them count: 1 where generated, else 0.

    `seen_BLQ`: the tokens in these slots that a head may copy; None: the true ones. `temperature_BL`: those at which
    they are drawn; None: 1.
    """
    model = merged(model)
    hidden, _ = model.run(sequence, None, 0)
    target_BLQ = sequence.target[:, clip]
    previous_BLQ = tokens_before(target_BLQ if seen_BLQ is None else seen_BLQ, sequence.previous[:, clip])
    near = Near(previous_BLQ, sequence.slower[:, clip])
    scores = model.head.scores(model.norm(hidden[:, clip]), target_BLQ, near, temperature_BL)
    return scores, sequence.generated[:, clip].astype(jnp.float32)


def drawn(model: Transformer, batch: TokenBatch, sequence: Sequence, key: jax.Array) -> Int[Array, "b t h w q"]:
    """A batch's tokens with those that are to be generated drawn by the model, each after the true ones before it.

    `sequence` is the batch's. No gradient passes.
    """
    graph, params = nnx.split(model)
    model, clip = nnx.merge(graph, jax.lax.stop_gradient(params)), clip_slots(batch)
    hidden, _ = model.run(sequence, None, 0)
    near = Near(tokens_before(sequence.target[:, clip], sequence.previous[:, clip]), sequence.slower[:, clip])

    def choose(number: Number, logits_BLV: Float[Array, "b l v"]) -> tuple[Int[Array, "b l"], None]:
        return jax.random.categorical(jax.random.fold_in(key, number), logits_BLV), None

    drawn_BLQ, _ = model.head.draw(model.norm(hidden[:, clip]), choose, near)
    own_BLQ = jnp.where(sequence.generated[:, clip, None], drawn_BLQ, sequence.target[:, clip])
    B, T, H, W, Q = batch.tokens.shape
    slot_of_place_BL = jnp.argsort(in_order(batch.known), axis=1)
    by_place_BLQ = jnp.take_along_axis(own_BLQ, slot_of_place_BL[..., None], axis=1)
    return jnp.where(batch.tokens < 0, batch.tokens, by_place_BLQ.reshape(B, T, H, W, Q))


class TransformerTraining:
    """`Training` of the transformer, for `train.loop.train`."""

    name, together = "transformer", 1

    def __init__(self, recipe: Recipe, cache: TokenCache | None = None, show: Callable[..., None] | None = None):
        """Without a `cache`, there are no batches.

        `show(model, directory, step)` generates sample videos; it comes from outside, as `train` doesn't import
        `sampling`.
        """
        self.recipe, self.config, self.show = recipe, recipe.transformer, show
        batch, parts = recipe.train_transformer.batch, recipe.train_transformer.accumulate
        if recipe.layouts.corruption and batch // parts < 2:
            raise UserError(
                f"layouts.corruption takes tokens from other samples of a batch, but {batch} in {parts} parts is one "
                "each; raise batch, or lower accumulate"
            )
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
        model = merged(model)
        sequence, clip, seen_BLQ = lay_out(self.config, batch), clip_slots(batch), None
        layouts = self.recipe.layouts
        if key is not None and (layouts.stalls or layouts.scheduled_sampling):
            seen = lay_out(self.config, batch._replace(tokens=self._seen(model, batch, sequence, key)))
            sequence, seen_BLQ = seen._replace(target=sequence.target), seen.target[:, clip]
        if key is not None and layouts.corruption:
            sequence = corrupted(sequence, clip, layouts.corruption, model.vocabulary, jax.random.fold_in(key, 3))
        scores, weight_BL = scored(model, sequence, clip, seen_BLQ)
        count = jnp.maximum(weight_BL.sum(), 1.0)
        cross_entropy = -jnp.sum(weight_BL * scores.log_likelihood) / count
        z = self.config.z_loss * jnp.sum(weight_BL * scores.normaliser) / count
        right = jnp.sum(weight_BL * scores.right) / count
        return cross_entropy + z, {"cross_entropy": cross_entropy, "z_loss": z, "accuracy": right}

    def _seen(
        self, model: Transformer, batch: TokenBatch, sequence: Sequence, key: jax.Array
    ) -> Int[AnyArray, "b t h w q"]:
        """The tokens that the model sees in place of a batch's true ones.

        Scheduled sampling in two passes, as Mihaylova and Martins (2019): errors in what it sees are then of the kind
        that it makes itself. The share of its own tokens is random, for each sample.
        """
        layouts, seen_BTHWQ = self.recipe.layouts, batch.tokens
        if layouts.stalls:
            seen_BTHWQ = stalled(batch.tokens, layouts.stalls, jax.random.fold_in(key, 1))
        if layouts.scheduled_sampling:
            share_key, token_key, draw_key = jax.random.split(jax.random.fold_in(key, 2), 3)
            drawn_BTHWQ = drawn(model, batch, sequence, draw_key)
            share_B111 = jax.random.uniform(share_key, (len(drawn_BTHWQ), 1, 1, 1), maxval=layouts.scheduled_sampling)
            own_BTHW = jax.random.uniform(token_key, drawn_BTHWQ.shape[:4]) < share_B111
            seen_BTHWQ = jnp.where(own_BTHW[..., None], drawn_BTHWQ, seen_BTHWQ)
        if not (generated := self.config.generated):
            return seen_BTHWQ
        # The others are never wrong: a token that has stopped doesn't have those of a first frame.
        return jnp.concatenate([seen_BTHWQ[..., :generated], batch.tokens[..., generated:]], axis=-1)

    def weight(self, batch: TokenBatch) -> jax.Array:
        """The number of generated tokens, over which `loss` averages."""
        return lay_out(self.config, batch).generated.sum().astype(jnp.float32)

    def flops(self) -> float:
        return sum(each.share * self.flops_of(each) for each in batch_kinds(self.recipe.layouts, self.config))

    def flops_of(self, kind: Share) -> float:
        """FLOPs for each row of a kind of batch."""
        tokens, slots = kind.kind.frames * math.prod(self.config.grid), kind.slots
        passes = TRAINING + bool(self.recipe.layouts.scheduled_sampling)
        return passes * kind.windows * transformer_flops(self.config, slots, slots, tokens)

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
            self.show(merged(model), directory, step)

    @property
    def facts(self) -> dict[str, Any]:
        """What is saved with the weights."""
        return self.cache.facts

    def finish(self, variables: nnx.State, directory: Path, step: int) -> None:
        about = self.facts
        if self.recipe.train_transformer.lora:
            about |= {"steps": step, "rank": self.recipe.train_transformer.lora}
            updates = nnx.to_flat_state(variables["updates"])
            lora_files.save_lora(directory / lora_files.LORA_FILE, updates, self._base, **about)
            return
        weights.save(directory, "transformer", self.config, variables, steps=step, **about)

    def describe(self) -> Mapping[str, Any]:
        about, path = self.cache.about, str(self.cache.source.path)
        return {
            "transformer": computed(self.config),
            **({"lora of": self._base} if self.recipe.train_transformer.lora else {}),
            "layouts": computed(self.recipe.layouts),
            "tokenizer": about["tokenizer"],
            "text_model": about["text_model"],
            "data": about["data"],
            "tokens": about["tokens"] | {"files": fingerprint(DataConfig(source="records", path=path))},
        }


def merged(model: Any) -> Transformer:
    """The transformer that a training's model is: a LoRA's with its updates, or the model itself."""
    return model.merged() if isinstance(model, LoRA) else model
