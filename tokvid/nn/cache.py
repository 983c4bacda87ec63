"""The key/value cache of the trunk: a pytree of fixed size, written slot by slot and donated from step to step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tokvid.nn.attention import NEVER


class KVCache(NamedTuple):
    """key, value (layers, B, S, K, E); block (B, S), NEVER in slots not yet written, which nothing therefore sees."""

    key: jax.Array
    value: jax.Array
    block: jax.Array


def empty_cache(layers: int, batch: int, slots: int, kv_heads: int, head_width: int, dtype: str) -> KVCache:
    """A cache in which nothing is written."""
    shape = (layers, batch, slots, kv_heads, head_width)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.full((batch, slots), NEVER, jnp.int32))


def write(old_BSKE: jax.Array, new_BLKE: jax.Array, slot: int | jax.Array) -> jax.Array:
    """The slots from `slot` on replaced. The caller sees to it that they are within: past the end XLA would clamp."""
    return jax.lax.dynamic_update_slice_in_dim(old_BSKE, new_BLKE.astype(old_BSKE.dtype), slot, axis=1)
