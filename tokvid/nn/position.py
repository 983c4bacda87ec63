"""Positions: rotary embedding over any number of axes, and Fourier features of absolute coordinates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num


class Rotation(NamedTuple):
    """Cosine and sine of every slot's rotary angles, (B, L, 1, E/2) each, shared by all layers and heads."""

    cos: Float[Array, "b l 1 half"]
    sin: Float[Array, "b l 1 half"]


def rotation(position_BLA: Num[Array, "b l a"], width: int, base: float = 100.0) -> Rotation:
    """Rotary angles (RoFormer, section 3.2) for heads of `width` channels, divided among A axes.

    Positions are real numbers in any unit (seconds, rows, columns); only differences matter. The first
    axis takes the remainder. Frequencies run from 1 down to 1/base radians per unit.
    """
    half, axes = width // 2, position_BLA.shape[-1]
    counts = [half // axes + (half % axes if axis == 0 else 0) for axis in range(axes)]
    angles = [
        position_BLA[..., axis, None].astype(jnp.float32) * base ** -(jnp.arange(count, dtype=jnp.float32) / count)
        for axis, count in enumerate(counts)
    ]
    angle_BL1E = jnp.concatenate(angles, axis=-1)[:, :, None, :]
    # The barrier keeps XLA from recomputing sines and cosines in every layer.
    return Rotation(*jax.lax.optimization_barrier((jnp.cos(angle_BL1E), jnp.sin(angle_BL1E))))


def rotate(x_BLNE: Float[Array, "b l n e"], by: Rotation) -> Float[Array, "b l n e"]:
    """Turns pairs of channels (one from each half) by their slot's angles, in float32."""
    first, second = jnp.split(x_BLNE.astype(jnp.float32), 2, axis=-1)
    turned = [first * by.cos - second * by.sin, second * by.cos + first * by.sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BLNE.dtype)


def fourier_features(position_BLA: Num[Array, "b l a"], count: int, shortest: float = 2.0) -> Float[Array, "b l f"]:
    """Sines and cosines of absolute coordinates: `count` octaves per axis, from wavelength `shortest` units upwards.

    Returns (B, L, 2·count·A). Rotary positions encode distances between tokens; these encode places in the frame.
    """
    frequency_F = 2 * jnp.pi / (shortest * 2.0 ** jnp.arange(count, dtype=jnp.float32))
    angle_BLAF = position_BLA[..., None].astype(jnp.float32) * frequency_F
    features = jnp.concatenate([jnp.sin(angle_BLAF), jnp.cos(angle_BLAF)], axis=-1)
    return features.reshape(*position_BLA.shape[:2], -1)
