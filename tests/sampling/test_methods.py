"""Temperature, top-k, top-p and guidance do what they say, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.config import Sampling, TransformerConfig, check_guidance, check_seed
from tokvid.errors import UserError
from tokvid.sampling.methods import draw, guide, keep_likely, surest

LOGITS_V = np.array([0.1, 2.0, -1.0, 1.5, 0.0, -3.0], np.float32)


def expected_shares(logits_V, sampling):
    """What each code's share of many draws should be, written as one would explain it."""
    shares_V = np.exp(logits_V / sampling.temperature)
    shares_V /= shares_V.sum()
    order = np.argsort(-shares_V)
    if sampling.top_k:
        shares_V[order[sampling.top_k :]] = 0
        shares_V /= shares_V.sum()
    kept = 1 + int(np.sum(np.cumsum(shares_V[order]) < sampling.top_p))  # the fewest that reach top_p
    shares_V[order[kept:]] = 0
    return shares_V / shares_V.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=3.0),
        Sampling(top_k=1),
        Sampling(top_k=3),
        Sampling(top_k=100),
        Sampling(top_p=0.9),
        Sampling(top_p=0.3),
        Sampling(temperature=2.0, top_k=4, top_p=0.8),
    ],
    ids=str,
)
def test_draws_are_shared_out_as_they_should_be(sampling):
    draws = 4000
    keys_B = jax.random.split(jax.random.key(1), draws)
    ids_BL = draw(keys_B[:, None], jnp.broadcast_to(LOGITS_V, (draws, 1, len(LOGITS_V))), sampling)
    found_V = np.bincount(np.asarray(ids_BL).ravel(), minlength=len(LOGITS_V)) / draws
    wanted_V = expected_shares(LOGITS_V, sampling)
    np.testing.assert_allclose(found_V, wanted_V, atol=0.03)
    assert not found_V[wanted_V == 0].any()


def test_temperature_zero_takes_the_likeliest():
    logits_BLV = np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32)
    keys_BL = jax.random.split(jax.random.key(0), (5, 3))
    np.testing.assert_array_equal(
        draw(keys_BL, jnp.asarray(logits_BLV), Sampling(temperature=0)), logits_BLV.argmax(-1)
    )


def test_the_likeliest_code_is_always_kept():
    """However small top_p is, and however sure the model."""
    for logits_V in (LOGITS_V, np.array([60.0, 0.0, -60.0], np.float32)):
        kept_V = np.isfinite(np.asarray(keep_likely(jnp.asarray(logits_V)[None, None], Sampling(top_p=1e-6))))[0, 0]
        np.testing.assert_array_equal(kept_V, logits_V == logits_V.max())


