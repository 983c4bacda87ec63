"""Training the tokenizer: what it minimises, what it sees, what it shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokvid import weights
from tokvid.config import Recipe, to_dict
from tokvid.errors import UserError
from tokvid.input_pipeline.datasets import clip_batches
from tokvid.media import contact_sheet
from tokvid.tokenizer.cvivit import CViViT, latent_shape
from tokvid.tokenizer.losses import reconstruction_losses
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
        error_B = jnp.mean(jnp.square(made - truth), axis=(1, 2, 3, 4))
        counts_V = jnp.zeros(model.quantizer.vocabulary, jnp.int32).at[quantized.ids.ravel()].add(1)
        share_V = counts_V / quantized.ids.size
        metrics = losses | {
            "psnr": jnp.mean(-10 * jnp.log10(error_B / 4 + 1e-10)),
            "codes_used": jnp.mean(counts_V > 0),
            "perplexity": jnp.exp(-jnp.sum(share_V * jnp.log(share_V + 1e-10))),
        }
        return sum(losses.values(), jnp.zeros(())), metrics

    def batches(self) -> Any:
        config = self.recipe.train_tokenizer
        return clip_batches(self.recipe.data, config.batch, config.seed)

    def samples(self, model: CViViT, directory: Path, step: int) -> None:
        """A sheet of true clips, each above its reconstruction."""
        batch = next(clip_batches(self.recipe.data, 4, seed=1))
        made = to_bytes(np.asarray(jax.jit(lambda video: model.reconstruct(to_signed(video))[0])(batch.video)))
        rows = [video for pair in zip(batch.video, made, strict=True) for video in pair]
        contact_sheet(directory / f"{step:07d}.png", rows, captions=["truth", "made"] * len(made))

    def finish(self, params: nnx.State, directory: Path, step: int) -> None:
        weights.save(directory, "tokenizer", self.config, params, steps=step, data=to_dict(self.recipe.data))

    def describe(self) -> Mapping[str, Any]:
        return {"tokenizer": to_dict(self.config), "data": to_dict(self.recipe.data)}


def to_signed(video: jax.Array) -> jax.Array:
    """uint8 → float32 in [-1, 1]."""
    return jnp.asarray(video, jnp.float32) / 127.5 - 1


def to_bytes(video: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] → uint8."""
    return np.clip(np.rint((video + 1) * 127.5), 0, 255).astype(np.uint8)
