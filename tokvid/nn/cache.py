"""The key/value cache of the trunk: a pytree of fixed size, written slot by slot and donated from step to step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tokvid.nn.attention import NEVER
from tokvid.sharding import constrain


class KVCache(NamedTuple):
    """key, value (layers, B, S, K, E); block (B, S), NEVER in slots not yet written, which nothing therefore sees."""

    key: jax.Array
    value: jax.Array
    block: jax.Array


def empty_cache(layers: int, batch: int, slots: int, kv_heads: int, head_width: int, dtype: str) -> KVCache:
    """A cache in which nothing is written."""

    def past() -> jax.Array:  # keys and values apart: one array cannot be donated twice
        shape = (layers, batch, slots, kv_heads, head_width)
        return constrain(jnp.zeros(shape, dtype), None, "batch", None, "kv_heads", None)

    return KVCache(past(), past(), constrain(jnp.full((batch, slots), NEVER, jnp.int32), "batch", None))


def write(old_BS: jax.Array, new_BL: jax.Array, slot: int | jax.Array) -> jax.Array:
    """The slots from `slot` on replaced. The caller sees to it that they are within: past the end XLA would clamp."""
    return jax.lax.dynamic_update_slice_in_dim(old_BS, new_BL, slot, axis=1)


def write_layer(old: jax.Array, new_BLKE: jax.Array, layer: int | jax.Array, slot: int | jax.Array) -> jax.Array:
    """One layer's slots replaced in all layers' keys or values, in place where the cache is donated or carried."""
    return jax.lax.dynamic_update_slice(old, new_BLKE[None].astype(old.dtype), (layer, 0, slot, 0, 0))
