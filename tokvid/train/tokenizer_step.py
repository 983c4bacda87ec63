"""Training the tokenizer: what it minimises, what it sees, what it shows."""

import contextlib
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokvid import weights
from tokvid.config import DataConfig, Recipe, to_dict
from tokvid.errors import UserError
from tokvid.input_pipeline.datasets import clip_batches
from tokvid.media import contact_sheet
from tokvid.tokenizer.cvivit import CViViT, latent_shape
from tokvid.tokenizer.losses import reconstruction_losses
from tokvid.tokenizer.quantizers import vocabulary
from tokvid.types import VideoBatch


class TokenizerTask:
    """`Task` of the tokenizer, for `train.loop.train`."""

    name = "tokenizer"

    def __init__(self, recipe: Recipe):
        data, config = recipe.data, recipe.tokenizer
        if data.size != config.size:
            raise UserError(f"data.size {data.size} and tokenizer.size {config.size} differ; make them equal")
        latent_shape(config, data.frames, *data.size)
        self.recipe, self.config = recipe, config

    def make_model(self, rngs: nnx.Rngs) -> CViViT:
        return CViViT(self.config, rngs=rngs)

    def loss(self, model: CViViT, batch: VideoBatch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        truth = to_signed(batch.video)
        made, quantized = model.reconstruct(truth)
        losses = reconstruction_losses(self.config, made, truth) | quantized.losses
        learnt = model.quantizer.learn(quantized.inputs, quantized.ids, key)
        error_B = jnp.mean(jnp.square(made - truth), axis=(1, 2, 3, 4))
        counts_V = jnp.zeros(model.quantizer.vocabulary, jnp.int32).at[quantized.ids.ravel()].add(1)
        share_V = counts_V / quantized.ids.size
        metrics = (
            losses
            | learnt
            | {
                "psnr": jnp.mean(-10 * jnp.log10(error_B / 4 + 1e-10)),
                "codes_used": jnp.mean(counts_V > 0),
                "perplexity": jnp.exp(-jnp.sum(share_V * jnp.log(share_V + 1e-10))),
            }
        )
        return sum(losses.values(), jnp.zeros(())), metrics

    def batches(self) -> Any:
        config = self.recipe.train_tokenizer
        return clip_batches(self.recipe.data, config.batch, config.seed)

    def alarm(self, metrics: Mapping[str, float]) -> str:
        """A collapsed codebook: batches with next to no different codes, which shows in no loss."""
        codes, data = vocabulary(self.config), self.recipe.data
        tokens = self.recipe.train_tokenizer.batch * math.prod(latent_shape(self.config, data.frames, *data.size))
        used = metrics.get("codes_used", 1.0) * codes
        if used >= max(2.0, 0.01 * min(codes, tokens)):
            return ""
        return (
            f"batches use only {used:.1f} of {codes} codes: the codebook has collapsed, its tokens will say little. "
            "Start anew in another --workdir with a lower learning rate, a longer warm-up or fewer codes"
        )

    def samples(self, model: CViViT, directory: Path, step: int) -> None:
        """A sheet of true clips, each above its reconstruction."""
        with contextlib.closing(clip_batches(self.recipe.data, 4, seed=1)) as batches:
            truth = next(batches).video
        made = to_bytes(np.asarray(_reconstruct(*nnx.split(model), truth)))
        rows = [video for pair in zip(truth, made, strict=True) for video in pair]
        contact_sheet(directory / f"{step:07d}.png", rows, captions=["truth", "made"] * len(made))

    def finish(self, variables: nnx.State, directory: Path, step: int) -> None:
        weights.save(directory, "tokenizer", self.config, variables, steps=step, data=to_dict(self.recipe.data))

    def describe(self) -> Mapping[str, Any]:
        return {"tokenizer": to_dict(self.config), "data": describe_data(self.recipe.data)}


def describe_data(config: DataConfig) -> dict[str, Any]:
    """What decides which clips are made, as JSON values: the config without what only decides how fast."""
    return {name: value for name, value in to_dict(config).items() if name not in ("threads", "max_unreadable")}


@functools.partial(jax.jit, static_argnames="graph")
def encode_ids(graph: nnx.GraphDef, variables: nnx.State, video_BTHWC: jax.Array) -> jax.Array:
    """uint8 videos → their tokens, int32 (B, T', H', W')."""
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
