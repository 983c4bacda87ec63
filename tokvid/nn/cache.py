"""The key/value cache of the trunk: a pytree of fixed size, written slot by slot and donated from step to step."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from tokvid.nn.visibility import NEVER
from tokvid.sharding import constrain

Layers: TypeAlias = jax.Array | tuple[jax.Array, ...]


class KVCache(NamedTuple):
    """Keys (B, K, E, S) and values (B, K, S, E) of every layer, block (B, S), NEVER in slots that aren't written yet.

    Slots stand where attention wants them, so that no step transposes all that is cached. The layers are tuples of
    arrays, so that no step copies one out; where layers are scanned, arrays with the layers in front.
    """

    key: Layers
    value: Layers
    block: jax.Array


def empty_cache(
    layers: int, batch: int, slots: int, kv_heads: int, head_width: int, dtype: str, stacked: bool
) -> KVCache:
    """A cache in which nothing is written, and so nothing is seen."""

    def zeros(*shape: int) -> Layers:  # one array each: none can be donated twice
        axes = ("batch", "kv_heads", None, None)
        if stacked:
            return constrain(jnp.zeros((layers, *shape), dtype), None, *axes)
        return tuple(constrain(jnp.zeros(shape, dtype), *axes) for _ in range(layers))

    block_BS = constrain(jnp.full((batch, slots), NEVER, jnp.int32), "batch", None)
    return KVCache(zeros(batch, kv_heads, head_width, slots), zeros(batch, kv_heads, slots, head_width), block_BS)


def write_blocks(old_BS: jax.Array, new_BL: jax.Array, slot: int | jax.Array) -> jax.Array:
    """The slots from `slot` on replaced. The caller sees to it that they are within: past the end XLA would clamp."""
    return jax.lax.dynamic_update_slice_in_dim(old_BS, new_BL, slot, axis=1)


def write_layer(
    past: tuple[Layers, Layers],
    key_BLKE: jax.Array,
    value_BLKE: jax.Array,
    layer: int | jax.Array,
    slot: int | jax.Array,
) -> tuple[tuple[Layers, Layers], tuple[jax.Array, jax.Array]]:
    """One layer's slots replaced, in place where the cache is donated or carried.

    Takes and returns all layers' keys and values; returns also that layer's, (B, S, K, E) each.
    """
    keys, key_BKES = _replaced(past[0], jnp.moveaxis(key_BLKE, 1, 3), layer, (0, 0, 0, slot))
    values, value_BKSE = _replaced(past[1], jnp.moveaxis(value_BLKE, 1, 2), layer, (0, 0, slot, 0))
    return (keys, values), (jnp.moveaxis(key_BKES, 3, 1), jnp.moveaxis(value_BKSE, 2, 1))


def _replaced(old: Layers, new: jax.Array, layer: int | jax.Array, start: tuple) -> tuple[Layers, jax.Array]:
    if isinstance(old, tuple):
        assert isinstance(layer, int)
        here = jax.lax.dynamic_update_slice(old[layer], new.astype(old[layer].dtype), start)
        return (*old[:layer], here, *old[layer + 1 :]), here
    old = jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), (layer, *start))
    return old, old[layer]
