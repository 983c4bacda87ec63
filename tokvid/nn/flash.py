"""Flash attention for TPUs, forward and backward, whose mask comes from block numbers (Dao 2023; Pallas kernels).

Neither scores nor a mask are stored in HBM: the kernel computes a tile of both in VMEM from two short vectors, and
skips tiles without any visible pair. JAX's own splash attention supports segments and masks fixed at compile time; this
mask is block[j] <= block[i], with numbers that differ from sample to sample.

Tensors are (B, N, L, E) here, so that a tile is some slots of one head. Values for each slot (block numbers, sums) are
a column (B, N, L, 1) or a row (B, N, 1, L), to match the tile of scores.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from tokvid.nn.visibility import NEVER

TILE = 512  # slots; the scores of a tile are 1 MiB
HIDDEN, START = -1e30, -1e29  # a hidden slot's score; the initial maximum, above it, so that the slot's weight is 0


class Setting(NamedTuple):
    """Fixed when the kernels are compiled."""

    window: int | None
    interpret: bool


class Numbers(NamedTuple):
    """Block numbers, padded to whole tiles."""

    query: Int[Array, "b 1 l 1"]
    key: Int[Array, "b 1 s 1"]


class Residuals(NamedTuple):
    """The backward pass's inputs: the forward pass's inputs and output, and the logarithms of the queries' sums."""

    query_BNLE: Float[Array, "b n l e"]
    key_BKSE: Float[Array, "b k s e"]
    value_BKSE: Float[Array, "b k s e"]
    numbers: Numbers
    out_BNLE: Float[Array, "b n l e"]
    total_BNL: Float[Array, "b n l"]


def flash(
    query_BLNE: Float[Array, "b l n e"],
    key_BSKE: Float[Array, "b s k e"],
    value_BSKE: Float[Array, "b s k e"],
    query_block_BL: Int[Array, "blocks l"],
    key_block_BS: Int[Array, "blocks s"],
    window: int | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "b l n e"]:
    """As `attention.attend`, but zeros for padding. The block numbers' batch may be 1, shared by all samples.

    The outputs that the backward pass needs are named "attention", for rematerialisation.
    """
    # Padding queries see nothing, so that their tiles can be skipped; nothing sees padding keys.
    query_block_BL = _filled(jnp.where(query_block_BL >= NEVER, -1, query_block_BL), -1)
    numbers = Numbers(*(x[:, None, :, None] for x in (query_block_BL, _filled(key_block_BS, 2**31 - 1))))
    heads_first = (x.swapaxes(1, 2) for x in (query_BLNE, key_BSKE, value_BSKE))
    return _flash(Setting(window, interpret), *heads_first, numbers).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(setting: Setting, query_BNLE: jax.Array, key_BKSE: jax.Array, value_BKSE: jax.Array, numbers: Numbers):
    return _forward(setting, query_BNLE, key_BKSE, value_BKSE, numbers)[0]


def _flash_forward(
    setting: Setting, query_BNLE: jax.Array, key_BKSE: jax.Array, value_BKSE: jax.Array, numbers: Numbers
) -> tuple[jax.Array, Residuals]:
    out_BNLE, total_BNL1 = _forward(setting, query_BNLE, key_BKSE, value_BKSE, numbers)
    # Kept without its last axis of 1, which would be padded to 128.
    out_BNLE, total_BNL = checkpoint_name(out_BNLE, "attention"), checkpoint_name(total_BNL1[..., 0], "attention")
    return out_BNLE, Residuals(query_BNLE, key_BKSE, value_BKSE, numbers, out_BNLE, total_BNL)


def _flash_backward(setting: Setting, kept: Residuals, pull_BNLE: jax.Array) -> tuple:
    mean_BNL = jnp.sum(pull_BNLE.astype(jnp.float32) * kept.out_BNLE.astype(jnp.float32), axis=-1)
    return _to_query(setting, kept, pull_BNLE, mean_BNL), *_to_key_and_value(setting, kept, pull_BNLE, mean_BNL), None


