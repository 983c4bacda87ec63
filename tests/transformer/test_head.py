"""Heads: likelihoods worked out the long way, and what is drawn is what is scored."""

import dataclasses
import itertools
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokvid.config import TransformerConfig
from tokvid.transformer.head import FlatHead, Near, SubcodeHead, make_head
from tokvid.transformer.layout import NOTHING

CONFIG = TransformerConfig(vocabulary=4, subcodes=3, silent=1, width=16, head_width=24, head_layers=2, dtype="float32")
ALONE = Near(*[jnp.full((2, 5, CONFIG.subcodes), NOTHING)] * 2)
KINDS = get_args(get_type_hints(TransformerConfig)["head"])


COPIES = {"no copies": {}, "copies": {"copies": True}, "slower": {"copies": True, "copies_slower": True}}


@pytest.fixture(scope="module", params=[*itertools.product(KINDS, COPIES, (0,)), (KINDS[0], "slower", 2)], ids=str)
def config(request):
    kind, copies, generated = request.param
    return dataclasses.replace(CONFIG, head=kind, generated=generated, **COPIES[copies])


@pytest.fixture(scope="module")
def head(config, random_model):
    return random_model(SubcodeHead, config)


@pytest.fixture(scope="module")
def hidden_BLD():
    return np.random.default_rng(1).normal(size=(2, 5, CONFIG.width)).astype(np.float32)


@pytest.fixture(scope="module")
def target_BLQ():
    return jnp.asarray(np.random.default_rng(2).integers(CONFIG.vocabulary, size=(2, 5, CONFIG.subcodes)), jnp.int32)


@pytest.fixture(scope="module")
def near(target_BLQ):
    """Some sub-codes are those of the token before or of the slower video's, some aren't, and some slots have none."""

    def partly(seed, absent):
        rng = np.random.default_rng(seed)
        other_BLQ = rng.integers(CONFIG.vocabulary, size=target_BLQ.shape)
        ids_BLQ = np.where(rng.random(target_BLQ.shape) < 0.5, target_BLQ, other_BLQ)
        ids_BLQ[:, absent] = NOTHING
        return jnp.asarray(ids_BLQ, jnp.int32)

    return Near(partly(3, [0, 1]), partly(4, [1, 3]))


def at(near, *place):
    return Near(*(ids_BLQ[place] for ids_BLQ in near))


def logits_by_hand(head, hidden_D, ids_Q, near):
    """In NumPy, slot by slot: of each sub-code, given those before it and the tokens near."""
    parts = []  # of each token near: its ids, the scale of its rows, what is added where it has a code, and its gate
    if head.copy is not None and near.previous[0] >= 0:
        parts.append((near.previous, 1, getattr(head, "stayed", None), head.copy))
    if head.copy_slower is not None and near.slower[0] >= 0:
        parts.append((near.slower, np.asarray(head.slower_scale[...]), getattr(head, "agreed", None), head.copy_slower))

    def normed(norm, x):
        return x / np.sqrt(np.mean(x**2) + 1e-6) * np.asarray(norm.scale[...])

    made = []
    for q in range(head.generated):
        x = hidden_D.astype(np.float64) @ np.asarray(head.enter[...])[:, q]
        if head.autoregressive:
            x = x + sum(np.asarray(head.before[...])[p, ids_Q[p]] for p in range(q))
        for near_Q, scale, same, _ in parts:
            x = x + scale * sum(np.asarray(head.previous[...])[p, near_Q[p]] for p in range(CONFIG.subcodes))
            if head.autoregressive:
                x = x + sum(np.asarray(same[...])[p] for p in range(q) if ids_Q[p] == near_Q[p])
        for norm, layer in zip(head.norms, head.layers, strict=True):
            gate, up, down = (np.asarray(getattr(layer, name)[...], np.float64) for name in ("gate", "up", "down"))
            y = normed(norm, x)
            x = x + (y @ gate / (1 + np.exp(-(y @ gate))) * (y @ up)) @ down
        x = normed(head.last_norm, x)
        made.append(x @ np.asarray(head.to_codes[...])[q])
        for near_Q, *_, copy in parts:
            made[q][near_Q[q]] += x @ np.asarray(copy.kernel[...])[q] + np.asarray(copy.bias[...])[q]
    return np.stack(made)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_scores_are_those_worked_out_by_hand(head, hidden_BLD, target_BLQ, near):
    found = jax.jit(head.scores)(hidden_BLD, target_BLQ, near)
    for b, slot in np.ndindex(2, 5):
        logits_QV = logits_by_hand(head, hidden_BLD[b, slot], target_BLQ[b, slot], at(near, b, slot))
        target_G = target_BLQ[b, slot][: head.generated]
        chosen_Q = np.take_along_axis(log_softmax(logits_QV), target_G[:, None], axis=1)
        assert float(found.log_likelihood[b, slot]) == pytest.approx(chosen_Q.sum(), rel=1e-4, abs=1e-4)
        sums_Q = np.log(np.exp(logits_QV).sum(axis=1))
        assert float(found.normaliser[b, slot]) == pytest.approx((sums_Q**2).sum(), rel=1e-4)
        assert float(found.right[b, slot]) == pytest.approx((logits_QV.argmax(1) == target_G).mean())
    assert len(np.unique(np.round(found.right, 3))) > 1


