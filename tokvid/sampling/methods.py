"""From logits to tokens: guidance, temperature, top-k, top-p.

To add a sampling method: a field of `config.Sampling` and a line in `keep_likely` or `draw`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tokvid.config import Sampling

CHOICE = 1 << 30  # what the key of a choice is derived by: no number of a sub-code


def guide(
    conditional: Float[Array, "b l v"],
    unconditional: Float[Array, "b l v"],
    scale_BL: Float[Array, "b l"],
    limit_BL: Float[Array, "b l"] | None = None,
) -> Float[Array, "b l v"]:
    """Classifier-free guidance (Ho and Salimans 2022): 1 disables it, a higher scale follows the text more closely.

    What tells most of the text is raised most, however unlikely it is at this place: a frame's first tokens would show
    its object at once, in the corner. With `limit_BL`, guidance raises the log-odds of no code, against the code that
    is likeliest without guidance, by more than that.
    """
    raised = (scale_BL[..., None] - 1) * (conditional - unconditional)
    if limit_BL is not None:
        likeliest = jnp.argmax(conditional, axis=-1, keepdims=True)
        raised = jnp.minimum(raised, jnp.take_along_axis(raised, likeliest, axis=-1) + limit_BL[..., None])
    return conditional + raised


def keep_likely(logits_BLV: Float[Array, "b l v"], sampling: Sampling) -> Float[Array, "b l v"]:
    """Top-k and nucleus sampling: the logits of all other codes become -inf."""
    count = logits_BLV.shape[-1]
    if 0 < sampling.top_k < count:
        least_BL1 = jax.lax.top_k(logits_BLV, sampling.top_k)[0][..., -1:]
        logits_BLV = jnp.where(logits_BLV < least_BL1, -jnp.inf, logits_BLV)
    if sampling.top_p < 1:
        sorted_BLV = jnp.flip(jnp.sort(logits_BLV, axis=-1), axis=-1)
        share_BLV = jax.nn.softmax(sorted_BLV, axis=-1)
        before_BLV = jnp.cumsum(share_BLV, axis=-1) - share_BLV  # of all likelier codes; the first code is always kept
        least_BL1 = jnp.min(jnp.where(before_BLV < sampling.top_p, sorted_BLV, jnp.inf), axis=-1, keepdims=True)
        logits_BLV = jnp.where(logits_BLV < least_BL1, -jnp.inf, logits_BLV)
    return logits_BLV


def draw(
    keys_BL: Key[Array, "b l"],
    logits_BLV: Float[Array, "b l v"],
    sampling: Sampling,
    temperature_BL: Float[Array, "b l"] | None = None,
) -> Int[Array, "b l"]:
    """One code for each slot, which has its own key: codes depend neither on the rest of the batch nor on what is drawn
    in the same step.

    `temperature_BL` takes the place of the sampling's, unless that is 0.
    """
    if sampling.temperature == 0:
        return _first_largest(logits_BLV)
    if temperature_BL is None:
        temperature_BL = jnp.full(logits_BLV.shape[:2], sampling.temperature)
    temperature_BL1 = temperature_BL[..., None]
    logits_BLV = keep_likely(logits_BLV / jnp.where(temperature_BL1 > 0, temperature_BL1, 1), sampling)
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits_BLV.shape[2:], logits_BLV.dtype)))
    return _first_largest(jnp.where(temperature_BL1 > 0, logits_BLV + noise(keys_BL), logits_BLV))


def _first_largest(x_BLV: Float[Array, "b l v"]) -> Int[Array, "b l"]:
    """argmax as two reductions, which XLA's CPU backend vectorises; its own, of pairs, takes ten times as long."""
    number_V = jnp.arange(x_BLV.shape[-1], dtype=jnp.int32)
    largest_BL1 = jnp.max(x_BLV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(x_BLV == largest_BL1, number_V, x_BLV.shape[-1] - 1), axis=-1)


def surest(
    keys_B: Key[Array, " b"],
    likelihood_BL: Float[Array, "b l"],
    stands_BL: Bool[Array, "b l"],
    done: Float[Array, ""],
    sampling: Sampling,
) -> Bool[Array, "b l"]:
    """The tokens that are fixed after a round, earlier ones included; `done` is the share of rounds done.

    The likeliest tokens (in nats, with Gumbel noise) are fixed first; their number follows a cosine (MaskGIT, section
    3.2).
    """
    count = likelihood_BL.shape[1]
    noise_BL = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, CHOICE), (count,)))(keys_B)
    confidence_BL = likelihood_BL + sampling.choice_temperature * (1 - done) * noise_BL
    rank_BL = jnp.argsort(jnp.argsort(-jnp.where(stands_BL, jnp.inf, confidence_BL), axis=1), axis=1)
    left = jnp.floor(count * jnp.cos(jnp.pi / 2 * done) + 1e-4)  # against rounding errors just below whole numbers
    return rank_BL < count - left