_flash.defvjp(_flash_forward, _flash_backward)


def _forward(
    setting: Setting, query_BNLE: jax.Array, key_BKSE: jax.Array, value_BKSE: jax.Array, numbers: Numbers
) -> Sequence[jax.Array]:
    """The output, and the logarithm of each query's sum of exponentials (B, N, L, 1), float32."""
    tiles = Tiles(query_BNLE, key_BKSE, numbers)

    def kernel(last, first, *refs):
        query_block, key_block, query, key, value, out, total, peak, sum_, mixed = refs
        here = tiles.here()

        @pl.when(pl.program_id(3) == 0)
        def _():
            peak[...], sum_[...], mixed[...] = jnp.full_like(peak, START), jnp.zeros_like(sum_), jnp.zeros_like(mixed)

        @pl.when(tiles.seen(here, last, first))
        def _():
            values = tiles.keys(value, here)
            scores = _dot(query[0, 0], tiles.keys(key, here), 1, 1) * tiles.scale
            scores = jnp.where(_visible(query_block[0, 0], key_block[0, 0], setting.window), scores, HIDDEN)
            higher = jnp.maximum(peak[...], jnp.max(scores, axis=1, keepdims=True))
            weights, fade = jnp.exp(scores - higher), jnp.exp(peak[...] - higher)
            peak[...] = higher
            sum_[...] = sum_[...] * fade + jnp.sum(weights, axis=1, keepdims=True)
            mixed[...] = mixed[...] * fade + _dot(weights.astype(values.dtype), values, 1, 0)

        @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
        def _():
            whole = jnp.where(sum_[...] == 0, 1.0, sum_[...])  # padding sees nothing
            out[0, 0] = (mixed[...] / whole).astype(out.dtype)
            total[0, 0] = peak[...] + jnp.log(whole)

    column = jax.ShapeDtypeStruct((*query_BNLE.shape[:3], 1), jnp.float32)
    return tiles.run(
        kernel,
        [
            _query(numbers.query),
            _key(numbers.key.swapaxes(2, 3), row=True),
            _query(query_BNLE),
            _key(key_BKSE),
            _key(value_BKSE),
        ],
        [_query(query_BNLE), _query(column)],
        [(tiles.tile_L, 1), (tiles.tile_L, 1), (tiles.tile_L, tiles.width)],
        products=2,
        interpret=setting.interpret,
    )


def _to_query(setting: Setting, kept: Residuals, pull_BNLE: jax.Array, mean_BNL: jax.Array) -> jax.Array:
    """The queries' gradient."""
    query_BNLE, key_BKSE, value_BKSE, numbers, _, total_BNL = kept
    tiles = Tiles(query_BNLE, key_BKSE, numbers)

    def kernel(last, first, *refs):
        query_block, key_block, query, key, value, pull, total, mean, out, sum_ = refs
        here = tiles.here()

        @pl.when(pl.program_id(3) == 0)
        def _():
            sum_[...] = jnp.zeros_like(sum_)

        @pl.when(tiles.seen(here, last, first))
        def _():
            keys = tiles.keys(key, here)
            visible = _visible(query_block[0, 0], key_block[0, 0], setting.window)
            weights = jnp.exp(_dot(query[0, 0], keys, 1, 1) * tiles.scale - total[0, 0])
            change = weights * (_dot(pull[0, 0], tiles.keys(value, here), 1, 1) - mean[0, 0]) * tiles.scale
            sum_[...] += _dot(jnp.where(visible, change, 0).astype(keys.dtype), keys, 1, 0)

        @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
        def _():
            out[0, 0] = sum_[...].astype(out.dtype)

    columns = [_query(x[..., None]) for x in (total_BNL, mean_BNL)]
    tensors = [_query(query_BNLE), _key(key_BKSE), _key(value_BKSE), _query(pull_BNLE)]
    return tiles.run(
        kernel,
        [_query(numbers.query), _key(numbers.key.swapaxes(2, 3), row=True), *tensors, *columns],
        [_query(query_BNLE)],
        [(tiles.tile_L, tiles.width)],
        products=3,
        interpret=setting.interpret,
    )[0]


