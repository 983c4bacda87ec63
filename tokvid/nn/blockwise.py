"""Attention by tiles in plain XLA, forward and backward, for CPUs and long sequences (Rabe & Staats 2021; Dao 2023).

Only one tile of scores is in memory at a time, and the backward pass computes it again. For a tile of queries, tiles of
keys before the first and after the last that any of the queries sees are skipped: nearly half of them where block
numbers rise. All products have operands of the inputs' type and float32 results, which is fast on CPUs (see
`products.py`). There, a product that contracts the rows of both operands takes three times as long, so queries are
transposed once, and gradients to keys and values are accumulated transposed.

Tensors are (B, K, G, L, E): G query heads share each of K key heads.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tokvid.nn.visibility import NEVER, Blocks, block_mask
from tokvid.sharding import platform

TILES = {"cpu": 96}  # queries and keys in a tile that does not exceed a processor's cache
LARGE = 512  # the same on other devices, and where every query sees every key
HIDDEN, START = -1e30, -1e29  # a hidden pair's score; the initial maximum, above it, so that the pair's weight is 0


class Numbers(NamedTuple):
    """Block numbers padded to whole tiles, and the first and last + 1 tile of keys that each tile of queries sees."""

    query_BL: Int[Array, "b l"]
    key_BS: Int[Array, "b s"]
    first_I: Int[Array, " i"]
    end_I: Int[Array, " i"]


class Setting(NamedTuple):
    """Fixed when the program is compiled."""

    queries: int  # in a tile
    keys: int
    window: int | None
    masked: bool


def blockwise(
    query_BLNE: Float[Array, "b l n e"],
    key_BSKE: Float[Array, "b s k e"],
    value_BSKE: Float[Array, "b s k e"],
    blocks: Blocks | None,
) -> Float[Array, "b l n e"]:
    """Scaled dot-product attention as `attention.attend` describes it."""
    B, L, N, E = query_BLNE.shape
    S, K = key_BSKE.shape[1:3]
    most = LARGE if blocks is None else TILES.get(platform(), LARGE)
    queries, keys = _tile(L, most), _tile(S, most)
    masked = blocks is not None or S % keys > 0
    if blocks is None:
        blocks = Blocks(jnp.zeros((1, L), jnp.int32), jnp.zeros((1, S), jnp.int32))
    query_BL, key_BS = _padded(blocks.query_BL, queries, NEVER), _padded(blocks.key_BS, keys, NEVER + 1)
    first_I, end_I = _seen(query_BL, key_BS, queries, keys, blocks.window)
    setting = Setting(queries, keys, blocks.window, masked)
    query_BKGLE = _padded(query_BLNE, queries).reshape(B, -1, K, N // K, E).transpose(0, 2, 3, 1, 4)
    key_BKSE, value_BKSE = (_padded(x, keys).swapaxes(1, 2) for x in (key_BSKE, value_BSKE))
    out_BKGLE = _attend(setting, query_BKGLE, key_BKSE, value_BKSE, Numbers(query_BL, key_BS, first_I, end_I))
    return out_BKGLE.transpose(0, 3, 1, 2, 4).reshape(B, -1, N, E)[:, :L]


def _tile(length: int, most: int) -> int:
    """A multiple of 8 near `most`, such that a few tiles cover the length with little padding."""
    count = max(1, round(length / most))
    return -(-length // (8 * count)) * 8


def _padded(x_BL: jax.Array, tile: int, value: int = 0) -> jax.Array:
    """(B, L, ...), with L rounded up to whole tiles."""
    widths = [(0, 0), (0, -x_BL.shape[1] % tile), *[(0, 0)] * (x_BL.ndim - 2)]
    return jnp.pad(x_BL, widths, constant_values=value)


def _seen(
    query_BL: jax.Array, key_BS: jax.Array, queries: int, keys: int, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """The first tile of keys that any query of each tile sees, and the one after the last. Padding sees nothing."""
    query_BIL, key_BJS = (x.reshape(len(x), -1, tile) for x, tile in ((query_BL, queries), (key_BS, keys)))
    latest_BI, earliest_BJ = jnp.where(query_BIL < NEVER, query_BIL, -1).max(2), key_BJS.min(2)
    seen_BIJ = earliest_BJ[:, None] <= latest_BI[:, :, None]
    if window is not None:
        earliest_BI, latest_BJ = query_BIL.min(2), jnp.where(key_BJS < NEVER, key_BJS, -1).max(2)
        seen_BIJ &= latest_BJ[:, None] > earliest_BI[:, :, None] - window
    seen_IJ, tiles_J = seen_BIJ.any(0), jnp.arange(seen_BIJ.shape[2])
    end_I = jnp.where(seen_IJ, tiles_J + 1, 0).max(1)
    return jnp.minimum(jnp.where(seen_IJ, tiles_J, len(tiles_J)).min(1), end_I), end_I


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    setting: Setting, query_BKGLE: jax.Array, key_BKSE: jax.Array, value_BKSE: jax.Array, numbers: Numbers
) -> jax.Array:
    """Attention where all lengths are whole tiles."""
    return _forward(setting, query_BKGLE, key_BKSE, value_BKSE, numbers)[0]


def _forward(
    setting: Setting, query_BKGLE: jax.Array, key_BKSE: jax.Array, value_BKSE: jax.Array, numbers: Numbers
) -> tuple[jax.Array, tuple]:
    B, K, G, L, E = query_BKGLE.shape

    def tile_of_queries(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        query, query_block = _cut(query_BKGLE, i, setting.queries, 3), _cut(numbers.query_BL, i, setting.queries, 1)

        def add(j: jax.Array, so_far: tuple) -> tuple:
            most_BKGL, sum_BKGL, mixed_BKGLE = so_far
            scores_BKGLS = _scores(setting, query, key_BKSE, query_block, numbers.key_BS, j)
            most, before = jnp.maximum(most_BKGL, scores_BKGLS.max(-1)), most_BKGL
            weights_BKGLS, kept_BKGL = jnp.exp(scores_BKGLS - most[..., None]), jnp.exp(before - most)
            value = _cut(value_BKSE, j, setting.keys, 2)
            mixed = _product("bkgls,bkse->bkgle", weights_BKGLS.astype(value.dtype), value)
            return most, kept_BKGL * sum_BKGL + weights_BKGLS.sum(-1), kept_BKGL[..., None] * mixed_BKGLE + mixed

        none_BKGL = jnp.zeros((B, K, G, setting.queries), jnp.float32)
        none = (none_BKGL + START, none_BKGL, jnp.zeros((*none_BKGL.shape, E), jnp.float32))
        most, total, mixed = jax.lax.fori_loop(numbers.first_I[i], numbers.end_I[i], add, none)
        total = jnp.where(total == 0, 1, total)  # of padding
        return (mixed / total[..., None]).astype(query.dtype), most + jnp.log(total)

    out_IBKGLE, total_IBKGL = jax.lax.map(tile_of_queries, jnp.arange(L // setting.queries))
    out_BKGLE = jnp.moveaxis(out_IBKGLE, 0, 3).reshape(B, K, G, L, E)
    total_BKGL = jnp.moveaxis(total_IBKGL, 0, 3).reshape(B, K, G, L)
    return out_BKGLE, (query_BKGLE, key_BKSE, value_BKSE, numbers, out_BKGLE, total_BKGL)


def _backward(setting: Setting, kept: tuple, pull_BKGLE: jax.Array) -> tuple:
    query_BKGLE, key_BKSE, value_BKSE, numbers, out_BKGLE, total_BKGL = kept
    turned = query_BKGLE.swapaxes(3, 4), pull_BKGLE.swapaxes(3, 4)
    shared_BKGL = jnp.sum(pull_BKGLE.astype(jnp.float32) * out_BKGLE, axis=-1)

    def tile_of_queries(to_keys: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        query, pull = (_cut(x, i, setting.queries, 3) for x in (query_BKGLE, pull_BKGLE))
        total, shared = (_cut(x, i, setting.queries, 3)[..., None] for x in (total_BKGL, shared_BKGL))
        query_block = _cut(numbers.query_BL, i, setting.queries, 1)
        query_BKGEL, pull_BKGEL = (_cut(x, i, setting.queries, 4) for x in turned)

        def add(j: jax.Array, so_far: tuple) -> tuple:
            to_query_BKGLE, to_key_BKES, to_value_BKES = so_far
            key, value = _cut(key_BKSE, j, setting.keys, 2), _cut(value_BKSE, j, setting.keys, 2)
            scores_BKGLS = _scores(setting, query, key_BKSE, query_block, numbers.key_BS, j)
            weights_BKGLS = jnp.exp(scores_BKGLS - total)
            to_weights_BKGLS = _product("bkgle,bkse->bkgls", pull, value)
            to_scores_BKGLS = weights_BKGLS * (to_weights_BKGLS - shared) * query.shape[-1] ** -0.5
            to_scores_BKGLS = to_scores_BKGLS.astype(query.dtype)
            to_query_BKGLE += _product("bkgls,bkse->bkgle", to_scores_BKGLS, key)
            to_key_BKES = _add(to_key_BKES, query_BKGEL, to_scores_BKGLS, j)
            return to_query_BKGLE, to_key_BKES, _add(to_value_BKES, pull_BKGEL, weights_BKGLS.astype(pull.dtype), j)

        none = (jnp.zeros(query.shape, jnp.float32), *to_keys)
        to_query, *to_keys = jax.lax.fori_loop(numbers.first_I[i], numbers.end_I[i], add, none)
        return tuple(to_keys), to_query.astype(query.dtype)

    none_BKES = jnp.zeros(key_BKSE.swapaxes(2, 3).shape, jnp.float32)
    count = query_BKGLE.shape[3] // setting.queries
    to_keys, to_queries = jax.lax.scan(tile_of_queries, (none_BKES, none_BKES), jnp.arange(count))
    to_query_BKGLE = jnp.moveaxis(to_queries, 0, 3).reshape(query_BKGLE.shape)
    to_key_BKSE, to_value_BKSE = (x.swapaxes(2, 3).astype(key_BKSE.dtype) for x in to_keys)
    return to_query_BKGLE, to_key_BKSE, to_value_BKSE, None


_attend.defvjp(_forward, _backward)


def _scores(
    setting: Setting, query: jax.Array, key_BKSE: jax.Array, query_block: jax.Array, key_BS: jax.Array, j: jax.Array
) -> jax.Array:
    """float32 (B, K, G, queries, keys) of one tile."""
    scores_BKGLS = _product("bkgle,bkse->bkgls", query, _cut(key_BKSE, j, setting.keys, 2)) * query.shape[-1] ** -0.5
    if not setting.masked:
        return scores_BKGLS
    mask_BLS = block_mask(query_block, _cut(key_BS, j, setting.keys, 1), setting.window)
    return jnp.where(mask_BLS[:, None, None], scores_BKGLS, HIDDEN)


def _cut(x: jax.Array, index: jax.Array, tile: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * tile, tile, axis)


def _add(sum_BKES: jax.Array, x_BKGEL: jax.Array, y_BKGLS: jax.Array, j: jax.Array) -> jax.Array:
    """Adds x @ y, summed over query heads, to tile j of keys, in place."""
    tile = y_BKGLS.shape[4]
    part_BKES = _product("bkgel,bkgls->bkges", x_BKGEL, y_BKGLS).sum(2)
    return jax.lax.dynamic_update_slice_in_dim(sum_BKES, _cut(sum_BKES, j, tile, 3) + part_BKES, j * tile, 3)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
