"""The game against the adversary: who is moved by what, and how hard."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tokvid.config import AdversaryConfig
from tokvid.errors import UserError
from tokvid.tokenizer.discriminator import GAMES, Adversary, Judge, play

CONFIG = AdversaryConfig(weight=0.5, width=8, layers=2, start=0, lecam=0.0)


def videos(seed, shape=(2, 3, 16, 16, 3)):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def adversary(config=CONFIG):
    return Adversary(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("shape, wanted", [((2, 5, 16, 24, 3), (4, 6)), ((1, 1, 16, 16, 3), (4, 4))])
def test_a_verdict_for_each_place(frames, shape, wanted):
    verdict = Judge(8, 2, frames, rngs=nnx.Rngs(0))(videos(0, shape))
    assert verdict.shape[0] == shape[0] and verdict.shape[2:] == wanted
    assert verdict.shape[1] == (shape[1] if frames == 1 else -(-shape[1] // 2))


def test_a_judge_of_frames_looks_at_one_at_a_time():
    judge, video = Judge(8, 2, 1, rngs=nnx.Rngs(0)), videos(0)
    other = judge(video.at[:, 1].set(0)) - judge(video)
    assert (other[:, 1] != 0).any() and (other[:, [0, 2]] == 0).all()


@pytest.mark.parametrize("game", GAMES)
def test_the_pull_is_the_verdicts_gradient_at_the_strength_asked_for(game):
    config = dataclasses.replace(CONFIG, game=game)
    made, truth, players = videos(0), videos(1), adversary(config)
    judges = players.judges.values()
    wanted = jax.grad(lambda made: sum(jnp.mean(GAMES[game][1](judge(made))) for judge in judges))(made)
    found = play(config, players, made, truth, jnp.float32(3.0))
    np.testing.assert_allclose(found.pull_BTHWC / 1.5, wanted / jnp.linalg.norm(wanted), rtol=1e-4, atol=1e-6)
    assert found.losses.keys() == {"frame_judge", "space-time_judge"}


def test_the_judges_are_heard_from_the_step_they_start_at():
    config, made, truth = dataclasses.replace(CONFIG, start=2), videos(0), videos(1)
    players = adversary(config)
    pulls = [np.linalg.norm(play(config, players, made, truth, jnp.float32(1.0)).pull_BTHWC) for _ in range(4)]
    assert pulls[:2] == [0, 0] and pulls[2:] == pytest.approx([0.5, 0.5], rel=1e-4)


def test_judges_are_moved_by_their_own_losses_alone_and_learn():
    """What is wrong with a made video (it is too red) is found; and that gives the made video no gradient."""
    graph, params, buffers = nnx.split(adversary(), nnx.Param, ...)
    optimizer = optax.adam(2e-3)

    def losses(params, made, truth):
        players = nnx.merge(graph, params, buffers, copy=True)
        found = play(CONFIG, players, made, truth, jnp.float32(1.0))
        return sum(found.losses.values()), found.metrics

    @jax.jit
    def step(params, state, made, truth):
        (_, metrics), (slopes, on_made) = jax.value_and_grad(losses, (0, 1), has_aux=True)(params, made, truth)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, metrics, on_made

    state = optimizer.init(params)
    for seed in range(25):
        truth = videos(seed)
        made = videos(seed + 1000).at[..., 0].add(0.5)
        params, state, metrics, on_made = step(params, state, made, truth)
        assert not on_made.any()
    assert metrics["frame_judge_right"] > 0.9 and metrics["space-time_judge_right"] > 0.9


def test_lecam_remembers_and_r1_punishes_slopes():
    config = dataclasses.replace(CONFIG, lecam=2.0, r1=0.5, judges=("frame",))
    made, truth, players = videos(0), videos(1), adversary(config)
    judge = players.judges["frame"]
    real, fake = judge(truth), judge(made)
    found = play(config, players, made, truth, jnp.float32(1.0))
    apart = jnp.mean(jax.nn.relu(real) ** 2) + jnp.mean(jax.nn.relu(-fake) ** 2)  # both averages were 0
    assert float(found.losses["frame_lecam"]) == pytest.approx(2 * float(apart), rel=1e-5)
    np.testing.assert_allclose(judge.average[...], [0.01 * real.mean(), 0.01 * fake.mean()], rtol=1e-4)
    slopes = [jax.grad(lambda video: judge(video[None]).mean())(video) for video in truth]
    wanted = 0.25 * np.mean([np.sum(np.square(slope)) for slope in slopes])
    assert float(found.losses["frame_r1"]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("change, said", [({"game": "hing"}, "hinge"), ({"judges": ("frames",)}, "space-time")])
def test_settings_that_cannot_be(change, said):
    with pytest.raises(UserError, match=said):
        adversary(dataclasses.replace(CONFIG, **change))