@pytest.mark.parametrize("temperature_BL", [None, np.linspace(0.2, 2, 10).reshape(2, 5)])
def test_what_is_drawn_is_what_is_scored(head, hidden_BLD, target_BLQ, near, temperature_BL):
    """Teacher forcing: the sum of the log-likelihoods that drawing sees, sub-code after sub-code."""
    by = 1 if temperature_BL is None else temperature_BL[..., None]

    @jax.jit
    def forced(hidden_BLD):
        def choose(q, logits_BLV):
            wanted_BL = jnp.asarray(target_BLQ)[..., q]
            share_BLV = jax.nn.log_softmax(logits_BLV / by)
            return wanted_BL, jnp.take_along_axis(share_BLV, wanted_BL[..., None], axis=-1)[..., 0]

        ids_BLQ, seen_QBL = head.draw(hidden_BLD, choose, near)
        return ids_BLQ, seen_QBL.sum(axis=0)

    ids_BLQ, likelihood_BL = forced(jnp.asarray(hidden_BLD))
    np.testing.assert_array_equal(ids_BLQ[..., : head.generated], target_BLQ[..., : head.generated])
    assert (ids_BLQ[..., head.generated :] == CONFIG.silent).all()
    scored_BL = jax.jit(head.scores)(hidden_BLD, target_BLQ, near, temperature_BL).log_likelihood
    np.testing.assert_allclose(scored_BL, likelihood_BL, rtol=1e-5, atol=1e-5)


def test_likelihoods_of_all_tokens_sum_to_1(head, hidden_BLD, near):
    every_NQ = np.array(list(itertools.product(range(CONFIG.vocabulary), repeat=head.generated)), np.int32)
    others = ((0, 0), (0, CONFIG.subcodes - head.generated))
    every_NQ = np.pad(every_NQ, others, constant_values=CONFIG.silent)
    for b, hidden_D in enumerate(hidden_BLD[:, 2]):
        hidden_1ND = np.broadcast_to(hidden_D, (1, len(every_NQ), CONFIG.width))
        near_1NQ = Near(*(jnp.broadcast_to(ids_Q, (1, *every_NQ.shape)) for ids_Q in at(near, b, 2)))
        scores = jax.jit(head.scores)(hidden_1ND, every_NQ[None], near_1NQ)
        likelihood_N = np.asarray(scores.log_likelihood[0], np.float64)
        assert np.exp(likelihood_N).sum() == pytest.approx(1, abs=1e-5) and np.exp(likelihood_N).max() < 0.9


def test_a_sub_code_depends_on_those_before_it_unless_it_is_independent(head, hidden_BLD):
    """On which one and on its place, and never on those after it."""

    def seen(*ids_Q):
        def choose(q, logits_BLV):
            return jnp.full((2, 5), jnp.asarray(ids_Q)[q]), logits_BLV

        return np.asarray(head.draw(jnp.asarray(hidden_BLD), choose, ALONE)[1])

    wanted, others = seen(0, 1, 2), (seen(3, 1, 2), seen(0, 0, 2), seen(0, 1, 3))
    moved = [(found != wanted).any(axis=(1, 2, 3)).tolist() for found in others]
    if head.generated < CONFIG.subcodes:
        assert moved == [[False, True], [False, False], [False, False]]
    elif head.autoregressive:
        assert moved == [[False, True, True], [False, False, True], [False] * 3]
        assert (seen(1, 0, 2)[2] != wanted[2]).any(), "which of the two is which"
    else:
        assert not np.any(moved)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_reach_every_parameter(config, head, hidden_BLD, target_BLQ, near, dtype):
    params, narrow = nnx.state(head), dataclasses.replace(config, dtype=dtype)
    graph = nnx.graphdef(nnx.eval_shape(lambda: SubcodeHead(narrow, rngs=nnx.Rngs(0))))

    def loss(params, hidden_BLD):
        return -nnx.merge(graph, params).scores(hidden_BLD, target_BLQ, near).log_likelihood.mean()

    to_params, to_hidden = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, hidden_BLD)
    assert np.abs(to_hidden).max(axis=-1).min() > 0
    for path, leaf in nnx.to_flat_state(to_params):
        assert np.isfinite(leaf[...]).all() and np.abs(leaf[...]).max() > 0, path
    for q in range(head.generated):
        assert np.abs(to_params["enter"][...][:, q]).max() > 0 and np.abs(to_params["to_codes"][...][q]).max() > 0
    if head.autoregressive:  # an embedding of each sub-code that has one after it, and of those that were there
        rows = {(q, code) for q in range(head.generated - 1) for code in target_BLQ[..., q].ravel().tolist()}
        reached = np.abs(to_params["before"][...]).max(axis=-1) > 0
        assert {tuple(place) for place in np.argwhere(reached).tolist()} == rows


