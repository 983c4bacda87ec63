"""Matrix products of activations with parameters, and their data type.

`compute_dtype` resolves dtype="auto". JAX's own rule for the gradients of a product with a float32 result multiplies in
float32, which is slow on CPUs (docs/speed.md has the measurements) and on GPUs, so such products have a backward pass
of their own there.
"""

import functools
import itertools
import logging
import math
from pathlib import Path
from typing import overload

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tokvid.sharding import current_mesh, parts, platform

CPU_UNITS = ("amx_bf16", "avx512_bf16")  # flags of bfloat16 multipliers in /proc/cpuinfo
FEW = 256  # rows of activations (a decoding step's) below which joining kernels costs more than it saves
MOST_ROWS = 64  # parts that the rows are split into for a weight's gradient


def compute_dtype(dtype: str) -> str:
    """The type to compute in: `dtype`, or for "auto" bfloat16 where the target device multiplies it faster."""
    if dtype != "auto":
        return dtype
    chosen = "bfloat16" if platform() != "cpu" or _cpu_has_units() else "float32"
    _log_choice(chosen, platform())
    return chosen


@functools.cache
def _cpu_has_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return any(unit in flags.split() for unit in CPU_UNITS)


@functools.cache  # logs it once
def _log_choice(dtype: str, platform: str) -> None:
    units = "" if platform != "cpu" else f", this processor has {'' if _cpu_has_units() else 'no '}bfloat16 multipliers"
    logging.getLogger(__name__).info("computing in %s (dtype auto on %s%s)", dtype, platform, units)


@overload
def project(
    x: Float[Array, "..."], kernel: Float[Array, "..."], /, *, axes: int = 1, out: DTypeLike | None = None
) -> Float[Array, "..."]: ...


@overload
def project(
    x: Float[Array, "..."],
    first: Float[Array, "..."],
    second: Float[Array, "..."],
    /,
    *others: Float[Array, "..."],
    axes: int = 1,
    out: DTypeLike | None = None,
) -> list[Float[Array, "..."]]: ...


def project(
    x: Float[Array, "..."], *kernels: Float[Array, "..."], axes: int = 1, out: DTypeLike | None = None
) -> Float[Array, "..."] | list[Float[Array, "..."]]:
    """Contracts the last `axes` axes of x with the first `axes` of each kernel, in x's type.

    Returns an array, or a list of them where there are several kernels, of type `out`, by default x's.
    """
    out = out or x.dtype
    products: list[jax.Array]
    if platform() != "cpu" or parts("length") > 1:
        if platform() == "gpu" and x.dtype == jnp.bfloat16 and out == jnp.float32:
            products = [_widened_product(axes, x, kernel) for kernel in kernels]
        else:
            products = [
                jnp.tensordot(x, kernel.astype(x.dtype), axes, preferred_element_type=out) for kernel in kernels
            ]
        return products[0] if len(kernels) == 1 else products
    # Flattened, because XLA's CPU backend is 1.7 times as fast at the gradients of plain matrices. On a mesh this would
    # merge axes that are sharded differently.
    inner = math.prod(x.shape[x.ndim - axes :])
    x_ND, leading = x.reshape(-1, inner), x.shape[: x.ndim - axes]
    flat = [kernel.reshape(inner, -1) for kernel in kernels]
    if len(x_ND) < FEW:
        flat_NF = [_product(x_ND, kernel_DF) for kernel_DF in flat]
    else:
        ends = list(itertools.accumulate(kernel_DF.shape[1] for kernel_DF in flat[:-1]))
        flat_NF = jnp.split(_product(x_ND, jnp.concatenate(flat, axis=1)), ends, axis=1)
    shapes = [(*leading, *kernel.shape[axes:]) for kernel in kernels]
    products = [y_NF.astype(out).reshape(shape) for y_NF, shape in zip(flat_NF, shapes, strict=True)]
    return products[0] if len(kernels) == 1 else products


def _product(x_ND: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """x @ kernel in x's type, as float32."""
    if x_ND.dtype == jnp.bfloat16 and current_mesh() is None:
        return _narrow_product(x_ND, kernel_DF)
    return jnp.matmul(x_ND, kernel_DF.astype(x_ND.dtype), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _narrow_product(x_ND: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """bfloat16 (N, D) @ float32 (D, F), multiplied in bfloat16 → float32."""
    return jnp.matmul(x_ND, kernel_DF.astype(x_ND.dtype), preferred_element_type=jnp.float32)


def _forward(x_ND: jax.Array, kernel_DF: jax.Array):
    narrow_DF = kernel_DF.astype(x_ND.dtype)
    return jnp.matmul(x_ND, narrow_DF, preferred_element_type=jnp.float32), (x_ND, narrow_DF)


def _backward(kept, pull_NF: jax.Array) -> tuple[jax.Array, jax.Array]:
    # JAX's own rule multiplies the float32 cotangent with a 16-bit operand, six times as slowly.
    x_ND, narrow_DF = kept
    pull_NF = pull_NF.astype(x_ND.dtype)
    to_x_ND = jax.lax.dot_general(pull_NF, narrow_DF, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    # Contracted over two axes, because over one XLA transposes x first, or leaves the fast path.
    rows = math.gcd(len(x_ND), MOST_ROWS)
    x_RND, pull_RNF = x_ND.reshape(rows, -1, x_ND.shape[1]), pull_NF.reshape(rows, -1, pull_NF.shape[1])
    to_kernel_DF = jax.lax.dot_general(
        x_RND, pull_RNF, (((0, 1), (0, 1)), ((), ())), preferred_element_type=jnp.float32
    )
    return to_x_ND.astype(x_ND.dtype), to_kernel_DF


_narrow_product.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _widened_product(axes: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `_narrow_product`, with all axes left as they are, since they may be sharded."""
    return jnp.tensordot(x, kernel.astype(x.dtype), axes, preferred_element_type=jnp.float32)


def _widened_forward(axes: int, x: jax.Array, kernel: jax.Array):
    return _widened_product(axes, x, kernel), (x, kernel.astype(x.dtype))


def _widened_backward(axes: int, kept, pull: jax.Array) -> tuple[jax.Array, jax.Array]:
    # JAX's own rule converts the 16-bit operand to the cotangent's float32, half as fast at best (TF32). TPUs multiply
    # both alike.
    x, narrow = kept
    pull, before = pull.astype(x.dtype), x.ndim - axes
    outputs = tuple(range(before, pull.ndim)), tuple(range(axes, narrow.ndim))
    to_x = jnp.tensordot(pull, narrow, outputs, preferred_element_type=x.dtype)
    rows = tuple(range(before))
    return to_x, jnp.tensordot(x, pull, (rows, rows), preferred_element_type=jnp.float32)


_widened_product.defvjp(_widened_forward, _widened_backward)
