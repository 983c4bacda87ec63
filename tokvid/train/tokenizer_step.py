"""Training of the tokenizer: its losses, its batches, its samples."""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from tokvid import weights
from tokvid.config import DataConfig, Recipe, TokenizerConfig, computed
from tokvid.errors import UserError
from tokvid.flops import TRAINING, tokenizer_flops
from tokvid.input_pipeline.loader import clip_batches
from tokvid.input_pipeline.sources import fingerprint, holds_out
from tokvid.input_pipeline.text import PADDING, TextModel
from tokvid.io.media import contact_sheet
from tokvid.io.settings import to_dict
from tokvid.tasks.conditions import Condition
from tokvid.tasks.tasks import conditions_of
from tokvid.tokenizer.cvivit import CViViT, latent_shape
from tokvid.tokenizer.discriminator import Adversary, play
from tokvid.tokenizer.losses import reconstruction_losses
from tokvid.tokenizer.perceptual import Perceptual
from tokvid.tokenizer.quantizers import channels, codes_of
from tokvid.train.state import Metrics, TrainState, sheet
from tokvid.types import VideoBatch

log = logging.getLogger(__name__)


PLAIN: dict[str, Any] = {"flip": 0.0, "zoom": 1.0, "light": 0.0, "conditions": 0.0}  # no augmentation, for validation
VALIDATION_SEED = 1
FEW_FROM_THE_FIRST = 0.15  # of the clips, where later frames have fewer codes


class Players(nnx.Module):
    """The modules of a training step: the tokenizer, its adversary or None, and the perceptual network or None."""

    def __init__(self, tokenizer: CViViT, adversary: Adversary | None, perceptual: Perceptual | None):
        self.tokenizer, self.adversary, self.perceptual = tokenizer, adversary, perceptual


