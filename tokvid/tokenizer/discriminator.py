"""The adversary: judges of frames and of space-time, and the game that the tokenizer plays against them.

Both learn in one step. The tokenizer gets the gradient of the judges' verdict with respect to its pixels, which moves
no parameter of a judge; the judges learn from those pixels as from data.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tokvid.config import AdversaryConfig
from tokvid.errors import UserError, did_you_mean
from tokvid.nn.blocks import RMSNorm, weight
from tokvid.tokenizer.quantizers import Buffer

# (real, fake) → the judge's loss; (fake) → the tokenizer's loss.
GAMES = {
    "hinge": (lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake), lambda fake: -fake),
    "non-saturating": (
        lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
        lambda fake: jax.nn.softplus(-fake),
    ),
}
MEMORY = 0.99  # of LeCam's moving averages


class Judge(nnx.Module):
    """A patch discriminator (Isola et al. 2017): convolutions that halve the picture, then a verdict for each place.

    It sees `frames` consecutive frames at once: 1 for a frame discriminator, 3 for one of space-time. With `words`, a
    text vocabulary, the verdict also depends on the match with the caption (Miyato & Koyama 2018).
    """

    def __init__(self, width: int, layers: int, frames: int, words: int = 0, *, rngs: nnx.Rngs):
        widths = [3] + [width * 2 ** min(i, 3) for i in range(layers)]
        self.frames, pairs = frames, list(itertools.pairwise(widths))
        self.halve = nnx.List(nnx.Conv(frames * a, b, (4, 4), (2, 2), rngs=rngs) for a, b in pairs)
        self.norms = nnx.List(RMSNorm(width) for width in widths[2:])
        self.verdict = nnx.Conv(frames * widths[-1], 1, (3, 3), rngs=rngs)
        self.words = weight(rngs, (words, widths[-1]), widths[-1], (None, None)) if words else None
        # LeCam's moving averages of the mean verdict on real and on generated videos.
        self.average = Buffer(jnp.zeros(2))

    def __call__(
        self, video_BTHWC: Float[Array, "b t h w 3"], text_BL: Int[Array, "b l"]
    ) -> Float[Array, "b tl hl wl"]:
        """Verdicts; higher is more real. Text is padded with -1; without text, only the video is judged."""
        x = video_BTHWC
        for i, convolve in enumerate(self.halve):
            x = self._over_time(convolve, x, 2 if self.frames > 1 and i else 1)
            x = jax.nn.leaky_relu(self.norms[i - 1](x) if i else x, 0.2)
        verdict_BTHW = self._over_time(self.verdict, x, 1)[..., 0]
        if self.words is None:
            return verdict_BTHW
        present_BL1 = (text_BL >= 0)[..., None]
        words_BC = jnp.sum(jnp.where(present_BL1, self.words[...][text_BL], 0), axis=1)
        words_BC /= jnp.maximum(jnp.sum(present_BL1, axis=1), 1)
        return verdict_BTHW + jnp.einsum("bthwc,bc->bthw", x, words_BC)

    def _over_time(self, convolve: nnx.Conv, x_BTHWC: jax.Array, step: int) -> jax.Array:
        """A convolution over space and `frames` frames with stride `step` in time: one over space, of stacked frames.

        The result is the same, forty times as fast where XLA has no fast 3-D convolution (on CPUs).
        """
        side = (self.frames - 1) // 2
        padded = jnp.pad(x_BTHWC, ((0, 0), (side, side), (0, 0), (0, 0), (0, 0)))
        T = x_BTHWC.shape[1]
        x_BTHWC = jnp.concatenate([padded[:, i : i + T : step] for i in range(self.frames)], axis=-1)
        frames = convolve(x_BTHWC.reshape(-1, *x_BTHWC.shape[2:]))
        return frames.reshape(*x_BTHWC.shape[:2], *frames.shape[1:])


class Adversary(nnx.Module):
    """The config's judges and the number of their steps; `words` is the text vocabulary of the captions they read."""

    def __init__(self, config: AdversaryConfig, words: int = 0, *, rngs: nnx.Rngs):
        if config.game not in GAMES:
            raise UserError(did_you_mean(config.game, GAMES, "adversary.game"))
        if not config.judges or set(config.judges) - {"frame", "space-time"}:
            raise UserError(f"adversary.judges {config.judges} should be 'frame', 'space-time' or both")
        frames = {"frame": 1, "space-time": 3}
        self.judges = nnx.Dict(
            {name: Judge(config.width, config.layers, frames[name], words, rngs=rngs) for name in config.judges}
        )
        self.steps = Buffer(jnp.zeros(()))


class Round(NamedTuple):
    """One round of the game: the gradient on the generated pixels, the judges' losses, and metrics to log."""

    pull_BTHWC: Float[Array, "b t h w 3"]
    losses: dict[str, Float[Array, ""]]
    metrics: dict[str, Float[Array, ""]]


def play(
    config: AdversaryConfig,
    adversary: Adversary,
    fake_BTHWC: Float[Array, "b t h w 3"],
    truth_BTHWC: Float[Array, "b t h w 3"],
    text_BL: Int[Array, "b l"],
    force: Float[Array, ""],
) -> Round:
    """Plays one round. `force`: the norm of the other losses' gradient; the pull is `config.weight` times as strong."""
    judge_loss, tokenizer_loss = GAMES[config.game]
    fake_BTHWC = jax.lax.stop_gradient(fake_BTHWC)

    def adversarial_loss(fake_BTHWC: jax.Array) -> jax.Array:
        return sum(
            (jnp.mean(tokenizer_loss(judge(fake_BTHWC, text_BL))) for judge in adversary.judges.values()), jnp.zeros(())
        )

    fooled, pull_BTHWC = jax.value_and_grad(adversarial_loss)(fake_BTHWC)
    strength = config.weight * force / (jnp.linalg.norm(pull_BTHWC) + 1e-8)
    strength = jnp.where(adversary.steps[...] >= config.start, jnp.minimum(strength, config.most), 0.0)
    losses, metrics = {}, {"adversarial": fooled, "adversarial_strength": strength}
    for name, judge in adversary.judges.items():
        real, fake = judge(truth_BTHWC, text_BL), judge(fake_BTHWC, text_BL)
        losses[f"{name}_judge"] = jnp.mean(judge_loss(real, fake))
        metrics[f"{name}_judge_right"] = (jnp.mean(real > 0) + jnp.mean(fake < 0)) / 2
        if config.lecam:
            on_real, on_fake = judge.average[...]
            distance = jnp.mean(jnp.square(jax.nn.relu(real - on_fake))) + jnp.mean(
                jnp.square(jax.nn.relu(on_real - fake))
            )
            losses[f"{name}_lecam"] = config.lecam * distance
            means = jax.lax.stop_gradient(jnp.stack([jnp.mean(real), jnp.mean(fake)]))
            judge.average[...] = MEMORY * judge.average[...] + (1 - MEMORY) * means
        if config.r1:
            slope_BTHWC = jax.grad(lambda video, judge=judge: jnp.sum(jnp.mean(judge(video, text_BL), axis=(1, 2, 3))))(
                truth_BTHWC
            )
            losses[f"{name}_r1"] = config.r1 / 2 * jnp.mean(jnp.sum(jnp.square(slope_BTHWC), axis=(1, 2, 3, 4)))
    return Round(strength * pull_BTHWC, losses, metrics)