def test_guidance_scales_what_the_text_changes():
    conditional, unconditional = np.random.default_rng(0).normal(size=(2, 4, 1, 5)).astype(np.float32)
    scale_BL = np.array([[0.0], [1.0], [2.0], [7.5]], np.float32)
    guided = np.asarray(guide(*map(jnp.asarray, (conditional, unconditional, scale_BL))))
    np.testing.assert_allclose(guided[0], unconditional[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(guided[1], conditional[1])
    np.testing.assert_allclose(guided[2], 2 * conditional[2] - unconditional[2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(guided[3], 7.5 * conditional[3] - 6.5 * unconditional[3], rtol=1e-5, atol=1e-5)


def test_limited_guidance_leaves_a_rare_code_rare_and_lowers_others():
    """Nothing, an object that the text names, and another one: all three rare but nothing."""
    conditional = jnp.log(jnp.array([[[0.98, 0.0199, 0.0001]]]))
    unconditional = jnp.log(jnp.array([[[0.98, 0.0005, 0.0195]]]))
    scale_BL = jnp.array([[3.0]])
    free, limited = (
        jax.nn.softmax(guide(conditional, unconditional, scale_BL, limit))[0, 0] for limit in (None, jnp.ones((1, 1)))
    )
    assert free[1] > 0.96 and free[2] < 1e-6
    assert limited[1] / limited[0] == pytest.approx(np.e * 0.0199 / 0.98, rel=1e-4) and limited[2] < 1e-6
    sure = jnp.log(jnp.array([[[0.1, 0.6, 0.3]]]))  # where the named object is likeliest, it is raised as ever
    raised = [guide(sure, unconditional, scale_BL, limit) for limit in (None, jnp.ones((1, 1)))]
    np.testing.assert_allclose(*(jax.nn.softmax(each)[0, 0] for each in raised), rtol=1e-5)


def test_the_choice_of_tokens_is_less_random_from_round_to_round():
    """At first chance decides; in the end the least likely tokens are left, whatever the choice's temperature."""
    keys_B, least = jax.random.split(jax.random.key(0), 2), 6
    likelihood_BL = jnp.tile(jnp.where(jnp.arange(4096) < least, -1.0, 0.0), (2, 1))
    for done, decided in ((0.3, False), (0.999, True)):
        none_BL, sampling = jnp.zeros((2, 4096), bool), Sampling(choice_temperature=9.0)
        stands_BL = surest(keys_B, likelihood_BL, none_BL, jnp.float32(done), sampling)
        assert (stands_BL == (jnp.arange(4096) >= least)).all() == decided
        assert (stands_BL[0] == stands_BL[1]).all() == decided


def test_the_choice_is_no_draw_of_a_subcode():
    """Which has a key of its own, derived from the slot's by its number."""
    key, count = jax.random.key(3), 64
    stands_BL = surest(key[None], jnp.zeros((1, count)), jnp.zeros((1, count), bool), jnp.float32(0.5), Sampling())
    chosen = set(np.flatnonzero(stands_BL[0]).tolist())
    for number in range(16):
        noise = jax.random.gumbel(jax.random.fold_in(key, number) if number else key, (count,))
        assert chosen != set(np.argsort(-np.asarray(noise))[: len(chosen)].tolist())


@pytest.mark.parametrize("count, rounds", [(4, 3), (64, 3), (256, 6), (64, 8), (1, 2)])
def test_as_many_tokens_stand_as_the_cosine_says(count, rounds):
    """Also where it leaves a whole number, half of them after two of three rounds: rounding may make a little less."""
    rng = np.random.default_rng(0)
    keys_B, likelihood_BL, stands_BL = (
        jax.random.split(jax.random.key(0), 2),
        jnp.asarray(rng.normal(size=(2, count))),
        None,
    )
    jitted = jax.jit(surest, static_argnames="sampling")
    for number in range(rounds):
        before_BL = np.zeros((2, count), bool) if stands_BL is None else stands_BL
        done = jnp.float32(number + 1) / rounds
        for pick in (surest, jitted):
            stands_BL = np.asarray(
                pick(keys_B, likelihood_BL, jnp.asarray(before_BL), done, sampling=Sampling(rounds=rounds))
            )
            left = int(round(count * np.cos(np.pi / 2 * (number + 1) / rounds), 6))
            assert stands_BL.sum(axis=1).tolist() == [count - left] * 2
            assert stands_BL[before_BL].all()
    assert stands_BL.all()


@pytest.mark.parametrize(
    "make",
    [
        *(lambda value=value: Sampling(temperature=value) for value in (-1, 1e-9, 101, float("nan"), float("inf"))),
        *(
            lambda kind=kind, value=value: kind(later_temperature=value)
            for kind in (Sampling, TransformerConfig)
            for value in (-1, 1e-9, 101, float("nan"), float("inf"))
        ),
        *(lambda value=value: Sampling(top_p=value) for value in (0, -0.5, 1.01, float("nan"))),
        lambda: Sampling(top_k=-1),
        *(lambda value=value: check_guidance(value) for value in (-1, 101, float("nan"), float("inf"))),
        *(lambda value=value: check_seed(value) for value in (-1, 2**32)),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make):
    with pytest.raises(UserError, match=r"should be .* got ") as error:
        make()
    assert "\n" not in str(error.value)
