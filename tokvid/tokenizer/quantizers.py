"""Quantizers: latents to codes and back. To add one: a class with this interface and an entry in QUANTIZERS.

Interface: `width` latent channels, `vocabulary` codes; `quantize(z) -> Quantized`; `decode_ids(ids)`, its inverse;
`learn(z, ids, key)`, which updates the `Buffer`s after a training step's `quantize` and returns metrics. `Grouped`
quantizes a latent to several sub-codes with any of them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from tokvid.config import TokenizerConfig
from tokvid.errors import UserError, did_you_mean
from tokvid.types import Codes

CHUNK = 4096  # codes compared at once, so that no array grows with batch × codebook
GROUP = 8  # bits of LFQ whose joint distribution is averaged over the batch


class Buffer(nnx.Variable):
    """A variable that training updates without a gradient, saved with the weights."""


class Quantized(NamedTuple):
    """Quantized latents (..., C).

    `latents`: with straight-through gradients; `ids`: int32 (...), or of sub-codes (..., Q); `losses`: named, weighted
    scalars; `inputs`: the quantized vectors, one for each id.
    """

    latents: Float[Array, "... c"]
    ids: Int[Array, "*n"]
    losses: dict[str, Float[Array, ""]]
    inputs: Float[Array, "*n _"]


class FSQ:
    """Finite scalar quantization (Mentzer et al. 2023, section 3.1): each channel is rounded to one of `levels` values.

    Ids are mixed-radix numbers, the first channel least significant. No codebook can collapse, and there is no loss.
    """

    def __init__(self, levels: tuple[int, ...], hysteresis: float = 0.0, stillness: float = 0.0):
        """`hysteresis` and the weight `stillness`: see `TokenizerConfig`; axis 1 of what is quantized is then time."""
        if not levels or min(levels) < 2:
            raise UserError(f"FSQ levels must all be at least 2, got {levels}; for example (8, 5, 5, 5)")
        if math.prod(levels) > 2**31 - 1:
            raise UserError(f"FSQ levels {levels} give {math.prod(levels)} codes; ids are int32, at most {2**31 - 1}")
        self.levels = np.asarray(levels, np.int32)
        self.basis = np.concatenate([[1], np.cumprod(self.levels[:-1])]).astype(np.int32)
        self.width, self.vocabulary = len(levels), math.prod(levels)
        self.zero = int(np.sum(self.levels // 2 * self.basis))  # the code whose latents are all 0
        self.settings = (tuple(levels), hysteresis, stillness)

    def __eq__(self, other: object) -> bool:  # loading the same weights again must not compile anew
        return isinstance(other, FSQ) and self.settings == other.settings

    def __hash__(self) -> int:
        return hash(self.settings)

    def bound(self, z: Float[Array, "*n {self.width}"]) -> Float[Array, "*n {self.width}"]:
        """Bounds each channel so that rounding gives exactly its number of levels (even ones are shifted by a half)."""
        half = (self.levels - 1) * (1 - 1e-3) / 2
        offset = np.where(self.levels % 2 == 0, 0.5, 0.0)
        # As in the paper's code: arctanh in place of tan would map 0 to 0, but ids should agree with other programs'.
        return jnp.tanh(z + np.tan(offset / half)) * half - offset

    def quantize(
        self, z: Float[Array, "*n {self.width}"], before: Float[Array, "*m {self.width}"] | None = None
    ) -> Quantized:
        """z (..., C) of any real values → latents in [-1, 1] on the grid, and their ids.

        `before`: the last frame's latents, for hysteresis; None at the beginning. NaN gives NaN latents, so that the
        loss shows it, and meaningless ids.
        """
        bounded = self.bound(z.astype(jnp.float32))
        grid = self._rounded(bounded, before)
        rounded = bounded + jax.lax.stop_gradient(grid - bounded)
        digits = grid.astype(jnp.int32) + self.levels // 2
        losses = {}
        if (weight := self.settings[2]) and z.shape[1] > 1:
            losses["stillness"] = weight * jnp.mean(jnp.abs(jnp.diff(bounded, axis=1)))
        return Quantized(rounded / (self.levels // 2), jnp.sum(digits * self.basis, axis=-1), losses, z)

    def _rounded(self, bounded: jax.Array, before: jax.Array | None) -> jax.Array:
        """The nearest levels; with hysteresis, a channel leaves the last frame's level only by a clear margin.

        So noise at the boundary of two levels doesn't change the codes of what stands still.
        """
        if not (hysteresis := self.settings[1]):
            return jnp.round(bounded)

        def frame(last: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
            level = jnp.where(jnp.abs(value - last) <= 0.5 + hysteresis, last, jnp.round(value))
            return level, level

        first = jnp.full_like(bounded[:, 0], jnp.inf) if before is None else jnp.round(before * (self.levels // 2))
        return jnp.moveaxis(jax.lax.scan(frame, first, jnp.moveaxis(bounded, 1, 0))[1], 0, 1)

    def decode_ids(self, ids: Int[Array, "*n"]) -> Float[Array, "*n {self.width}"]:
        """ids (...) → latents (..., C), equal to `quantize`'s."""
        digits = ids[..., None] // self.basis % self.levels
        half = self.levels // 2
        return (digits - half) / half.astype(jnp.float32)

    def learn(
        self, z: Float[Array, "*n {self.width}"], ids: Int[Array, "*n"], key: PRNGKeyArray
    ) -> dict[str, Num[Array, ""]]:
        """Nothing: there is no codebook."""
        return {}


