"""What only an NVIDIA GPU can show; elsewhere these are skipped."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokvid.config import Sampling
from tokvid.nn.attention import attend
from tokvid.nn.products import compute_dtype
from tokvid.nn.visibility import NEVER, Blocks
from tokvid.sampling.decode import Request, generate
from tokvid.sharding import make_mesh, shard_batch
from tokvid.train.recipe import open_recipe
from tokvid.train.state import abstract_state, init_state, make_step
from tokvid.train.tokenizer_step import TokenizerTraining
from tokvid.train.transformer_step import TransformerTraining
from tokvid.transformer.layout import lay_out
from tokvid.transformer.model import Transformer
from tokvid.types import VideoBatch, token_batch

pytestmark = pytest.mark.gpu
TINY = open_recipe(Path(__file__).parents[1] / "configs" / "tiny.py", [])


def windows(config, batch):
    """Random windows whose texts have every length and of which every number of latent frames is known."""
    rng, (frames, *_) = np.random.default_rng(0), config.latent
    length_B = np.linspace(0, config.text_length, batch).astype(int)
    text_BL = rng.integers(config.text_vocabulary, size=(batch, config.text_length), dtype=np.int32)
    return token_batch(
        tokens=rng.integers(config.vocabulary, size=(batch, *config.latent, config.subcodes), dtype=np.int32),
        start=np.zeros(batch, np.int32),
        fps=np.full(batch, 8, np.float32),
        text=np.where(np.arange(config.text_length) < length_B[:, None], text_BL, -1).astype(np.int32),
        known=np.arange(frames) < (np.arange(batch) % frames)[:, None],
    )


def layout():
    """Who sees whom in windows of the transformer, padded to a length that cuDNN takes."""
    config = dataclasses.replace(TINY.transformer, latent_frames=4, grid=(8, 8))
    block_BL = lay_out(config, windows(config, 4)).padded(8).block
    return Blocks(block_BL, block_BL)


def history():
    """As in the tokenizer's time layers: causal, and not far back."""
    block_BL = jnp.arange(256)[None] * jnp.ones((4, 1), jnp.int32)
    return Blocks(block_BL, block_BL, window=2)


@pytest.mark.parametrize("blocks", [layout, history, lambda: None], ids=["layout", "history", "all"])
def test_cudnn_attends_as_xla_does(blocks):
    """Values and gradients in bfloat16, of all slots but padding."""
    blocks = blocks()
    B, L = (4, 256) if blocks is None else blocks.query_BL.shape
    used_BL11 = 1.0 if blocks is None else (blocks.query_BL < NEVER)[:, :, None, None]
    keys = jax.random.split(jax.random.key(0), 4)
    *given, pull_BLNE = (jax.random.normal(key, (B, L, 8, 64), jnp.bfloat16) for key in keys)

    def run(implementation):
        def pulled(given):
            out = attend(*given, blocks, implementation) * used_BL11
            return jnp.vdot(out.astype(jnp.float32), pull_BLNE.astype(jnp.float32)), out

        (_, out), gradients = jax.jit(jax.value_and_grad(pulled, has_aux=True))(given)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    for one, other in zip(run("cudnn"), run("xla"), strict=True):
        assert np.isfinite(one).all()
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other)


def test_auto_computes_in_bfloat16():
    assert compute_dtype("auto") == "bfloat16"


def stepped(training, config, batch):
    mesh = make_mesh((1, 1, 1, 1))
    like, graph = abstract_state(training, config, mesh)
    step, batch = make_step(training, config, mesh, like, graph), shard_batch(batch, mesh)
    state, metrics = step(init_state(training, config, like), batch)
    return step(state, batch)[1] | {"first": metrics["loss"]}


def test_the_transformers_step_is_finite():
    config = TINY.train_transformer
    metrics = stepped(TransformerTraining(TINY), config, windows(TINY.transformer, config.batch))
    assert all(np.isfinite(float(value)) for value in metrics.values()) and not metrics["skipped"]


def test_the_tokenizers_step_is_finite():
    config, rng = TINY.train_tokenizer, np.random.default_rng(0)
    video, images = (
        rng.integers(256, size=(config.batch, count, *TINY.tokenizer.size, 3), dtype=np.uint8)
        for count in (TINY.data.frames, TINY.data.images)
    )
    fps, text = np.full(config.batch, 8, np.float32), np.zeros((config.batch, 0), np.int32)
    metrics = stepped(TokenizerTraining(TINY), config, VideoBatch(video, fps, images, text))
    assert all(np.isfinite(float(value)) for value in metrics.values()) and not metrics["skipped"]


@pytest.mark.parametrize(
    "sampling", [Sampling(rows=0), Sampling(rows=1), Sampling(rows=4)], ids=["one", "row", "frame"]
)
def test_decoding_fills_in_a_window(sampling):
    c, B = TINY.transformer, 3
    graph, params = nnx.split(nnx.jit(lambda: Transformer(c, rngs=nnx.Rngs(0)))())
    batch = windows(c, B)
    batch = batch._replace(known=np.broadcast_to(np.arange(c.latent_frames)[:, None, None] < 1, batch.known.shape))
    request = Request(
        batch,
        np.full_like(batch.text, -1),
        jax.random.split(jax.random.key(0), B),
        np.full((B, c.latent_frames), 2, np.float32),
        np.int32(math.prod(c.grid)),
        np.int32(math.prod(c.latent) - math.prod(c.grid)),
    )
    made = [np.asarray(generate(graph, params, request, sampling=sampling, guided=True)) for _ in range(2)]
    np.testing.assert_array_equal(*made)  # of the same seeds
    np.testing.assert_array_equal(made[0][:, 0], batch.tokens[:, 0])
    assert ((made[0] >= 0) & (made[0] < c.vocabulary)).all() and len(np.unique(made[0][:, 1:])) > 20
