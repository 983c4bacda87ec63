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
from tokvid.transformer.head import Copy, FlatHead, SubcodeHead, make_head

CONFIG = TransformerConfig(vocabulary=4, subcodes=3, silent=1, width=16, head_width=24, head_layers=2, dtype="float32")
NONE = jnp.full((2, 5, CONFIG.subcodes), -1)  # no token before
KINDS = get_args(get_type_hints(TransformerConfig)["head"])


@pytest.fixture(scope="module", params=[*itertools.product(KINDS, (False, True), (0,)), (KINDS[0], True, 2)], ids=str)
def head(request, random_model):
    kind, copies, generated = request.param
    return random_model(SubcodeHead, dataclasses.replace(CONFIG, head=kind, copies=copies, generated=generated))


@pytest.fixture(scope="module")
def hidden_BLD():
    return np.random.default_rng(1).normal(size=(2, 5, CONFIG.width)).astype(np.float32)


@pytest.fixture(scope="module")
def target_BLQ():
    return jnp.asarray(np.random.default_rng(2).integers(CONFIG.vocabulary, size=(2, 5, CONFIG.subcodes)), jnp.int32)


@pytest.fixture(scope="module")
def previous_BLQ(target_BLQ):
    """Tokens before: some sub-codes stay, some don't, and the first two slots have none."""
    rng = np.random.default_rng(3)
    other_BLQ = rng.integers(CONFIG.vocabulary, size=target_BLQ.shape)
    previous_BLQ = np.where(rng.random(target_BLQ.shape) < 0.5, target_BLQ, other_BLQ)
    previous_BLQ[:, :2] = -1
    return jnp.asarray(previous_BLQ, jnp.int32)


def logits_by_hand(head, hidden_D, ids_Q, previous_Q):
    """In NumPy, slot by slot: of each sub-code, given those before it and the token before."""

    def normed(norm, x):
        return x / np.sqrt(np.mean(x**2) + 1e-6) * np.asarray(norm.scale[...])

    made = []
    for q in range(head.generated):
        x = hidden_D.astype(np.float64) @ np.asarray(head.enter[...])[:, q]
        if head.autoregressive:
            x = x + sum(np.asarray(head.before[...])[p, ids_Q[p]] for p in range(q))
        if head.copy is not None and previous_Q[0] >= 0:
            x = x + sum(np.asarray(head.previous[...])[p, previous_Q[p]] for p in range(CONFIG.subcodes))
            if head.autoregressive:
                x = x + sum(np.asarray(head.stayed[...])[p] for p in range(q) if ids_Q[p] == previous_Q[p])
        for norm, layer in zip(head.norms, head.layers, strict=True):
            gate, up, down = (np.asarray(getattr(layer, name)[...], np.float64) for name in ("gate", "up", "down"))
            y = normed(norm, x)
            x = x + (y @ gate / (1 + np.exp(-(y @ gate))) * (y @ up)) @ down
        x = normed(head.last_norm, x)
        made.append(x @ np.asarray(head.to_codes[...])[q])
        if head.copy is not None and previous_Q[0] >= 0:
            gate = x @ np.asarray(head.copy.kernel[...])[q] + np.asarray(head.copy.bias[...])[q]
            made[q][previous_Q[q]] += gate
    return np.stack(made)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_scores_are_those_worked_out_by_hand(head, hidden_BLD, target_BLQ, previous_BLQ):
    found = jax.jit(head.scores)(hidden_BLD, target_BLQ, previous_BLQ)
    for b, slot in np.ndindex(2, 5):
        logits_QV = logits_by_hand(head, hidden_BLD[b, slot], target_BLQ[b, slot], previous_BLQ[b, slot])
        target_G = target_BLQ[b, slot][: head.generated]
        chosen_Q = np.take_along_axis(log_softmax(logits_QV), target_G[:, None], axis=1)
        assert float(found.log_likelihood[b, slot]) == pytest.approx(chosen_Q.sum(), rel=1e-4, abs=1e-4)
        sums_Q = np.log(np.exp(logits_QV).sum(axis=1))
        assert float(found.normaliser[b, slot]) == pytest.approx((sums_Q**2).sum(), rel=1e-4)
        assert float(found.right[b, slot]) == pytest.approx((logits_QV.argmax(1) == target_G).mean())
    assert len(np.unique(np.round(found.right, 3))) > 1