def _to_key_and_value(
    setting: Setting, kept: Residuals, pull_BNLE: jax.Array, mean_BNL: jax.Array
) -> Sequence[jax.Array]:
    """The keys' and the values' gradients. Scores are keys by queries here, so that no tile is transposed."""
    query_BNLE, key_BKSE, value_BKSE, numbers, _, total_BNL = kept
    tiles = Tiles(query_BNLE, key_BKSE, numbers, keys_outside=True)

    def kernel(last, first, *refs):
        query_block, key_block, query, key, value, pull, total, mean, key_out, out, key_sum, sum_ = refs
        here = tiles.here()

        @pl.when(pl.program_id(3) == 0)
        def _():
            key_sum[...], sum_[...] = jnp.zeros_like(key_sum), jnp.zeros_like(sum_)

        @pl.when(tiles.seen(here, last, first))
        def _():
            queries, pulls = tiles.queries(query, here), tiles.queries(pull, here)
            visible = _visible(query_block[0, 0], key_block[0, 0], setting.window)
            weights = jnp.where(visible, jnp.exp(_dot(key[0, 0], queries, 1, 1) * tiles.scale - total[0, 0]), 0)
            change = jnp.where(visible, weights * (_dot(value[0, 0], pulls, 1, 1) - mean[0, 0]) * tiles.scale, 0)
            sum_[...] += _dot(weights.astype(pulls.dtype), pulls, 1, 0)
            key_sum[...] += _dot(change.astype(queries.dtype), queries, 1, 0)

        @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
        def _():
            key_out[0, 0], out[0, 0] = key_sum[...].astype(key_out.dtype), sum_[...].astype(out.dtype)

    rows = [_query(x[:, :, None], row=True) for x in (total_BNL, mean_BNL)]
    blocks = [_query(numbers.query.swapaxes(2, 3), row=True), _key(numbers.key)]
    tensors = [_query(query_BNLE), _key(key_BKSE), _key(value_BKSE), _query(pull_BNLE)]
    return tiles.run(
        kernel,
        [*blocks, *tensors, *rows],
        [_key(key_BKSE), _key(value_BKSE)],
        [(tiles.tile_S, tiles.width)] * 2,
        products=4,
        interpret=setting.interpret,
    )


class Of(NamedTuple):
    """A kernel's array (B, heads, slots, width), or its shape. `keys`: its slots are the keys'; `row`: it is a row."""

    array: Any
    keys: bool
    row: bool = False


_query, _key = functools.partial(Of, keys=False), functools.partial(Of, keys=True)