def test_one_code_a_token_takes_a_matrix(random_model, hidden_BLD):
    config = dataclasses.replace(CONFIG, subcodes=1)
    assert isinstance(make_head(config, rngs=nnx.Rngs(0)), FlatHead)
    assert isinstance(make_head(CONFIG, rngs=nnx.Rngs(0)), SubcodeHead)
    flat = random_model(FlatHead, config)
    logits = hidden_BLD @ np.asarray(flat.kernel[...])
    np.testing.assert_allclose(flat.logits(jnp.asarray(hidden_BLD)), logits, rtol=1e-5, atol=1e-5)
    target = jnp.zeros((2, 5, 1), jnp.int32)
    found = flat.scores(jnp.asarray(hidden_BLD), target, Near(target, target))
    np.testing.assert_allclose(found.log_likelihood, log_softmax(logits)[..., 0], rtol=1e-5, atol=1e-5)
    ids, seen = flat.draw(jnp.asarray(hidden_BLD), lambda q, logits: (logits.argmax(-1), logits), Near(target, target))
    np.testing.assert_array_equal(ids[..., 0], logits.argmax(-1))
    np.testing.assert_allclose(seen[0], logits, rtol=1e-5, atol=1e-5)


def test_one_code_a_token_may_stay(random_model, hidden_BLD):
    flat = random_model(FlatHead, dataclasses.replace(CONFIG, subcodes=1, copies=True, copies_slower=True))
    hidden_BLD, previous_BLQ = jnp.asarray(hidden_BLD), jnp.full((2, 5, 1), 2).at[:, 0].set(NOTHING)
    slower_BLQ = jnp.full((2, 5, 1), 3).at[:, 1].set(NOTHING)
    raised = np.asarray(flat.logits(hidden_BLD, Near(previous_BLQ, slower_BLQ)) - flat.logits(hidden_BLD))
    for copy, code, absent in ((flat.copy, 2, 0), (flat.copy_slower, 3, 1)):
        gate_BL = np.array(hidden_BLD @ copy.kernel[...][0] + copy.bias[...][0])
        gate_BL[:, absent] = 0
        np.testing.assert_allclose(raised[..., code], gate_BL, rtol=1e-4, atol=1e-4)
    assert not raised[..., [0, 1]].any()


def test_at_first_a_code_is_as_likely_to_stay_as_not():
    head = FlatHead(dataclasses.replace(CONFIG, vocabulary=512, copies=True), rngs=nnx.Rngs(0))
    logits = head.copy(jnp.zeros((1, 1, 512)), jnp.zeros((1, 1, CONFIG.width)), 0, jnp.full((1, 1), 7))
    assert float(jax.nn.softmax(logits)[0, 0, 7]) == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("subcodes", [1, 3])
def test_at_first_the_slower_video_changes_nothing(hidden_BLD, target_BLQ, near, subcodes):
    """So trained weights can go on with it."""
    config = dataclasses.replace(CONFIG, subcodes=subcodes, copies=True, copies_slower=True)
    head, target_BLQ = make_head(config, rngs=nnx.Rngs(0)), target_BLQ[..., :subcodes]
    near = Near(*(ids_BLQ[..., :subcodes] for ids_BLQ in near))
    without = near._replace(slower=jnp.full_like(near.slower, NOTHING))
    found, wanted = (head.scores(jnp.asarray(hidden_BLD), target_BLQ, each) for each in (near, without))
    np.testing.assert_array_equal(found.log_likelihood, wanted.log_likelihood)