def test_what_is_drawn_is_what_is_scored(head, hidden_BLD, target_BLQ, previous_BLQ):
    """Teacher forcing: the sum of the log-likelihoods that drawing sees, sub-code after sub-code."""

    @jax.jit
    def forced(hidden_BLD):
        seen = []

        def choose(q, logits_BLV):
            seen.append(jnp.take_along_axis(jax.nn.log_softmax(logits_BLV), target_BLQ[..., q, None], axis=-1)[..., 0])
            return target_BLQ[..., q]

        return head.draw(hidden_BLD, choose, previous_BLQ), sum(seen)

    ids_BLQ, likelihood_BL = forced(jnp.asarray(hidden_BLD))
    np.testing.assert_array_equal(ids_BLQ[..., : head.generated], target_BLQ[..., : head.generated])
    assert (ids_BLQ[..., head.generated :] == CONFIG.silent).all()
    scored_BL = head.scores(jnp.asarray(hidden_BLD), target_BLQ, previous_BLQ).log_likelihood
    np.testing.assert_allclose(scored_BL, likelihood_BL, rtol=1e-5, atol=1e-5)


def test_likelihoods_of_all_tokens_sum_to_1(head, hidden_BLD, previous_BLQ):
    every_NQ = np.array(list(itertools.product(range(CONFIG.vocabulary), repeat=head.generated)), np.int32)
    others = ((0, 0), (0, CONFIG.subcodes - head.generated))
    every_NQ = np.pad(every_NQ, others, constant_values=CONFIG.silent)
    for hidden_D, previous_Q in zip(hidden_BLD[:, 2], previous_BLQ[:, 2], strict=True):
        hidden_1ND = np.broadcast_to(hidden_D, (1, len(every_NQ), CONFIG.width))
        previous_1NQ = np.broadcast_to(previous_Q, (1, *every_NQ.shape))
        scores = jax.jit(head.scores)(hidden_1ND, every_NQ[None], previous_1NQ)
        likelihood_N = np.asarray(scores.log_likelihood[0], np.float64)
        assert np.exp(likelihood_N).sum() == pytest.approx(1, abs=1e-5) and np.exp(likelihood_N).max() < 0.9


def test_a_sub_code_depends_on_those_before_it_unless_it_is_independent(head, hidden_BLD):
    """On which one and on its place, and never on those after it."""

    def seen(*ids_Q):
        every = []
        hidden = jnp.asarray(hidden_BLD)
        head.draw(hidden, lambda q, logits: every.append(np.asarray(logits)) or jnp.full((2, 5), ids_Q[q]), NONE)
        return np.stack(every)

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
def test_gradients_reach_every_parameter(head, hidden_BLD, target_BLQ, previous_BLQ, dtype):
    params = nnx.state(head)
    kind, copies = KINDS[not head.autoregressive], head.copy is not None
    config = dataclasses.replace(CONFIG, dtype=dtype, head=kind, copies=copies, generated=head.generated)
    graph = nnx.graphdef(nnx.eval_shape(lambda: SubcodeHead(config, rngs=nnx.Rngs(0))))

    def loss(params, hidden_BLD):
        return -nnx.merge(graph, params).scores(hidden_BLD, target_BLQ, previous_BLQ).log_likelihood.mean()

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
    found = flat.scores(jnp.asarray(hidden_BLD), target, target)
    np.testing.assert_allclose(found.log_likelihood, log_softmax(logits)[..., 0], rtol=1e-5, atol=1e-5)
    ids = flat.draw(jnp.asarray(hidden_BLD), lambda q, logits: logits.argmax(-1), target)
    np.testing.assert_array_equal(ids[..., 0], logits.argmax(-1))


def test_one_code_a_token_may_stay(random_model, hidden_BLD):
    flat = random_model(FlatHead, dataclasses.replace(CONFIG, subcodes=1, copies=True))
    hidden_BLD, previous_BLQ = jnp.asarray(hidden_BLD), jnp.full((2, 5, 1), 2).at[:, 0].set(-1)
    raised = np.asarray(flat.logits(hidden_BLD, previous_BLQ) - flat.logits(hidden_BLD))
    gate_BL = hidden_BLD @ flat.copy.kernel[...][0] + flat.copy.bias[...][0]
    np.testing.assert_allclose(raised[:, 1:, 2], gate_BL[:, 1:], rtol=1e-4, atol=1e-4)
    assert not raised[..., [0, 1, 3]].any() and not raised[:, 0].any()


def test_at_first_a_code_is_as_likely_to_stay_as_not():
    copy = Copy(1, 512, 8, rngs=nnx.Rngs(0))
    logits = copy(jnp.zeros((1, 1, 512)), jnp.zeros((1, 1, 8)), 0, jnp.full((1, 1), 7))
    assert float(jax.nn.softmax(logits)[0, 0, 7]) == pytest.approx(0.5, abs=0.001)
