"""Windows that the model sees otherwise than they are: stalls and scheduled sampling, and the loss under them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokvid.config import LayoutConfig, Recipe, TransformerConfig
from tokvid.errors import UserError
from tokvid.train.transformer_step import TransformerTraining, drawn
from tokvid.transformer.head import SubcodeHead
from tokvid.transformer.layout import NOTHING, clip_slots, lay_out, tokens_before
from tokvid.transformer.model import Transformer
from tokvid.types import token_batch

CONFIG = TransformerConfig(
    vocabulary=12,
    subcodes=2,
    text_vocabulary=20,
    text_length=2,
    latent_frames=4,
    grid=(2, 2),
    width=16,
    layers=1,
    heads=2,
    kv_heads=2,
    mlp=16,
    head_width=16,
    copies=True,
    dtype="float32",
)
SAMPLES = 16


@pytest.fixture(scope="module")
def batch():
    """Of half of the samples the first latent frame is known, of the others the first and the last."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(CONFIG.vocabulary, size=(SAMPLES, *CONFIG.latent, CONFIG.subcodes)).astype(np.int32)
    tokens[0, 3] = NOTHING  # a window that ends early
    known = np.zeros((SAMPLES, 4), bool)
    known[:, 0] = known[SAMPLES // 2 :, 3] = True
    text = np.tile(np.int32([[3, -1]]), (SAMPLES, 1))
    return token_batch(tokens, np.zeros(SAMPLES, np.int32), np.full(SAMPLES, 4, np.float32), text, known)


@pytest.fixture(scope="module")
def model():
    return TransformerTraining(Recipe(transformer=CONFIG)).make_model(nnx.Rngs(0))


def draws(model, batch, bias):
    """Drawn by a model whose gates for copying are `bias`."""
    model = nnx.clone(model)
    model.head.copy.bias[...] = jnp.full(CONFIG.subcodes, bias, jnp.float32)
    return np.asarray(drawn_jit(model, batch))


@nnx.jit
def drawn_jit(model, batch):
    return drawn(model, batch, lay_out(CONFIG, batch), jax.random.key(1))


def test_each_token_is_drawn_after_the_true_ones_before_it(model, batch):
    """A model that always copies draws the true tokens of the latent frame before, not those it has drawn."""
    given = np.broadcast_to(batch.known[..., None], batch.tokens.shape) | (batch.tokens < 0)
    made = draws(model, batch, 1e4)
    np.testing.assert_array_equal(made[given], batch.tokens[given])
    before = np.roll(batch.tokens, 1, axis=1)
    np.testing.assert_array_equal(made[~given], before[~given])
    other = draws(model, batch, -1e4)
    np.testing.assert_array_equal(other[given], batch.tokens[given])
    assert (other[~given] != before[~given]).all() and len(np.unique(other[~given])) == CONFIG.vocabulary


@pytest.mark.parametrize("setting", ["stalls", "scheduled_sampling"])
def test_only_training_sees_other_tokens(model, batch, setting):
    """They change the loss and its gradient, not the loss of validation, which has no key."""

    def loss(share, key):
        training = TransformerTraining(Recipe(transformer=CONFIG, layouts=LayoutConfig(**{setting: share})))
        graph, params = nnx.split(model)
        return jax.jit(jax.value_and_grad(lambda params: training.loss(nnx.merge(graph, params), batch, key)[0]))(
            params
        )

    key = jax.random.key(0)
    (plain, _), (changed, gradient) = loss(0.0, key), loss(1.0, key)
    assert abs(plain - changed) > 1e-3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(loss(1.0, None)[0], loss(0.0, None)[0], rtol=1e-6)


@pytest.mark.parametrize("setting", ["stalls", "scheduled_sampling"])
def test_what_is_to_be_predicted_stays_true(model, batch, setting, monkeypatch):
    """Only what the trunk reads and what the head may copy are other tokens."""
    calls, scores, run = [], SubcodeHead.scores, Transformer.run
    monkeypatch.setattr(SubcodeHead, "scores", lambda *given: calls.append(given) or scores(*given))
    monkeypatch.setattr(
        Transformer, "run", lambda self, sequence, *rest: calls.append(sequence) or run(self, sequence, *rest)
    )
    training = TransformerTraining(Recipe(transformer=CONFIG, layouts=LayoutConfig(**{setting: 1.0})))

    @jax.jit
    def inputs(key):
        """What the last forward pass of a loss has read, and what its head was given."""
        training.loss(model, batch, key)
        *_, seen, (_, _, target_BLQ, near, temperature) = calls
        return seen, target_BLQ, near, temperature

    seen, target_BLQ, near, temperature = inputs(jax.random.key(0))
    true, clip = lay_out(CONFIG, batch), clip_slots(batch)
    np.testing.assert_array_equal(target_BLQ, true.target[:, clip])
    assert (seen.token != true.token).any() and (seen.block == true.block).all() and temperature is None
    assert (near.previous != tokens_before(true.target[:, clip], true.previous[:, clip])).any()


def test_sub_codes_that_are_not_generated_are_never_seen_otherwise(batch):
    """A token that has stopped doesn't have those of a first frame, nor has one that is drawn."""
    config = dataclasses.replace(CONFIG, generated=1, silent=7)
    tokens = batch.tokens.copy()
    tokens[:, 1:, ..., 1] = np.where(tokens[:, 1:, ..., 1] >= 0, 7, NOTHING)
    batch = batch._replace(tokens=tokens)
    training = TransformerTraining(Recipe(transformer=config, layouts=LayoutConfig(stalls=1.0, scheduled_sampling=0.5)))
    model = training.make_model(nnx.Rngs(0))
    seen = np.asarray(training._seen(model, batch, lay_out(config, batch), jax.random.key(0)))
    np.testing.assert_array_equal(seen[..., 1], tokens[..., 1])
    assert (seen[..., 0] != tokens[..., 0]).any()
    own = np.asarray(drawn(model, batch, lay_out(config, batch), jax.random.key(1)))
    np.testing.assert_array_equal(own[..., 1], tokens[..., 1])


def test_scheduled_sampling_takes_another_forward_pass():
    plain, with_own = (
        TransformerTraining(Recipe(transformer=CONFIG, layouts=LayoutConfig(scheduled_sampling=share))).flops()
        for share in (0.0, 0.5)
    )
    assert with_own == pytest.approx(plain * 4 / 3)


def test_a_share_is_between_0_and_1():
    with pytest.raises(UserError, match=r"scheduled_sampling should be 0 to 1, got 1\.5"):
        LayoutConfig(scheduled_sampling=1.5)
