"""The training step in parts, and with moments kept small: what it computes stays what it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tokvid.config import (
    AdversaryConfig,
    DataConfig,
    LayoutConfig,
    Recipe,
    TokenizerConfig,
    TrainConfig,
    TransformerConfig,
)
from tokvid.errors import UserError
from tokvid.flops import TRAINING, transformer_flops
from tokvid.plan.work import work
from tokvid.sharding import make_mesh, shard_batch
from tokvid.train.state import abstract_state, init_state, make_step
from tokvid.train.tokenizer_step import TokenizerTraining
from tokvid.train.transformer_step import TransformerTraining
from tokvid.transformer.layout import slot_count
from tokvid.types import VideoBatch, joined, token_batch

MODEL = TransformerConfig(
    vocabulary=50, text_vocabulary=20, text_length=4, latent_frames=3, grid=(2, 2), width=32, layers=1, heads=2,
    kv_heads=2, mlp=64, dtype="float32",
)  # fmt: skip
CONFIG = TrainConfig(batch=8, learning_rate=1e-2, warmup=0, steps=10)


def batch(seed=0):
    """Of which parts have many tokens to generate and others few."""
    rng = np.random.default_rng(seed)
    return token_batch(
        tokens=rng.integers(0, 50, (8, 3, 2, 2, 1), np.int32),
        start=np.int32([0, 1] * 4),
        fps=np.float32([2, 4, 8, 4] * 2),
        text=rng.integers(-1, 20, (8, 4), np.int32),
        known=np.arange(3) < np.int32([0, 1, 2, 2, 2, 1, 2, 0])[:, None],
    )


def trained(config, steps=1):
    """The state and metrics after some steps of the transformer."""
    training, mesh = TransformerTraining(Recipe(transformer=MODEL, train_transformer=config)), make_mesh((-1, 1, 1, 1))
    like, graph = abstract_state(training, config, mesh)
    state, step, found = init_state(training, config, like), make_step(training, config, mesh, like, graph), []
    for number in range(steps):
        state, metrics = step(state, shard_batch(batch(number), mesh))
        found.append({name: float(value) for name, value in metrics.items()})
    return state, found


@pytest.fixture(scope="module")
def whole():
    return trained(CONFIG, steps=3)


def test_a_batch_in_parts_is_the_batch(whole):
    state, metrics = trained(dataclasses.replace(CONFIG, accumulate=4), steps=3)
    for in_parts, at_once in zip(metrics, whole[1], strict=True):
        assert in_parts == pytest.approx(at_once, rel=2e-4)
    moments = (optax.tree_utils.tree_get(of.opt_state, "mu") for of in (state, whole[0]))
    for in_parts, at_once in zip(*map(jax.tree.leaves, moments), strict=True):
        assert np.linalg.norm(in_parts - at_once) < 1e-3 * np.linalg.norm(at_once) + 1e-9


def test_the_loss_is_the_cross_entropy_and_keeps_logits_near_0(whole):
    for metrics in whole[1]:
        assert metrics["loss"] == pytest.approx(metrics["cross_entropy"] + metrics["z_loss"], rel=1e-6)
    # Of nearly equal logits near 0, log Z is nearly that of their number, and rises with their spread.
    least = MODEL.z_loss * np.log(MODEL.vocabulary) ** 2
    assert least < whole[1][0]["z_loss"] < 2 * least


class Judged(TokenizerTraining):
    """The loss of a video is its mean, and that of an image."""

    def _loss(self, players, truth, text, key):
        return truth.mean(), {"l1": truth.mean()}


def test_images_beside_videos_count_as_many_as_they_are_and_one_step():
    config = TokenizerConfig(size=(8, 8), width=16, heads=2, mlp=16, encoder=("space",), decoder=("space",), patch=4)
    adversary, rate = AdversaryConfig(weight=0.1, width=8, judges=("frame",)), TrainConfig(adversary_learning_rate=1e-4)
    data = DataConfig(size=(8, 8), frames=3, images=2)
    training = Judged(Recipe(data=data, tokenizer=config, adversary=adversary, train_tokenizer=rate))
    players = training.make_model(nnx.Rngs(0))
    video, images = np.full((2, 3, 8, 8, 3), 255, np.uint8), np.zeros((2, 3, 8, 8, 3), np.uint8)
    batch = VideoBatch(video, np.ones(2, np.float32), images, np.full((2, 0), -1, np.int32))
    loss, metrics = training.loss(players, batch, jax.random.key(0))
    assert float(loss) == pytest.approx((2 * 1 - 6 * 1) / 8) and float(metrics["image_l1"]) == -1
    assert float(players.adversary.steps[...]) == 1


def test_corruption_needs_other_samples():
    config, layouts = dataclasses.replace(CONFIG, batch=8, accumulate=8), LayoutConfig(corruption=0.3)
    with pytest.raises(UserError, match="tokens from other samples of a batch, but 8 in 8 parts is one each"):
        TransformerTraining(Recipe(transformer=MODEL, layouts=layouts, train_transformer=config))


def test_a_batch_that_cant_be_split_is_refused():
    with pytest.raises(UserError, match=r"batch 8 can't be split.*in 3 parts.*multiple of 3"):
        trained(dataclasses.replace(CONFIG, accumulate=3))


def test_what_looks_at_whole_batches_isnt_trained_in_parts():
    fsq = Recipe(tokenizer=TokenizerConfig(quantizer="fsq"))
    assert TokenizerTraining(fsq).weight(None) == 1
    both = {"adversary": AdversaryConfig(weight=0.1), "train_tokenizer": TrainConfig(adversary_learning_rate=1e-4)}
    for changes in ({"tokenizer": TokenizerConfig(quantizer="vq")}, both):
        with pytest.raises(UserError, match="accumulate"):
            TokenizerTraining(dataclasses.replace(fsq, **changes)).weight(None)


def arrays(state):
    return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]


def test_moments_in_bfloat16_take_half_the_memory_and_train_alike(whole):
    state, metrics = trained(dataclasses.replace(CONFIG, moments="bfloat16"), steps=3)
    assert {leaf.dtype for leaf in arrays(state)} == {jnp.dtype("bfloat16")}
    assert [each["loss"] for each in metrics] == pytest.approx([each["loss"] for each in whole[1]], rel=2e-2)
    with pytest.raises(UserError, match=r"0\.999.*too slow.*0\.98"):
        trained(dataclasses.replace(CONFIG, moments="bfloat16", betas=(0.9, 0.999)))


def test_factored_moments_are_rows_and_columns(monkeypatch):
    monkeypatch.setattr("tokvid.train.optimizer.LEAST_FACTORED", 16)
    state, metrics = trained(dataclasses.replace(CONFIG, optimizer="adafactor", learning_rate=3e-2), steps=6)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in arrays(state)) < 0.2 * parameters
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_batches_of_images_and_of_windows_train_one_state():
    """As `layouts.lengths` gives them: more rows of fewer latent frames, in parts or as a whole."""
    for config in (CONFIG, dataclasses.replace(CONFIG, accumulate=2)):
        training, mesh = (
            TransformerTraining(Recipe(transformer=MODEL, train_transformer=config)),
            make_mesh((-1, 1, 1, 1)),
        )
        like, graph = abstract_state(training, config, mesh)
        state, step, losses = init_state(training, config, like), make_step(training, config, mesh, like, graph), []
        image = batch()._replace(known=np.zeros((8, 1, 2, 2), bool), start=np.zeros(8, np.int32))
        image = image._replace(**{name: getattr(image, name)[:, :1] for name in ("tokens", "drawn")})
        images = joined([image, image], np.concatenate)
        for given in (batch(), images) * 5:
            state, metrics = step(state, shard_batch(given, mesh))
            losses.append(float(metrics["cross_entropy"]))
        assert losses[-2] < losses[0] and losses[-1] < losses[1]


@pytest.mark.parametrize("subcodes", [1, 4])
def test_flops_are_those_of_the_program(subcodes):
    """The compiled step, whose layers are scanned, multiplies as much as the config says, to 3 %."""
    model = dataclasses.replace(
        MODEL,
        width=128,
        mlp=256,
        layers=3,
        latent_frames=4,
        grid=(4, 4),
        scan_layers=True,
        subcodes=subcodes,
        head_width=48,
    )
    config, mesh = dataclasses.replace(CONFIG, batch=2), make_mesh((-1, 1, 1, 1))
    if mesh.size > 1:
        pytest.skip("counts what one device does")
    training = TransformerTraining(Recipe(transformer=model, train_transformer=config))
    like, graph = abstract_state(training, config, mesh)
    tokens = np.zeros((2, 4, 4, 4, subcodes), np.int32)
    tokens = token_batch(tokens, *np.zeros((2, 2), np.float32), np.zeros((2, 4), np.int32))
    program = make_step(training, config, mesh, like, graph).lower(like, tokens).compile()
    slots = slot_count(model)
    assert training.flops() == TRAINING * transformer_flops(model, slots, slots, 4 * 4 * 4)
    assert work(program.as_text(), 1).flops == pytest.approx(2 * training.flops(), rel=0.03)
