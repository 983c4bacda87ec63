"""From logits to tokens: guidance, temperature, top-k, top-p. To add a method: a field here and a line in `draw`."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokvid.errors import UserError

GUIDANCE = 3.0  # how closely the text is followed unless said otherwise
LOWEST_TEMPERATURE = 0.001  # still lower ones are the likeliest code too, but logits would overflow


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 takes the likeliest; top_k 0 and top_p 1 keep all codes.

    The defaults, and GUIDANCE, measured best on Moving Shapes; temperature 1 with top_p 1 is what the model says. Mind
    that a small top_p also cuts off what is rare everywhere and must happen somewhere, like where an object begins.

    `rows` of a latent frame are drawn at once, 0 is token by token. All rows are drawn in `rounds` (MaskGIT): in each,
    the surest tokens stand, by a choice that is as random as `choice_temperature` at first and not at all at last.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    rows: int = 0
    rounds: int = 8
    choice_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or LOWEST_TEMPERATURE <= self.temperature <= 100):
            least = f"0 (always the likeliest) or {LOWEST_TEMPERATURE}"
            raise UserError(f"temperature should be {least} to 100, got {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top_k should be 0 (all codes) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p should be above 0 and at most 1, got {self.top_p}")
        if self.rows < 0:
            raise UserError(f"rows should be 0 (token by token) or more, got {self.rows}")
        if not 1 <= self.rounds <= 1000:
            raise UserError(f"rounds should be 1 to 1000, got {self.rounds}")
        if not 0 <= self.choice_temperature <= 100:
            raise UserError(f"choice_temperature should be 0 to 100, got {self.choice_temperature}")


def guide(
    conditional: Float[Array, "b l v"], unconditional: Float[Array, "b l v"], scale_B: Float[Array, " b"]
) -> Float[Array, "b l v"]:
    """Classifier-free guidance (Ho and Salimans 2022): 1 is exactly the conditional, more follows the text more."""
    return conditional + (scale_B[:, None, None] - 1) * (conditional - unconditional)


def keep_likely(logits_BLV: Float[Array, "b l v"], method: Sampling) -> Float[Array, "b l v"]:
    """Logits outside the top k codes, and outside the fewest codes whose probabilities reach top_p, become -inf."""
    count = logits_BLV.shape[-1]
    if 0 < method.top_k < count:
        least_BL1 = jax.lax.top_k(logits_BLV, method.top_k)[0][..., -1:]
        logits_BLV = jnp.where(logits_BLV < least_BL1, -jnp.inf, logits_BLV)
    if method.top_p < 1:
        sorted_BLV = jnp.flip(jnp.sort(logits_BLV, axis=-1), axis=-1)
        share_BLV = jax.nn.softmax(sorted_BLV, axis=-1)
        before_BLV = jnp.cumsum(share_BLV, axis=-1) - share_BLV  # of all likelier codes: the first is always kept
        least_BL1 = jnp.min(jnp.where(before_BLV < method.top_p, sorted_BLV, jnp.inf), axis=-1, keepdims=True)
        logits_BLV = jnp.where(logits_BLV < least_BL1, -jnp.inf, logits_BLV)
    return logits_BLV


def draw(keys_B: jax.Array, logits_BLV: Float[Array, "b l v"], method: Sampling) -> Int[Array, "b l"]:
    """One code for each slot. Every sample has its own key, so it comes out the same whatever else is in the batch."""
    if method.temperature == 0:
        return jnp.argmax(logits_BLV, axis=-1).astype(jnp.int32)
    logits_BLV = keep_likely(logits_BLV / method.temperature, method)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BLV).astype(jnp.int32)


def surest(
    keys_B: jax.Array,
    likelihood_BL: Float[Array, "b l"],
    stands_BL: Bool[Array, "b l"],
    done: jax.Array,
    method: Sampling,
) -> Bool[Array, "b l"]:
    """Which of the tokens drawn stand after a round, those that did among them; `done` is the share of rounds done.

    The likelier a token (in nats), the sooner it stands, up to Gumbel noise; how many do follows a cosine (MaskGIT,
    section 3.2).
    """
    count = likelihood_BL.shape[1]
    noise_BL = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, 1), (count,)))(keys_B)
    sureness_BL = likelihood_BL + method.choice_temperature * (1 - done) * noise_BL
    place_BL = jnp.argsort(jnp.argsort(-jnp.where(stands_BL, jnp.inf, sureness_BL), axis=1), axis=1)
    left = jnp.floor(count * jnp.cos(jnp.pi / 2 * done) + 1e-4)  # of whole numbers, rounding is not to make one less
    return place_BL < count - left


def check_seed(seed: int) -> None:
    """Seeds are 32 bits: JAX would silently take a larger one for another."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed should be 0 to {2**32 - 1}, got {seed}")


def check_guidance(guidance: float) -> None:
    """Guidance below 0 turns away from the text; above 100 nothing is left but one code."""
    if not 0 <= guidance <= 100:
        raise UserError(f"guidance should be 0 to 100 (1 is none), got {guidance}")