class TokenizerTraining:
    """`Training` of the tokenizer, for `train.loop.train`."""

    name, together = "tokenizer", 1

    def __init__(self, recipe: Recipe, text: TextModel | None = None):
        """`text`: the text model of an adversary that reads captions. UserError for settings that contradict."""
        data, config = recipe.data, recipe.tokenizer
        if data.size != config.size:
            raise UserError(f"data.size {data.size} and tokenizer.size {config.size} differ; make them equal")
        latent_shape(config, data.frames, *data.size)
        if (recipe.adversary.weight > 0) != (recipe.train_tokenizer.adversary_learning_rate > 0):
            raise UserError(
                "adversary.weight and train_tokenizer.adversary_learning_rate go together; set both above 0, or neither"
            )
        if (config.perceptual_weight > 0) != bool(recipe.train_tokenizer.perceptual):
            raise UserError(
                "tokenizer.perceptual_weight and train_tokenizer.perceptual, a VGG's .safetensors file, go together; "
                "set both, or neither"
            )
        self.recipe, self.config, self.text = recipe, config, text
        _warn_of_streams(config, data.frames)

    def make_model(self, rngs: nnx.Rngs) -> Players:
        tokenizer = CViViT(self.config, rngs=rngs)
        adversary, perceptual = self.recipe.adversary, self.recipe.train_tokenizer.perceptual
        words = self.text.vocabulary if self.text else 0
        return Players(
            tokenizer,
            Adversary(adversary, words, rngs=rngs) if adversary.weight > 0 else None,
            Perceptual(perceptual) if perceptual else None,
        )

    def loss(self, players: Players, batch: VideoBatch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        loss, metrics = self._loss(players, to_signed(batch.video), batch.text, key)
        if batch.images.size:
            loss, metrics = self._with_images(players, batch, key, (loss, metrics))
        if players.adversary is not None:
            players.adversary.steps[...] += 1
        return loss, metrics

    def _with_images(
        self, players: Players, batch: VideoBatch, key: jax.Array | None, of_videos: tuple[jax.Array, Metrics]
    ) -> tuple[jax.Array, Metrics]:
        loss, metrics = of_videos
        images = to_signed(batch.images).reshape(-1, 1, *batch.images.shape[2:])
        no_text = jnp.full((len(images), batch.text.shape[1]), PADDING)
        image_loss, image_metrics = self._loss(
            players, images, no_text, None if key is None else jax.random.fold_in(key, 1)
        )
        samples = len(batch.video) + len(images)
        metrics |= {f"image_{name}": value for name, value in image_metrics.items() if name in ("l1", "l2", "psnr")}
        return (len(batch.video) * loss + len(images) * image_loss) / samples, metrics

    def _loss(
        self, players: Players, truth: jax.Array, text: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """The loss of videos (B, T, H, W, 3) in [-1, 1], T 1 for images, and their captions (B, L)."""
        tokenizer, likeness = players.tokenizer, functools.partial(self._likeness, players.perceptual, truth)
        rebuilt, quantized = tokenizer.reconstruct(truth, self._kept_codes(truth, key))
        losses = likeness(rebuilt) | quantized.losses
        metrics = {} if key is None else tokenizer.quantizer.learn(quantized.inputs, quantized.ids, key)
        if players.adversary is not None:
            force = jnp.linalg.norm(jax.grad(lambda rebuilt: total(likeness(rebuilt)))(jax.lax.stop_gradient(rebuilt)))
            game = play(self.recipe.adversary, players.adversary, rebuilt, truth, text, force)
            # Its value is 0, its gradient on the reconstruction is the pull.
            pull = jnp.vdot(game.pull_BTHWC, rebuilt - jax.lax.stop_gradient(rebuilt))
            losses |= game.losses | {"pull": pull}
            metrics |= game.metrics
        error_B = jnp.mean(jnp.square(rebuilt - truth), axis=(1, 2, 3, 4))
        metrics |= losses | {"psnr": jnp.mean(-10 * jnp.log10(error_B / 4 + 1e-10))}
        return total(losses), metrics | _usage(quantized.ids, tokenizer.quantizer.vocabulary)

    def _kept_codes(self, truth: jax.Array, key: jax.Array | None) -> jax.Array | None:
        """The number of sub-codes that each latent frame keeps, drawn in training, so that a few tell the most.

        In some clips the first frame keeps as few as the others: a transformer draws no more without a given frame.
        """
        if key is None or not any(self.config.later_codes):
            return None
        later_key, first_key = jax.random.split(jax.random.fold_in(key, 2))
        B, T = len(truth), latent_shape(self.config, *truth.shape[1:4]).frames
        later_B1 = jax.random.choice(later_key, jnp.asarray(self.config.later_codes), (B, 1))
        few_B1 = jax.random.bernoulli(first_key, FEW_FROM_THE_FIRST, (B, 1))
        return jnp.where((jnp.arange(T) > 0) | few_B1, later_B1, 0)

    def _likeness(self, perceptual: Perceptual | None, truth: jax.Array, rebuilt: jax.Array) -> Metrics:
        """The named, weighted losses between a reconstruction and the truth."""
        losses = reconstruction_losses(self.config, rebuilt, truth)
        if perceptual is not None:
            losses["perceptual"] = self.config.perceptual_weight * perceptual(rebuilt, truth)
        return losses

    def weight(self, batch: VideoBatch) -> jax.Array:
        if self.recipe.adversary.weight > 0 or self.config.quantizer != "fsq":
            raise UserError(
                "train_tokenizer.accumulate needs the quantizer fsq and no adversary: codebooks and judges need whole "
                "batches; set it to 1, and use a smaller batch or remat where memory is short"
            )
        return jnp.ones(())

    def flops(self) -> float:
        """FLOPs of a sample, without judges and perceptual networks."""
        data, c = self.recipe.data, self.config
        frames = latent_shape(c, data.frames, *data.size).frames
        parts = ("encoder", "decoder")
        width = channels(c)
        clip, image = (sum(tokenizer_flops(c, part, count, count, width) for part in parts) for count in (frames, 1))
        return TRAINING * (clip + data.images * image)

    def batches(self, shard: tuple[int, int] = (0, 1)) -> Any:
        config = self.recipe.train_tokenizer
        encode = self.text.encoder(self.recipe.transformer.text_length) if self.text else None
        batch, shown = config.batch // shard[1], self._conditions()
        return clip_batches(self.recipe.data, batch, config.seed, encode=encode, conditions=shown, shard=shard)

    def _conditions(self) -> list[Condition]:
        """Those that the tasks read and that look unlike the videos, for which the tokenizer is trained as well."""
        conditions = conditions_of(self.recipe.layouts.tasks).values()
        return [condition for condition in conditions if condition.slower == 1 and not condition.still]

    def prepare(self, batch: VideoBatch, state: TrainState, mesh: Mesh) -> VideoBatch:
        return batch

    def validation(self, shard: tuple[int, int] = (0, 1)) -> Any:
        config, data = self.recipe.train_tokenizer, dataclasses.replace(self.recipe.data, **PLAIN)
        if not holds_out(data):
            return None
        encode = self.text.encoder(self.recipe.transformer.text_length) if self.text else None
        batch = config.batch // shard[1]
        return clip_batches(data, batch, VALIDATION_SEED, split="held_out", encode=encode, shard=shard)

    def alarm(self, metrics: Mapping[str, float]) -> str:
        """Reports a collapsed codebook: batches that use very few codes, which no loss shows."""
        codes, data = codes_of(self.config), self.recipe.data
        tokens = self.recipe.train_tokenizer.batch * math.prod(latent_shape(self.config, data.frames, *data.size))
        used = metrics.get("codes_used", 1.0) * codes.vocabulary
        if used >= max(2.0, 0.01 * min(codes.vocabulary, tokens * codes.per_token)):
            return ""
        return (
            f"batches use only {used:.1f} of {codes.vocabulary} codes: the codebook has collapsed, and its tokens "
            "carry little information. Start anew in another --workdir with a lower learning rate, a longer warm-up or "
            "fewer codes"
        )

    def samples(self, players: Players, directory: Path, step: int) -> None:
        """Writes a sheet of true clips, each above its reconstruction."""
        with contextlib.closing(clip_batches(self.recipe.data, 4, seed=1, conditions=self._conditions())) as batches:
            truth = next(batches).video
        rebuilt = to_bytes(np.asarray(_reconstruct(*nnx.split(players.tokenizer), truth)))
        rows = [video for pair in zip(truth, rebuilt, strict=True) for video in pair]
        contact_sheet(sheet(directory, step), rows, captions=["truth", "made"] * len(rebuilt))

    def finish(self, variables: nnx.State, directory: Path, step: int) -> None:
        weights.save(
            directory, "tokenizer", self.config, variables["tokenizer"], steps=step, data=to_dict(self.recipe.data)
        )

    def describe(self) -> Mapping[str, Any]:
        return {
            "tokenizer": computed(self.config),
            "adversary": to_dict(self.recipe.adversary) if self.recipe.adversary.weight else None,
            "text_model": self.text.fingerprint if self.text else None,
            "data": describe_data(self.recipe.data) | {"files": fingerprint(self.recipe.data)},
        }


def total(losses: Metrics) -> jax.Array:
    """The sum of all losses."""
    return sum(losses.values(), jnp.zeros(()))


def describe_data(config: DataConfig) -> dict[str, Any]:
    """The settings that decide the clips, as JSON values: all but those of speed."""
    silent = {"threads", "max_unreadable"} | (set() if config.conditions else {"conditions"})  # earlier: no such field
    return {name: value for name, value in to_dict(config).items() if name not in silent}


def _warn_of_streams(config: TokenizerConfig, frames: int) -> None:
    """Most latent frames of a long video don't see its first one; warns where clips hold none of these.

    With few codes after the first frame, they are meant to see it.
    """
    if any(config.later_codes):
        return
    latent = latent_shape(config, frames, *config.size).frames
    for part, order in (("encoder", config.encoder), ("decoder", config.decoder)):
        reach = 1 + order.count("time") * (config.time_window - 1)
        if 1 < latent <= reach:
            log.warning(
                "the %s looks back over %d latent frames and clips have %d: longer videos will differ from all "
                "training clips. Use data.frames %d or more, or a smaller tokenizer.time_window",
                part,
                reach,
                latent,
                1 + reach * config.temporal_patch,
            )


def _usage(ids: jax.Array, vocabulary: int) -> Metrics:
    """The share of codes that a batch uses, the perplexity of their distribution, and how many of a clip's codes stay.

    `ids` (B, T, ...): a code stays where the latent frame before has the same.
    """
    counts_V = jnp.zeros(vocabulary, jnp.int32).at[ids.ravel()].add(1)
    share_V = counts_V / ids.size
    return {
        "codes_used": jnp.mean(counts_V > 0),
        "perplexity": jnp.exp(-jnp.sum(share_V * jnp.log(share_V + 1e-10))),
        **({"codes_kept": jnp.mean(ids[:, 1:] == ids[:, :-1])} if ids.shape[1] > 1 else {}),
    }


@functools.partial(jax.jit, static_argnames="graph")
def encode_ids(graph: nnx.GraphDef, variables: nnx.State, video_BTHWC: jax.Array) -> jax.Array:
    """uint8 videos → their tokens, int32 (B, T', H', W', Q)."""
    return nnx.merge(graph, variables).encode(to_signed(video_BTHWC)).ids


@functools.partial(jax.jit, static_argnames="graph")
def _reconstruct(graph: nnx.GraphDef, variables: nnx.State, video_BTHWC: jax.Array) -> jax.Array:
    return nnx.merge(graph, variables).reconstruct(to_signed(video_BTHWC))[0]


def to_signed(video: jax.Array | np.ndarray) -> jax.Array:
    """uint8 → float32 in [-1, 1]."""
    return jnp.asarray(video, jnp.float32) / 127.5 - 1


def to_bytes(video: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] → uint8."""
    return np.clip(np.rint((video + 1) * 127.5), 0, 255).astype(np.uint8)
