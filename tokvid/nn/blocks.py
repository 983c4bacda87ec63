"""The block of both models: pre-norm attention with QK-norm and rotary positions, then SwiGLU.

Parameters name their logical axes (`logical=("embed", "heads", ...)`); `sharding.py` maps those to the mesh.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tokvid.errors import UserError, did_you_mean
from tokvid.nn.attention import attend
from tokvid.nn.position import Rotation, rotate
from tokvid.nn.products import compute_dtype, project
from tokvid.nn.visibility import Blocks
from tokvid.sharding import constrain

# The values of a layer that are kept for backpropagation; the others are recomputed.
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# The matrices of attention and MLP: their numbers of input and output axes, the last ones of each array, in this order.
MATRICES = {
    **dict.fromkeys(("query", "key", "value"), (1, 2)),
    "out": (2, 1),
    **dict.fromkeys(("gate", "up", "down"), (1, 1)),
}


def rematerialised(function: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """`function` under the named policy of REMAT."""
    if policy not in REMAT:
        raise UserError(did_you_mean(policy, REMAT, "remat policy"))
    return function if policy == "none" else jax.checkpoint(function, policy=REMAT[policy])


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, logical: tuple[str | None, ...], gain: float = 1.0
) -> nnx.Param:
    """A float32 parameter, truncated normal with standard deviation gain/√fan_in."""
    init = jax.nn.initializers.truncated_normal(gain * fan_in**-0.5)
    return nnx.Param(init(rngs.params(), shape, jnp.float32), logical=logical)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, in float32, with a learned scale."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), logical=(None,))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
        return (wide * self.scale[...]).astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel + bias."""

    def __init__(
        self, inputs: int, outputs: int, logical: tuple[str | None, str | None], *, rngs: nnx.Rngs, gain: float = 1.0
    ):
        self.kernel = weight(rngs, (inputs, outputs), inputs, logical, gain)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32), logical=(logical[1],))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n f"]:
        return project(x, self.kernel[...]) + self.bias[...].astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """The sizes of one block; `depth` is the number of blocks in the stack (residual outputs start at 1/√(2·depth)).

    Attention and MLP compute in `dtype`; their outputs are rounded once, to the residual stream's type.
    """

    width: int
    heads: int
    kv_heads: int
    mlp: int
    depth: int
    dtype: str = "float32"
    attention: str = "auto"  # or one of nn.attention.IMPLEMENTATIONS
    axes: tuple[str, str | None] = ("batch", "length")  # the logical ones of B and L

    def __post_init__(self):
        D, N, K = self.width, self.heads, self.kv_heads
        if min(D, N, K) < 1 or N % K or D % (2 * N):
            raise UserError(
                f"width {D}, heads {N}, kv_heads {K}: the heads must be a multiple of the kv_heads, "
                "and the width an even multiple of the heads (rotary positions turn pairs of channels)"
            )


class Attention(nnx.Module):
    """Multi-head attention with QK-norm. `project` returns keys and values, so that a caller may cache them."""

    def __init__(self, shape: BlockShape, *, rngs: nnx.Rngs):
        D, N, K, E = shape.width, shape.heads, shape.kv_heads, shape.width // shape.heads
        self.query = weight(rngs, (D, N, E), D, ("embed", "heads", None))
        self.key = weight(rngs, (D, K, E), D, ("embed", "kv_heads", None))
        self.value = weight(rngs, (D, K, E), D, ("embed", "kv_heads", None))
        self.out = weight(rngs, (N, E, D), D, ("heads", None, "embed"), gain=(2 * shape.depth) ** -0.5)
        self.query_norm, self.key_norm = RMSNorm(E), RMSNorm(E)
        self.implementation, self.axes = shape.attention, shape.axes

    def project(
        self, x_BLD: Float[Array, "b l d"], turn: Rotation
    ) -> tuple[Float[Array, "b l n e"], Float[Array, "b l k e"], Float[Array, "b l k e"]]:
        """Queries (B, L, N, E), keys and values (B, L, K, E), normed and rotated."""
        query, key, value = project(x_BLD, self.query[...], self.key[...], self.value[...])
        query = self.query_norm(constrain(query, *self.axes, "heads", None))
        key = self.key_norm(constrain(key, *self.axes, "kv_heads", None))
        return rotate(query, turn), rotate(key, turn), constrain(value, *self.axes, "kv_heads", None)

    def mix(
        self,
        query_BLNE: Float[Array, "b l n e"],
        key_BSKE: Float[Array, "b s k e"],
        value_BSKE: Float[Array, "b s k e"],
        blocks: Blocks | None,
    ) -> Float[Array, "b l d"]:
        """Attention's output, projected back."""
        mixed_BLNE = attend(query_BLNE, key_BSKE, value_BSKE, blocks, self.implementation, self.axes)
        return project(mixed_BLNE, self.out[...], axes=2, out=jnp.float32)


class SwiGLU(nnx.Module):
    """Gated MLP (Shazeer 2020): down(silu(gate(x)) · up(x))."""

    def __init__(self, shape: BlockShape, *, rngs: nnx.Rngs):
        D, F = shape.width, shape.mlp
        self.gate = weight(rngs, (D, F), D, ("embed", "mlp"))
        self.up = weight(rngs, (D, F), D, ("embed", "mlp"))
        self.down = weight(rngs, (F, D), F, ("mlp", "embed"), gain=(2 * shape.depth) ** -0.5)
        self.axes = shape.axes

    def __call__(self, x_BLD: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        halves = project(x_BLD, self.gate[...], self.up[...])
        gate_BLF, up_BLF = (constrain(x, *self.axes, "mlp") for x in halves)
        return project(jax.nn.silu(gate_BLF) * up_BLF, self.down[...], out=jnp.float32)


Keys: TypeAlias = Float[Array, "b s k e"]  # or values
Remember: TypeAlias = Callable[[Keys, Keys], tuple[Keys, Keys]]


class Block(nnx.Module):
    """One pre-norm layer. `remember` maps new keys and values to all that are attended to (by default themselves)."""

    def __init__(self, shape: BlockShape, *, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = RMSNorm(shape.width), RMSNorm(shape.width)
        self.attention = Attention(shape, rngs=rngs)
        self.mlp, self.dtype, self.axes = SwiGLU(shape, rngs=rngs), shape.dtype, shape.axes

    def __call__(
        self,
        x_BLD: Float[Array, "b l d"],
        turn: Rotation,
        blocks: Blocks | None,
        remember: Remember = lambda key, value: (key, value),
    ) -> Float[Array, "b l d"]:
        x_BLD = constrain(x_BLD, *self.axes, None)
        dtype = compute_dtype(self.dtype)
        query, key, value = self.attention.project(self.attention_norm(x_BLD).astype(dtype), turn)
        keys, values = remember(key, value)
        x_BLD += constrain(self.attention.mix(query, keys, values, blocks).astype(x_BLD.dtype), *self.axes, None)
        return x_BLD + constrain(self.mlp(self.mlp_norm(x_BLD).astype(dtype)).astype(x_BLD.dtype), *self.axes, None)
