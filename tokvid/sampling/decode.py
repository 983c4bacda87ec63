"""From layouts to tokens: prefill what is known, then step after step over one static KV cache, in one jitted loop."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tokvid.nn.cache import KVCache
from tokvid.sampling.methods import Sampling, draw, guide, surest
from tokvid.transformer.layout import Sequence
from tokvid.transformer.model import Transformer, sequence_of
from tokvid.types import TokenBatch, tokens_at_once


def prefill(model: Transformer, sequence: Sequence, slots: int, layers: Any) -> KVCache:
    """A cache that holds the first `slots` slots of a sequence and has room for them all."""
    cache = model.empty_cache(sequence.token.shape[0], sequence.token.shape[1], layers)
    return cast(KVCache, model.run(sequence.slots(0, slots), cache, 0, layers)[1])


def step(
    model: Transformer, sequence: Sequence, cache: KVCache, slot: jax.Array, input_BL: Int[Array, "b l"], layers: Any
) -> tuple[Float[Array, "b l v"], KVCache]:
    """Logits of the slots from `slot` on, given their input tokens, and the cache with these slots written."""
    here = sequence.slots(slot, input_BL.shape[1])._replace(token=input_BL)
    hidden, longer = model.run(here, cache, slot, layers)
    return model.logits(hidden), cast(KVCache, longer)


@functools.partial(jax.jit, static_argnames=("graph", "known", "method", "guided"))
def generate(
    graph: nnx.GraphDef,
    params: nnx.State,
    batch: TokenBatch,
    negative_BL: Int[Array, "b l"],
    keys_B: jax.Array,
    guidance_BT: Float[Array, "b t"],
    count: Int[Array, ""],
    *,
    known: tuple[bool, ...],
    method: Sampling,
    guided: bool,
) -> Int[Array, "b t h w"]:
    """Fills in the first `count` latent frames of a window that are not `known`; the rest become 0.

    What `batch` says of known, step and drawn is replaced by `known` and by `method`. With `guided`, each step also
    runs under the text `negative_BL` (-1: without text) and guidance is applied, of each latent frame its own.
    Sampling is by absolute slot: fold_in(keys_B, slot), so a longer window begins with the same tokens.
    """
    model: Transformer = nnx.merge(graph, params)
    B, T, H, W = batch.tokens.shape
    width, given_T = tokens_at_once(method.rows, batch.tokens.shape[1:]), [i for i in range(T) if known[i]]
    batch = batch._replace(
        known=jnp.broadcast_to(jnp.array(known), (B, T)),
        step=jnp.full(B, width),
        drawn=jnp.zeros(batch.tokens.shape, bool),
    )
    both = batch
    if guided:  # each window twice, the second time under the negative text; side by side, on the same device
        both = jax.tree.map(
            lambda *pair: jnp.stack(pair, axis=1).reshape(2 * B, *pair[0].shape[1:]),
            batch,
            batch._replace(text=negative_BL),
        )
    sequence = sequence_of(model.config, both)
    asked_T = [i for i in range(T) if not known[i]]
    first = sequence.token.shape[1] - len(asked_T) * H * W  # slot to generate
    # Not scanned but one after another, layers find the cache where attention wants it: on TPUs, rows take a quarter of
    # the memory traffic (docs/pods.md). Single tokens gain nothing, and it takes longer to compile.
    layers = model.layers(model.config.scan_layers and not method.rows)
    total, begin = count * H * W, model.vocabulary.begin

    def logits_of(cache: KVCache, rank: jax.Array, input_BL: jax.Array) -> tuple[jax.Array, KVCache]:
        """Of the slots from the `rank`-th generated one on, with guidance."""
        input_BL = jnp.repeat(input_BL, 2, axis=0) if guided else input_BL
        logits_BLV, cache = step(model, sequence, cache, first + rank, input_BL, layers)
        if not guided:
            return logits_BLV, cache
        scale_B = guidance_BT[:, jnp.array(asked_T)][:, rank // (H * W)]
        return guide(logits_BLV[0::2], logits_BLV[1::2], scale_B), cache

    def keys_at(rank: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, first + rank)

    def at_once(width: int, start: int):
        """Draws `width` tokens, each from the logits of a slot that holds the token one step before."""

        def body(i: jax.Array, carry: tuple[KVCache, jax.Array]) -> tuple[KVCache, jax.Array]:
            cache, made_BL = carry
            rank = start + i * width
            before_L = rank - width + jnp.arange(width)
            before_BL = jnp.where(before_L < 0, begin, made_BL[:, jnp.maximum(before_L, 0)])
            logits_BLV, cache = logits_of(cache, rank, before_BL)
            drawn_BL = draw(keys_at(rank), logits_BLV, method)
            return cache, jax.lax.dynamic_update_slice_in_dim(made_BL, drawn_BL, rank, axis=1)

        return body

    def in_rounds(i: jax.Array, carry: tuple[KVCache, jax.Array]) -> tuple[KVCache, jax.Array]:
        """Draws a latent frame: each round keeps the surest tokens and asks again for the others."""
        cache, made_BL = carry
        rank = i * H * W

        def body(number: jax.Array, carry: tuple) -> tuple:
            cache, now_BL, stands_BL = carry
            logits_BLV, cache = logits_of(cache, rank, jnp.where(stands_BL, now_BL, begin))
            keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_at(rank), number)
            now_BL = jnp.where(stands_BL, now_BL, draw(keys_B, logits_BLV, method))
            done = (number + 1) / method.rounds
            return cache, now_BL, surest(keys_B, logits_BLV, now_BL, stands_BL, done, method)

        start = (cache, jnp.full((B, H * W), begin, jnp.int32), jnp.zeros((B, H * W), bool))
        cache, now_BL, _ = jax.lax.fori_loop(0, method.rounds, body, start)
        _, cache = logits_of(cache, rank, now_BL)  # what comes next sees them all
        return cache, jax.lax.dynamic_update_slice_in_dim(made_BL, now_BL, rank, axis=1)

    carry = prefill(model, sequence, first, layers), jnp.zeros((B, len(asked_T) * H * W), jnp.int32)
    if width == H * W:
        made_BL = jax.lax.fori_loop(0, count, in_rounds, carry)[1]
    else:
        lead = 0 if given_T or width == 1 else W  # as `layout` has it: rows wait for the first one
        if lead:
            carry = jax.lax.fori_loop(0, jnp.minimum(lead, total), at_once(1, 0), carry)
        made_BL = jax.lax.fori_loop(0, (total - lead) // width, at_once(width, lead), carry)[1]
    tokens = jnp.asarray(batch.tokens, jnp.int32)
    return tokens.at[:, jnp.array(asked_T)].set(made_BL.reshape(B, -1, H, W))