class Tiles:
    """The grid of a kernel: batch, heads, tiles of queries and, one after another, tiles of keys.

    With `keys_outside` it is batch, key heads, tiles of keys, then the tiles of queries of all heads that share them.
    """

    def __init__(
        self,
        query_BNLE: Float[Array, "b n l e"],
        key_BKSE: Float[Array, "b k s e"],
        numbers: Numbers,
        keys_outside: bool = False,
    ):
        (self.B, self.N, self.L, self.width), (self.K, self.S) = query_BNLE.shape, key_BKSE.shape[1:3]
        self.tile_L, self.tile_S = _tile(self.L), _tile(self.S)
        self.count_L, self.count_S = -(-self.L // self.tile_L), -(-self.S // self.tile_S)
        self.scale, self.keys_outside = self.width**-0.5, keys_outside
        # A tile whose last query comes before its first key has no visible pair.
        self.last = jnp.max(numbers.query.reshape(-1, self.tile_L), axis=1)
        self.first = jnp.min(numbers.key.reshape(-1, self.tile_S), axis=1)
        self.alike = len(numbers.query) == 1

    def _place(self, b, head, outer, inner) -> tuple:
        """Sample, query head, key head, tile of queries and tile of keys of a step."""
        group = self.N // self.K
        if not self.keys_outside:
            return b, head, jax.lax.div(head, group), outer, inner
        return b, head * group + jax.lax.div(inner, self.count_L), head, jax.lax.rem(inner, self.count_L), outer

    def here(self) -> tuple:
        """This step's place; to be called outside of `pl.when`."""
        return self._place(*(pl.program_id(axis) for axis in range(4)))

    def seen(self, place: tuple, last, first) -> Bool[Array, ""]:
        """Whether any query of a tile can see any of its keys."""
        b, _, _, i, j = place
        b = 0 if self.alike else b
        return first[b * self.count_S + j] <= last[b * self.count_L + i]

    def queries(self, ref, place: tuple) -> Float[Array, "l e"]:
        """The slots of a tile; zeros beyond the array's end, where memory could hold NaN."""
        return _within(ref[0, 0], place[3] * self.tile_L, self.L)

    def keys(self, ref, place: tuple) -> Float[Array, "s e"]:
        """As `queries`."""
        return _within(ref[0, 0], place[4] * self.tile_S, self.S)

    def _spec(self, of: Of) -> pl.BlockSpec:
        batch, heads, _, width = of.array.shape
        tile = self.tile_S if of.keys else self.tile_L

        def index(*step_and_bounds):
            *step, last, first = step_and_bounds
            b, n, k, i, j = place = self._place(*step)
            at = j if of.keys else i
            if of.keys != self.keys_outside:  # changes at each step; not fetched for skipped tiles
                at = jnp.where(self.seen(place, last, first), at, 0)
            lead = b if batch > 1 else 0, (k if of.keys else n) if heads > 1 else 0
            return (*lead, 0, at) if of.row else (*lead, at, 0)

        return pl.BlockSpec((1, 1, 1, tile) if of.row else (1, 1, tile, width), index)

    def run(
        self,
        kernel: Callable[..., None],
        inputs: list[Of],
        outputs: list[Of],
        scratch: list[tuple[int, int]],
        *,
        products: int,
        interpret: bool,
    ) -> Sequence[Float[Array, "..."]]:
        """Runs a kernel, with `products` matrix products per tile and float32 sums of the shapes in `scratch`."""
        grid = (self.B, self.N, self.count_L, self.count_S)
        if self.keys_outside:
            grid = (self.B, self.K, self.count_S, self.N // self.K * self.count_L)
        pairs = self.B * self.N * self.L * self.S
        moved = sum(of.array.size * of.array.dtype.itemsize for of in inputs + outputs)
        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=grid,
                in_specs=[self._spec(of) for of in inputs],
                out_specs=[self._spec(of) for of in outputs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            out_shape=[jax.ShapeDtypeStruct(of.array.shape, of.array.dtype) for of in outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * pairs * self.width, transcendentals=pairs, bytes_accessed=moved
            ),
            interpret=interpret,
        )(self.last, self.first, *(of.array for of in inputs))


def _tile(slots: int) -> int:
    """The slots of a tile: a multiple of the 128 lanes."""
    return min(TILE, -(-slots // 128) * 128)


def _filled(block_BL: jax.Array, number: int) -> jax.Array:
    """Padded to whole tiles."""
    slots = block_BL.shape[1]
    return jnp.pad(block_BL, ((0, 0), (0, -slots % _tile(slots))), constant_values=number)


def _within(slots_LE: jax.Array, start: jax.Array, end: int) -> jax.Array:
    if end % len(slots_LE) == 0:
        return slots_LE
    return jnp.where(start + jax.lax.broadcasted_iota(jnp.int32, slots_LE.shape, 0) < end, slots_LE, 0)


def _visible(query_block: jax.Array, key_block: jax.Array, window: int | None) -> jax.Array:
    """`visibility.block_mask` of a column and a row, in either order."""
    visible = key_block <= query_block
    return visible if window is None else visible & (key_block > query_block - window)


def _dot(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    contract = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, contract, preferred_element_type=jnp.float32)