class VQ(nnx.Module):
    """Vector quantization (van den Oord et al. 2017) as ViT-VQGAN and Phenaki use it: few channels, cosine distance.

    Codes are moving averages of the unit vectors that chose them. They start as vectors of the first batch. A code that
    is hardly ever chosen is replaced by a vector of the current batch (SoundStream, section III-C), at every step until
    a vector chooses it, because early in training latents move away from codes faster than their shares decay.
    """

    decay = 0.99  # of the moving averages
    dead = 0.1  # codes below this share (1: even) are replaced; a replacement starts with it

    def __init__(self, codes: int, width: int, commitment: float, *, rngs: nnx.Rngs):
        if codes < 2 or width < 1:
            raise UserError(f"VQ takes 2 codes or more and 1 channel or more, got codes {codes} and code_width {width}")
        self.width, self.vocabulary, self.commitment = width, codes, commitment
        self.codes = Buffer(_unit(jax.random.normal(rngs.params(), (codes, width))))
        self.share = Buffer(jnp.zeros(codes))  # of choices; 1 is an even share; all 0 before the first step

    def quantize(self, z: Float[Array, "*n {self.width}"]) -> Quantized:
        """z (..., C) of any length but 0 → the codes nearest in angle, of length 1, and their ids."""
        z = _unit(z.astype(jnp.float32))
        ids = nearest(z, self.codes[...])
        code = self.codes[...][ids]
        loss = self.commitment * jnp.mean(jnp.sum(jnp.square(z - code), axis=-1))
        return Quantized(z + jax.lax.stop_gradient(code - z), ids, {"commitment": loss}, z)

    def decode_ids(self, ids: Int[Array, "*n"]) -> Float[Array, "*n {self.width}"]:
        """ids (...) → latents (..., C)."""
        return self.codes[...][ids]

    def learn(
        self, z: Float[Array, "*n {self.width}"], ids: Int[Array, "*n"], key: PRNGKeyArray
    ) -> dict[str, Num[Array, ""]]:
        """One step of the moving averages, from `Quantized.inputs` and `ids`."""
        z_NC, ids_N = jax.lax.stop_gradient(z).reshape(-1, self.width), ids.ravel()
        codes_KC, share_K = self.codes[...], self.share[...]
        even = len(ids_N) / self.vocabulary
        chosen_K = jnp.zeros(self.vocabulary).at[ids_N].add(1) / even
        sums_KC = jnp.zeros_like(codes_KC).at[ids_N].add(z_NC) / even
        moved_KC = self.decay * share_K[:, None] * codes_KC + (1 - self.decay) * sums_KC
        share_K = self.decay * share_K + (1 - self.decay) * chosen_K
        dead_K = share_K < self.dead
        pick, shake = jax.random.split(key)
        drawn_KC = z_NC[jax.random.randint(pick, (self.vocabulary,), 0, len(z_NC))]
        # Noise tells copies apart: a batch may have fewer vectors than there are codes.
        drawn_KC += 0.01 * jax.random.normal(shake, drawn_KC.shape)
        started = jnp.any(self.share[...] > 0)
        dead_K |= ~started
        self.codes[...] = _unit(jnp.where(dead_K[:, None], drawn_KC, moved_KC))
        self.share[...] = jnp.where(dead_K, self.dead, share_K)
        return {"dead_codes": jnp.where(started, jnp.sum(dead_K), 0)}


