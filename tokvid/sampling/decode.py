"""From layouts to tokens: prefill what is known, then step after step over one static KV cache, in one jitted loop."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tokvid.config import Sampling
from tokvid.nn.cache import KVCache
from tokvid.sampling.methods import draw, guide, surest
from tokvid.transformer.layout import Sequence
from tokvid.transformer.model import Transformer, sequence_of
from tokvid.types import TokenBatch, tokens_at_once


def prefill(model: Transformer, sequence: Sequence, slots: int, layers: Any) -> KVCache:
    """A cache that holds the first `slots` slots of a sequence and has room for them all."""
    cache = model.empty_cache(sequence.token.shape[0], sequence.token.shape[1], layers)
    return cast(KVCache, model.run(sequence.slots(0, slots), cache, 0, layers)[1])


def step(
    model: Transformer, sequence: Sequence, cache: KVCache, slot: jax.Array, input_BLQ: Int[Array, "b l q"], layers: Any
) -> tuple[Float[Array, "b l d"], KVCache]:
    """What the head sees of the slots from `slot` on, given their input rows, and the cache with them written."""
    here = sequence.slots(slot, input_BLQ.shape[1])._replace(token=input_BLQ)
    hidden, longer = model.run(here, cache, slot, layers)
    return model.norm(hidden), cast(KVCache, longer)


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
) -> Int[Array, "b t h w q"]:
    """Fills in the first `count` latent frames of a window that are not `known`; the rest become 0.

    What `batch` says of known, step and drawn is replaced by `known` and by `method`. With `guided`, each step also
    runs under the text `negative_BL` (-1: without text) and guidance is applied, of each latent frame its own.
    Sampling is by absolute slot: fold_in(keys_B, slot), so a longer window begins with the same tokens.
    """
    model: Transformer = nnx.merge(graph, params)
    B, T, H, W, Q = batch.tokens.shape
    width, given_T = tokens_at_once(method.rows, (T, H, W)), [i for i in range(T) if known[i]]
    batch = batch._replace(
        known=jnp.broadcast_to(jnp.array(known), (B, T)),
        step=jnp.full(B, width),
        drawn=jnp.zeros((B, T, H, W), bool),
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
    total = count * H * W
    begin_Q = model.vocabulary.alone(model.vocabulary.begin)

    def ask(cache: KVCache, rank: jax.Array, input_BLQ: jax.Array) -> tuple[jax.Array, KVCache]:
        """The slots from the `rank`-th generated one on, each under both texts where there is guidance."""
        input_BLQ = jnp.repeat(input_BLQ, 2, axis=0) if guided else input_BLQ
        return step(model, sequence, cache, first + rank, input_BLQ, layers)

    def answer(hidden_BLD: jax.Array, rank: jax.Array, keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens of the slots from the `rank`-th on, (B, L, Q), and how likely each is, (B, L)."""
        likelihoods = []

        def choose(number: int, logits_BLV: jax.Array) -> jax.Array:
            if guided:
                scale_B = guidance_BT[:, jnp.array(asked_T)][:, rank // (H * W)]
                logits_BLV = guide(logits_BLV[0::2], logits_BLV[1::2], scale_B)
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number) if number else keys_B
            ids_BL = draw(keys, logits_BLV, method)
            every_BLV = jax.nn.log_softmax(logits_BLV)
            likelihoods.append(jnp.take_along_axis(every_BLV, ids_BL[..., None], axis=-1)[..., 0])
            return jnp.repeat(ids_BL, 2, axis=0) if guided else ids_BL

        ids_BLQ = model.head.draw(hidden_BLD, choose)
        return ids_BLQ[0::2] if guided else ids_BLQ, sum(likelihoods, jnp.zeros(()))

    def keys_at(rank: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, first + rank)

    def at_once(width: int, start: int):
        """Draws `width` tokens, each from the logits of a slot that holds the token one step before."""

        def body(i: jax.Array, carry: tuple[KVCache, jax.Array]) -> tuple[KVCache, jax.Array]:
            cache, made_BLQ = carry
            rank = start + i * width
            before_L = rank - width + jnp.arange(width)
            rows_BLQ = model.vocabulary.of_video(made_BLQ[:, jnp.maximum(before_L, 0)])
            hidden_BLD, cache = ask(cache, rank, jnp.where(before_L[:, None] < 0, begin_Q, rows_BLQ))
            drawn_BLQ, _ = answer(hidden_BLD, rank, keys_at(rank))
            return cache, jax.lax.dynamic_update_slice_in_dim(made_BLQ, drawn_BLQ, rank, axis=1)

        return body

    def in_rounds(i: jax.Array, carry: tuple[KVCache, jax.Array]) -> tuple[KVCache, jax.Array]:
        """Draws a latent frame: each round keeps the surest tokens and asks again for the others."""
        cache, made_BLQ = carry
        rank = i * H * W

        def body(number: jax.Array, carry: tuple) -> tuple:
            cache, now_BLQ, stands_BL = carry
            rows_BLQ = jnp.where(stands_BL[..., None], model.vocabulary.of_video(now_BLQ), begin_Q)
            hidden_BLD, cache = ask(cache, rank, rows_BLQ)
            keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_at(rank), number)
            drawn_BLQ, likelihood_BL = answer(hidden_BLD, rank, keys_B)
            now_BLQ = jnp.where(stands_BL[..., None], now_BLQ, drawn_BLQ)
            done = (number + 1) / method.rounds
            return cache, now_BLQ, surest(keys_B, likelihood_BL, stands_BL, done, method)

        start = (cache, jnp.zeros((B, H * W, Q), jnp.int32), jnp.zeros((B, H * W), bool))
        cache, now_BLQ, _ = jax.lax.fori_loop(0, method.rounds, body, start)
        _, cache = ask(cache, rank, model.vocabulary.of_video(now_BLQ))  # what comes next sees them all
        return cache, jax.lax.dynamic_update_slice_in_dim(made_BLQ, now_BLQ, rank, axis=1)

    carry = prefill(model, sequence, first, layers), jnp.zeros((B, len(asked_T) * H * W, Q), jnp.int32)
    if width == H * W:
        made_BLQ = jax.lax.fori_loop(0, count, in_rounds, carry)[1]
    else:
        lead = 0 if given_T or width == 1 else W  # as `layout` has it: rows wait for the first one
        if lead:
            carry = jax.lax.fori_loop(0, jnp.minimum(lead, total), at_once(1, 0), carry)
        made_BLQ = jax.lax.fori_loop(0, (total - lead) // width, at_once(width, lead), carry)[1]
    tokens = jnp.asarray(batch.tokens, jnp.int32)
    return tokens.at[:, jnp.array(asked_T)].set(made_BLQ.reshape(B, -1, H, W, Q))
