"""From layouts to tokens: prefill what is known, then step after step over one static KV cache, in one jitted loop."""

import functools
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tokvid.nn.cache import KVCache
from tokvid.sampling.methods import Sampling, draw, guide
from tokvid.transformer.layout import Sequence
from tokvid.transformer.model import Transformer, sequence_of
from tokvid.types import TokenBatch


def prefill(model: Transformer, sequence: Sequence, slots: int) -> KVCache:
    """A cache that holds the first `slots` slots of a sequence and has room for them all."""
    cache = model.empty_cache(sequence.token.shape[0], sequence.token.shape[1])
    return cast(KVCache, model.run(sequence.slots(0, slots), cache, 0)[1])


def step(
    model: Transformer, sequence: Sequence, cache: KVCache, slot: jax.Array, input_BL: Int[Array, "b l"]
) -> tuple[Float[Array, "b l v"], KVCache]:
    """Logits of the slots from `slot` on, given their input tokens (those generated one step before), and the cache."""
    here = sequence.slots(slot, input_BL.shape[1])._replace(token=input_BL)
    hidden, longer = model.run(here, cache, slot)
    return model.logits(hidden), cast(KVCache, longer)


@functools.partial(jax.jit, static_argnames=("graph", "known", "method", "guided", "width"))
def generate(
    graph: nnx.GraphDef,
    params: nnx.State,
    batch: TokenBatch,
    keys_B: jax.Array,
    guidance_B: Float[Array, " b"],
    frames: Int[Array, ""],
    *,
    known: int,
    method: Sampling,
    guided: bool,
    width: int = 1,
) -> Int[Array, "b t h w"]:
    """Fills in the tokens of a window behind its `known` leading latent frames, up to `frames` in all; the rest are 0.

    `batch.known` must say `known` everywhere. With `guided`, each step also runs without text and guidance is applied.
    `width` tokens are drawn at once (1, or a divisor of a latent frame that the model was trained for).
    Sampling is by absolute slot: fold_in(keys_B, slot), so a longer window begins with the same tokens.
    """
    model: Transformer = nnx.merge(graph, params)
    B, T, H, W = batch.tokens.shape
    if guided:  # the same windows twice, the second time without text
        textless = batch._replace(text=batch.text * 0 - 1)
        both = jax.tree.map(lambda *pair: jnp.concatenate(pair), batch, textless)
    else:
        both = batch
    sequence = sequence_of(model.config, both, width)
    first = sequence.token.shape[1] - T * H * W  # of the video's slots
    given = first + known * H * W
    cache = prefill(model, sequence, given)
    rows = both.tokens.shape[0]

    def body(i: jax.Array, carry: tuple) -> tuple:
        cache, input_BL, tokens_BL = carry
        slot = given + i * width
        logits_BLV, cache = step(model, sequence, cache, slot, input_BL)
        if guided:
            logits_BLV = guide(logits_BLV[:B], logits_BLV[B:], guidance_B)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, slot)
        drawn_BL = draw(keys, logits_BLV, method)
        tokens_BL = jax.lax.dynamic_update_slice_in_dim(tokens_BL, drawn_BL, slot - first, axis=1)
        return cache, jnp.concatenate([drawn_BL, drawn_BL]) if guided else drawn_BL, tokens_BL

    start = (
        cache,
        jnp.full((rows, width), model.vocabulary.begin, jnp.int32),
        batch.tokens.reshape(B, T * H * W).astype(jnp.int32),
    )
    steps = (frames - known) * (H * W) // width
    tokens_BL = jax.lax.fori_loop(0, steps, body, start)[2]
    return tokens_BL.reshape(B, T, H, W)