class LFQ:
    """Lookup-free quantization (MAGVIT-v2, Yu et al. 2023, section 3.1): a code is the signs of log2(codes) channels.

    Entropy losses make each latent's code certain and all codes equally frequent. A latent's bits are independent, so
    the first loss is exact without a codebook; the second is exact within groups of GROUP bits.
    """

    def __init__(self, codes: int, commitment: float, entropy: float, temperature: float = 0.01):
        self.width, self.vocabulary = codes.bit_length() - 1, codes
        if codes < 2 or 2**self.width != codes or self.width > 30:
            raise UserError(f"LFQ takes a power of two from 2 to 2^30 as codes, got {codes}; for example {2**13}")
        self.settings = (commitment, entropy, temperature)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LFQ) and (self.vocabulary, self.settings) == (other.vocabulary, other.settings)

    def __hash__(self) -> int:
        return hash((self.vocabulary, self.settings))

    def quantize(self, z: Float[Array, "*n {self.width}"]) -> Quantized:
        """z (..., C) → signs, -1 or 1, and their ids; the first channel is the least significant bit."""
        z = z.astype(jnp.float32)  # bfloat16 would lose the entropies' small differences
        commitment, entropy, temperature = self.settings
        bits = z > 0
        code = jnp.where(bits, 1.0, -1.0)
        ids = jnp.sum(jnp.where(bits, 2 ** np.arange(self.width), 0), axis=-1).astype(jnp.int32)
        # Softmax over codes of 2 z·c / temperature, bit by bit.
        uncertainty, variety = _entropies(4 * z.reshape(-1, self.width) / temperature)
        losses = {
            "commitment": commitment * jnp.mean(jnp.square(z - code)),
            "entropy": entropy * (uncertainty - variety),
        }
        return Quantized(z + jax.lax.stop_gradient(code - z), ids, losses, z)

    def decode_ids(self, ids: Int[Array, "*n"]) -> Float[Array, "*n {self.width}"]:
        """ids (...) → latents (..., C)."""
        return jnp.where(ids[..., None] >> np.arange(self.width) & 1, 1.0, -1.0)

    def learn(
        self, z: Float[Array, "*n {self.width}"], ids: Int[Array, "*n"], key: PRNGKeyArray
    ) -> dict[str, Num[Array, ""]]:
        """Nothing: there is no codebook."""
        return {}


class Grouped(nnx.Module):
    """`count` sub-codes: each group of channels is quantized on its own, by the same quantizer (product codes)."""

    def __init__(self, quantizer: Any, count: int):
        if count < 1:
            raise UserError(f"groups should be 1 or more, got {count}")
        self.quantizer, self.count = quantizer, count
        self.width, self.vocabulary = count * quantizer.width, quantizer.vocabulary

    def quantize(
        self, z: Float[Array, "*n {self.width}"], before: Float[Array, "*m {self.width}"] | None = None
    ) -> Quantized:
        """z → latents, and ids (..., count). `before`: the last frame's latents, only for FSQ's hysteresis."""
        last = () if before is None else (before.reshape(*before.shape[:-1], self.count, -1),)
        quantized = self.quantizer.quantize(z.reshape(*z.shape[:-1], self.count, -1), *last)
        return quantized._replace(latents=quantized.latents.reshape(z.shape))

    def decode_ids(self, ids: Int[Array, "*n {self.count}"]) -> Float[Array, "*n {self.width}"]:
        """ids (..., count) → latents."""
        return self.quantizer.decode_ids(ids).reshape(*ids.shape[:-1], self.width)

    def learn(
        self, z: Float[Array, "*n {self.quantizer.width}"], ids: Int[Array, "*n"], key: PRNGKeyArray
    ) -> dict[str, Num[Array, ""]]:
        """The quantizer's `learn`, from all groups."""
        return self.quantizer.learn(z, ids, key)


QUANTIZERS: dict[str, Callable[[TokenizerConfig, nnx.Rngs], Any]] = {
    "fsq": lambda config, rngs: FSQ(config.levels, config.hysteresis, config.stillness_weight),
    "vq": lambda config, rngs: VQ(config.codes, config.code_width, config.commitment_weight, rngs=rngs),
    "lfq": lambda config, rngs: LFQ(config.codes, config.commitment_weight, config.entropy_weight),
}


def make_quantizer(config: TokenizerConfig, rngs: nnx.Rngs) -> Grouped:
    """A tokenizer's quantizer. UserError for an unknown name."""
    if config.quantizer not in QUANTIZERS:
        raise UserError(did_you_mean(config.quantizer, QUANTIZERS, "quantizer"))
    if config.quantizer != "fsq" and (config.hysteresis or config.stillness_weight):
        raise UserError(
            f"tokenizer.hysteresis and stillness_weight are in levels, which {config.quantizer} has none of; set both "
            "to 0, or the quantizer to fsq"
        )
    most, codes = max(config.later_codes, default=-1), config.groups * config.fold**2
    if not 0 <= most <= codes:
        raise UserError(f"tokenizer.later_codes {list(config.later_codes)}: should be 0 (all) to {codes} sub-codes")
    if most and config.quantizer != "fsq":
        raise UserError(
            f"tokenizer.later_codes needs a code that says nothing, which {config.quantizer} hasn't; set it to 0, or "
            "the quantizer to fsq"
        )
    return Grouped(QUANTIZERS[config.quantizer](config, rngs), config.groups)


