"""Quantizers: latents to codes and back. To add one: a class with this interface and an entry in QUANTIZERS.

Interface: `width` latent channels, `vocabulary` codes; `quantize(z) -> Quantized`; `decode_ids(ids)` inverts the ids.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tokvid.config import TokenizerConfig
from tokvid.errors import UserError


class Quantized(NamedTuple):
    """latents (..., C) with gradients passed straight through; ids int32 (...); named scalar losses."""

    latents: jax.Array
    ids: jax.Array
    losses: dict[str, jax.Array]


class FSQ:
    """Finite scalar quantization (Mentzer et al. 2023, section 3.1): each channel is rounded to one of `levels` values.

    Ids are mixed radix with the first channel the least significant. There is no codebook to collapse, and no loss.
    """

    def __init__(self, levels: tuple[int, ...]):
        if not levels or min(levels) < 2:
            raise UserError(f"FSQ levels must all be at least 2, got {levels}; for example (8, 5, 5, 5)")
        if math.prod(levels) > 2**31 - 1:
            raise UserError(f"FSQ levels {levels} give {math.prod(levels)} codes; ids are int32, at most {2**31 - 1}")
        self.levels = np.asarray(levels, np.int32)
        self.basis = np.concatenate([[1], np.cumprod(self.levels[:-1])]).astype(np.int32)
        self.width, self.vocabulary = len(levels), math.prod(levels)

    def __eq__(self, other: object) -> bool:  # else loading the same weights again would compile everything again
        return isinstance(other, FSQ) and self.levels.tolist() == other.levels.tolist()

    def __hash__(self) -> int:
        return hash(tuple(self.levels.tolist()))

    def bound(self, z: jax.Array) -> jax.Array:
        """Squashes each channel so that rounding gives exactly its number of levels (even ones shifted by a half)."""
        half = (self.levels - 1) * (1 - 1e-3) / 2
        offset = np.where(self.levels % 2 == 0, 0.5, 0.0)
        # The paper's code has tan here; arctanh would put 0 exactly on 0, but ids are to agree with everyone else's.
        return jnp.tanh(z + np.tan(offset / half)) * half - offset

    def quantize(self, z: jax.Array) -> Quantized:
        """z (..., C) of any real values → latents in [-1, 1] on the grid, and their ids.

        NaN gives NaN latents, so that the loss shows it; the id then is some code and means nothing.
        """
        bounded = self.bound(z.astype(jnp.float32))
        rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
        digits = jnp.round(bounded).astype(jnp.int32) + self.levels // 2
        return Quantized(rounded / (self.levels // 2), jnp.sum(digits * self.basis, axis=-1), {})

    def decode_ids(self, ids: jax.Array) -> jax.Array:
        """ids (...) → latents (..., C), equal to those that `quantize` gave."""
        digits = ids[..., None] // self.basis % self.levels
        half = self.levels // 2
        return (digits - half) / half.astype(jnp.float32)


QUANTIZERS: dict[str, Callable[[TokenizerConfig], Any]] = {"fsq": lambda config: FSQ(config.levels)}
