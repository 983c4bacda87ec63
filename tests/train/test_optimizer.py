"""What the optimizers do to parameters: which are matrices to Muon, and how large the steps are."""

import dataclasses
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tokvid.config import TokenizerConfig, TrainConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.tokenizer.cvivit import CViViT
from tokvid.train.optimizer import OPTIMIZERS, UPDATE_SIZE, learning_rate, make_optimizer
from tokvid.transformer.model import Transformer

CONFIG = TrainConfig(steps=100, optimizer="muon", learning_rate=1e-2, warmup=10, weight_decay=0.0)
MODELS = {
    "tokenizer": (
        CViViT,
        TokenizerConfig(width=32, heads=2, mlp=48, encoder=("space",), decoder=("time",), quantizer="fsq"),
    ),
    "transformer": (Transformer, TransformerConfig(vocabulary=50, width=32, layers=3, heads=4, kv_heads=2, mlp=48)),
}


def parameters(kind):
    make, config = MODELS[kind]
    return nnx.state(make(config, rngs=nnx.Rngs(0)), nnx.Param)


def by_name(tree):
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(tree)}


def test_the_learning_rate_rises_then_falls_to_its_share():
    rate = learning_rate(CONFIG)
    assert [float(rate(step)) for step in (0, 5, 10)] == pytest.approx([0, 0.005, 0.01])
    assert float(rate(55)) == pytest.approx(0.01 * (1 + CONFIG.final_learning_rate) / 2)
    assert float(rate(100)) == float(rate(200)) == pytest.approx(0.01 * CONFIG.final_learning_rate)


def test_a_stable_learning_rate_falls_in_its_last_steps_only():
    """Until then it is what a longer run's is, so that a run may be lengthened."""
    config = dataclasses.replace(CONFIG, schedule="stable", decay=0.2)
    rate, longer = learning_rate(config), learning_rate(dataclasses.replace(config, steps=1000))
    assert [float(rate(step)) for step in (0, 5, 10, 50, 80)] == pytest.approx([0, 0.005, 0.01, 0.01, 0.01])
    assert [float(rate(step)) for step in range(81)] == [float(longer(step)) for step in range(81)]
    assert float(rate(90)) == pytest.approx(0.01 * (1 + CONFIG.final_learning_rate) / 2)
    assert float(rate(100)) == float(rate(200)) == pytest.approx(0.01 * CONFIG.final_learning_rate)


@pytest.mark.parametrize(
    ("steps", "warmup", "decay"), [(1, 200, 0.2), (2, 0, 0.0), (10, 200, 1.0), (10, 3, 1.0), (3, 1, 0.01)]
)
def test_short_and_wholly_falling_schedules_end_where_they_should(steps, warmup, decay):
    config = dataclasses.replace(CONFIG, schedule="stable", steps=steps, warmup=warmup, decay=decay)
    rate_S = np.array([float(learning_rate(config)(step)) for step in range(max(steps, 2) + 1)])
    assert rate_S[-1] == pytest.approx(0.01 * CONFIG.final_learning_rate) and 0 < rate_S.max() <= 0.01 * (1 + 1e-6)
    assert (np.diff(rate_S[rate_S.argmax() :]) <= 0).all()


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(decay):
    with pytest.raises(UserError, match="decay should be 0 to 1"):
        learning_rate(dataclasses.replace(CONFIG, schedule="stable", decay=decay))


@pytest.mark.parametrize("schedule", get_args(get_type_hints(TrainConfig)["schedule"]))
def test_every_schedule_rises_to_the_peak_and_never_again(schedule):
    rate = learning_rate(dataclasses.replace(CONFIG, schedule=schedule))
    rate_S = np.array([float(rate(step)) for step in range(120)])
    assert rate_S[0] == 0 and rate_S[10] == rate_S.max() == pytest.approx(0.01)
    assert (np.diff(rate_S[:11]) > 0).all() and (np.diff(rate_S[10:]) <= 0).all()
    assert rate_S[100] == rate_S[119] == pytest.approx(0.01 * CONFIG.final_learning_rate)