def codes_of(config: TokenizerConfig) -> Codes:
    """The vocabulary and the number of sub-codes of a tokenizer's tokens."""
    return Codes(_sizes(config)[1], config.groups * config.fold**2)


def silent_code(config: TokenizerConfig) -> int:
    """The code that later latent frames have in place of sub-codes that they don't keep; 0 where they keep all."""
    return FSQ(config.levels).zero if any(config.later_codes) else 0


def kept_ids(
    config: TokenizerConfig, ids_BTHWQ: Int[np.ndarray, "b tl hl wl q"], first: bool = True
) -> Int[np.ndarray, " n"]:
    """The codes that say something, in one row: without the silent ones. `first`: whether videos begin with these."""
    later, ahead = config.later_codes[0] or codes_of(config).per_token, int(first)
    return np.concatenate([ids_BTHWQ[:, :ahead].ravel(), ids_BTHWQ[:, ahead:, ..., :later].ravel()])


def channels(config: TokenizerConfig) -> int:
    """The channels of a tokenizer's latents."""
    return config.groups * _sizes(config)[0]


@functools.cache
def _sizes(config: TokenizerConfig) -> tuple[int, int]:
    """Channels and codes of a sub-code, read from the quantizer without allocating its codebook."""
    quantizers = []
    jax.eval_shape(lambda: quantizers.append(make_quantizer(config, nnx.Rngs(0)).quantizer))
    return quantizers[0].width, quantizers[0].vocabulary


def nearest(z: Float[Array, "*n c"], codes_KC: Float[Array, "k c"]) -> Int[Array, "*n"]:
    """The ids of the unit codes nearest in angle to unit vectors z, the first where several are equally near."""
    K, C = codes_KC.shape
    z_NC, size = jax.lax.stop_gradient(z).reshape(-1, C), min(CHUNK, K)
    chunks = -(-K // size)
    codes_XKC = jnp.pad(codes_KC, ((0, chunks * size - K), (0, 0))).reshape(chunks, size, C)

    def compare(best, chunk):
        closeness_N, ids_N = best
        codes_KC, first = chunk
        # Accelerators would round the factors to 8 bits (TPUs) or 11 (GPUs), too few to tell which code is nearest.
        closeness_NK = jnp.matmul(z_NC, codes_KC.T, precision="highest")
        closeness_NK = jnp.where(first + jnp.arange(size) < K, closeness_NK, -jnp.inf)
        local_N = jnp.argmax(closeness_NK, axis=-1)
        largest_N = jnp.take_along_axis(closeness_NK, local_N[:, None], axis=-1)[:, 0]
        closer_N = largest_N > closeness_N
        return (jnp.where(closer_N, largest_N, closeness_N), jnp.where(closer_N, first + local_N, ids_N)), None

    start = (jnp.full(len(z_NC), -jnp.inf), jnp.zeros(len(z_NC), jnp.int32))
    (_, ids_N), _ = jax.lax.scan(compare, start, (codes_XKC, size * jnp.arange(chunks)))
    return ids_N.reshape(z.shape[:-1])


def _unit(z: jax.Array) -> jax.Array:
    """Scaled to length 1; 0 stays 0, with a gradient of 0."""
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(z), axis=-1, keepdims=True), 1e-12))


def _entropies(logits_NC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean entropy, and the entropy of the mean over N, of codes whose bits have these logits; in nats."""
    one_NC, zero_NC = jax.nn.log_sigmoid(logits_NC), jax.nn.log_sigmoid(-logits_NC)
    mean = -jnp.mean(jnp.sum(jnp.exp(one_NC) * one_NC + jnp.exp(zero_NC) * zero_NC, axis=-1))
    of_mean = jnp.zeros(())
    for first in range(0, logits_NC.shape[1], GROUP):
        one_NG, zero_NG = one_NC[:, first : first + GROUP], zero_NC[:, first : first + GROUP]
        width = one_NG.shape[1]
        bits_GV = np.arange(2**width) >> np.arange(width)[:, None] & 1
        share_V = jnp.mean(jnp.exp(one_NG @ bits_GV + zero_NG @ (1 - bits_GV)), axis=0)
        of_mean -= jnp.sum(share_V * jnp.log(share_V + 1e-20))
    return mean, of_mean
