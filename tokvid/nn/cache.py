"""The key/value cache of the trunk: a pytree of fixed size, written slot by slot and donated from step to step."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tokvid.nn.visibility import NEVER
from tokvid.sharding import constrain

Layers: TypeAlias = Float[Array, "layers b k _ _"] | tuple[Float[Array, "b k _ _"], ...]


class KVCache(NamedTuple):
    """Keys (B, K, E, S) and values (B, K, S, E) of every layer; block (B, S), NEVER in slots not yet written.

    The axes are in attention's order, so that no step transposes the cache. Layers are a tuple of arrays, so that no
    step copies one out of an array; where layers are scanned, they are one array with the layers in front.
    """

    key: Layers
    value: Layers
    block: Int[Array, "b s"]


def empty_cache(
    layers: int, batch: int, slots: int, kv_heads: int, head_width: int, dtype: str, stacked: bool
) -> KVCache:
    """A cache with no slot written, hence none visible."""

    def zeros(*shape: int) -> Layers:  # an array for each layer: none may be donated twice
        axes = ("batch", "kv_heads", None, None)
        if stacked:
            return constrain(jnp.zeros((layers, *shape), dtype), None, *axes)
        return tuple(constrain(jnp.zeros(shape, dtype), *axes) for _ in range(layers))

    block_BS = constrain(jnp.full((batch, slots), NEVER, jnp.int32), "batch", None)
    return KVCache(zeros(batch, kv_heads, head_width, slots), zeros(batch, kv_heads, slots, head_width), block_BS)


def write_blocks(old_BS: Int[Array, "b s"], new_BL: Int[Array, "b l"], slot: int | Int[Array, ""]) -> Int[Array, "b s"]:
    """Replaces the slots from `slot` on. The caller keeps them within the cache: past its end XLA would clamp."""
    return jax.lax.dynamic_update_slice_in_dim(old_BS, new_BL, slot, axis=1)


def write_layer(
    past: tuple[Layers, Layers],
    key_BLKE: Float[Array, "b l k e"],
    value_BLKE: Float[Array, "b l k e"],
    layer: int | Int[Array, ""],
    slot: int | Int[Array, ""],
) -> tuple[tuple[Layers, Layers], tuple[Float[Array, "b s k e"], Float[Array, "b s k e"]]]:
    """Replaces one layer's slots, in place where the cache is donated or carried.

    Takes and returns all layers' keys and values; also returns that layer's.
    """
    keys, key_BKES = _replaced(past[0], jnp.moveaxis(key_BLKE, 1, 3), layer, (0, 0, 0, slot))
    values, value_BKSE = _replaced(past[1], jnp.moveaxis(value_BLKE, 1, 2), layer, (0, 0, slot, 0))
    return (keys, values), (jnp.moveaxis(key_BKES, 3, 1), jnp.moveaxis(value_BKSE, 2, 1))


def _replaced(old: Layers, new: jax.Array, layer: int | jax.Array, start: tuple) -> tuple[Layers, jax.Array]:
    if isinstance(old, tuple):
        assert isinstance(layer, int)
        layer_slots = jax.lax.dynamic_update_slice(old[layer], new.astype(old[layer].dtype), start)
        return (*old[:layer], layer_slots, *old[layer + 1 :]), layer_slots
    old = jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), (layer, *start))
    return old, old[layer]