@pytest.mark.parametrize("moments", get_args(get_type_hints(TrainConfig)["moments"]))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_moves_all_parameters_downhill(optimizer, moments):
    config = dataclasses.replace(CONFIG, optimizer=optimizer, moments=moments, betas=(0.9, 0.95), learning_rate=5e-2)
    optimizer = make_optimizer(config)
    params = {"query": jnp.ones((8, 2, 4)), "down": jnp.ones((8, 80)), "scale": jnp.ones(8)}
    targets = jax.tree.map(lambda leaf: leaf + jax.random.normal(jax.random.key(0), leaf.shape), params)

    def off(params):
        return {name: float(jnp.square(params[name] - targets[name]).mean()) for name in params}

    @jax.jit
    def step(params, state):
        gradients = jax.tree.map(lambda leaf, target: leaf - target, params, targets)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    before, state = off(params), optimizer.init(params)
    for _ in range(100):
        params, state = step(params, state)
    assert all(after < 0.8 * before[name] for name, after in off(params).items())
    assert all(leaf.dtype == moments for leaf in jax.tree.leaves(state) if leaf.ndim)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_shrinks_matrices_and_nothing_else(optimizer):
    """By the learning rate times the decay, where gradients are 0; Muon only its own ones. Norms of stacked layers
    have two axes."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer, warmup=0, weight_decay=0.5)
    params, optimizer = parameters("transformer"), make_optimizer(config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(optimizer.update)
    _, state = update(zeros, jax.jit(optimizer.init)(params), params)
    updates, before = by_name(update(zeros, state, params)[0]), by_name(params)
    rate = float(learning_rate(config)(1))
    matrices = {name for name, leaf in before.items() if leaf.ndim > 1 and not name.endswith(".scale")}
    if config.optimizer == "muon":
        matrices = {name for name in matrices if (".attention." in name or ".mlp." in name) and "norm" not in name}
    for name, leaf in before.items():
        wanted = -rate * 0.5 * leaf if name in matrices else jnp.zeros_like(leaf)
        np.testing.assert_allclose(updates[name], wanted, rtol=1e-3, atol=1e-8, err_msg=name)
    assert len(matrices) >= 7 and any(leaf.ndim > 1 for name, leaf in before.items() if name not in matrices)


@pytest.mark.parametrize("side", ["model", "adversary"])
def test_gradients_are_clipped_on_either_side(side):
    config = dataclasses.replace(CONFIG, optimizer="adamw", clip_norm=2.0, adversary_learning_rate=1e-3)
    params = {"model": {"kernel": jnp.ones((4, 4))}, "adversary": {"kernel": jnp.ones((4, 4))}}
    optimizer, none = make_optimizer(config), jax.tree.map(jnp.zeros_like, params)
    gradients = {**none, side: {"kernel": jnp.full((4, 4), 1e6)}}
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    (mean,) = (leaf for leaf in jax.tree.leaves(state) if leaf.shape == (4, 4) and (leaf > 0.05).any())
    b1 = 0.5 if side == "adversary" else CONFIG.betas[0]
    assert float(jnp.linalg.norm(mean)) == pytest.approx(2 * (1 - b1), rel=1e-4)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UserError, match=r"muno.*muon"):
        make_optimizer(dataclasses.replace(CONFIG, optimizer="muno"))


@pytest.mark.parametrize("kind", MODELS)
def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else(kind):
    state = make_optimizer(CONFIG).init(parameters(kind))
    momenta = {name for name, leaf in by_name(optax.tree_utils.tree_get(state, "nu")).items() if jax.tree.leaves(leaf)}
    names = set(by_name(parameters(kind)))  # AdamW keeps a `nu` for what is left to it
    matrices = {name for name in names if any(part in name for part in (".attention.", ".mlp.")) and "norm" not in name}
    assert momenta == names - matrices and len(matrices) == (14 if kind == "tokenizer" else 7)


@pytest.mark.parametrize("kind", MODELS)
def test_muons_steps_turn_without_stretching(kind):
    """Each layer's matrix, heads merged, moves by the same length in every direction, and by UPDATE_SIZE per entry."""
    params, optimizer = parameters(kind), make_optimizer(dataclasses.replace(CONFIG, warmup=0))
    rng = np.random.default_rng(1)
    gradients = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    updates = by_name(jax.jit(optimizer.update)(gradients, jax.jit(optimizer.init)(params), params)[0])
    for name in ("attention.query", "attention.out", "mlp.gate", "mlp.down"):
        update = next(np.array(leaf) for path, leaf in updates.items() if path.endswith(name))
        layers = update if kind == "transformer" else update[None]
        for layer in layers:
            matrix = layer.reshape(-1, layer.shape[-1]) if name == "attention.out" else layer.reshape(len(layer), -1)
            lengths = np.linalg.svd(matrix, compute_uv=False)
            # But for directions that the gradient all but lacks. In a random matrix of these shapes: above 4.
            assert lengths.max() / np.percentile(lengths, 10) < 2, name
            assert np.sqrt(np.mean(np.square(matrix))) == pytest.approx(UPDATE_SIZE * 1e-2, rel=0.2), name
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in updates.values())
