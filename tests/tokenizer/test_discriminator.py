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


TEXT = jnp.zeros((2, 0), jnp.int32)


def adversary(config=CONFIG):
    return Adversary(config, rngs=nnx.Rngs(0))


@nnx.jit(static_argnums=0)
def played(config, players, made, truth, strength):
    return play(config, players, made, truth, TEXT, strength)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("shape, wanted", [((2, 5, 16, 24, 3), (4, 6)), ((1, 1, 16, 16, 3), (4, 4))])
def test_a_verdict_for_each_place(frames, shape, wanted):
    verdict = Judge(8, 2, frames, rngs=nnx.Rngs(0))(videos(0, shape), TEXT[: shape[0]])
    assert verdict.shape[0] == shape[0] and verdict.shape[2:] == wanted
    assert verdict.shape[1] == (shape[1] if frames == 1 else -(-shape[1] // 2))


def test_a_judge_of_frames_looks_at_one_at_a_time():
    judge, video = Judge(8, 2, 1, rngs=nnx.Rngs(0)), videos(0)
    other = judge(video.at[:, 1].set(0), TEXT) - judge(video, TEXT)
    assert (other[:, 1] != 0).any() and (other[:, [0, 2]] == 0).all()


@pytest.mark.parametrize("step, frames", [(1, 5), (2, 5), (2, 4)])
def test_frames_side_by_side_are_a_convolution_in_3d(step, frames):
    judge, x = Judge(8, 2, 3, rngs=nnx.Rngs(0)), videos(0, (2, frames, 8, 12, 3))
    convolve = judge.halve[0]
    kernel_THWIO = convolve.kernel[...].reshape(4, 4, 3, 3, 8).transpose(2, 0, 1, 3, 4)
    wanted = jax.lax.conv_general_dilated(
        x, kernel_THWIO, (step, 2, 2), ((1, 1), (1, 1), (1, 1)), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    np.testing.assert_allclose(judge._over_time(convolve, x, step), wanted + convolve.bias[...], atol=1e-5)


@pytest.mark.parametrize("game", GAMES)
def test_the_pull_is_the_verdicts_gradient_at_the_strength_asked_for(game):
    config = dataclasses.replace(CONFIG, game=game)
    made, truth, players = videos(0), videos(1), adversary(config)
    judges = players.judges.values()
    verdicts = jax.jit(jax.grad(lambda made: sum(jnp.mean(GAMES[game][1](judge(made, TEXT))) for judge in judges)))
    wanted = verdicts(made)
    found = played(config, players, made, truth, 3.0)
    np.testing.assert_allclose(found.pull_BTHWC / 1.5, wanted / jnp.linalg.norm(wanted), rtol=1e-4, atol=1e-6)
    assert found.losses.keys() == {"frame_judge", "space-time_judge"}


def test_the_judges_are_heard_from_the_step_they_start_at():
    config, made, truth = dataclasses.replace(CONFIG, start=2), videos(0), videos(1)
    players = adversary(config)
    played = nnx.jit(lambda players: play(config, players, made, truth, TEXT, jnp.float32(1.0)).pull_BTHWC)
    pulls = []
    for step in range(4):
        players.steps[...] = jnp.float32(step)
        pulls.append(np.linalg.norm(played(players)))
    assert pulls[:2] == [0, 0] and pulls[2:] == pytest.approx([0.5, 0.5], rel=1e-4)


def test_judges_are_moved_by_their_own_losses_alone_and_learn():
    """What is wrong with a made video (it is too red) is found; and that gives the made video no gradient."""
    graph, params, buffers = nnx.split(adversary(), nnx.Param, ...)
    optimizer = optax.adam(2e-3)

    def losses(params, made, truth):
        players = nnx.merge(graph, params, buffers, copy=True)
        found = play(CONFIG, players, made, truth, TEXT, jnp.float32(1.0))
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
    real, fake = map(nnx.jit(lambda video: judge(video, TEXT)), (truth, made))
    found = played(config, players, made, truth, 1.0)
    apart = jnp.mean(jax.nn.relu(real) ** 2) + jnp.mean(jax.nn.relu(-fake) ** 2)  # both averages were 0
    assert float(found.losses["frame_lecam"]) == pytest.approx(2 * float(apart), rel=1e-5)
    np.testing.assert_allclose(judge.average[...], [0.01 * real.mean(), 0.01 * fake.mean()], rtol=1e-4)
    judge.average[...] = jnp.array([0.3, -0.4])  # of real videos, and of made ones
    again = played(config, players, made, truth, 1.0)
    apart = jnp.mean(jax.nn.relu(real + 0.4) ** 2) + jnp.mean(jax.nn.relu(0.3 - fake) ** 2)
    assert float(again.losses["frame_lecam"]) == pytest.approx(2 * float(apart), rel=1e-5)
    slopes = map(jax.jit(jax.grad(lambda video: judge(video[None], TEXT[:1]).mean())), truth)
    wanted = 0.25 * np.mean([np.sum(np.square(slope)) for slope in slopes])
    assert float(found.losses["frame_r1"]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("change, said", [({"game": "hing"}, "hinge"), ({"judges": ("frames",)}, "space-time")])
def test_settings_that_cannot_be(change, said):
    with pytest.raises(UserError, match=said):
        adversary(dataclasses.replace(CONFIG, **change))


def test_a_judge_that_reads_sees_whether_the_caption_fits():
    """Bright videos are called 1 and dark ones 2: with the captions swapped, only a reader can tell."""
    judge = Judge(8, 2, 1, words=4, rngs=nnx.Rngs(0))
    graph, params, buffers = nnx.split(judge, nnx.Param, ...)
    bright = jnp.asarray([1.0, -1.0])[:, None, None, None, None]
    right, wrong = jnp.array([[1, -1], [2, -1]]), jnp.array([[2, -1], [1, -1]])

    def verdicts(params, video):
        judge = nnx.merge(graph, params, buffers, copy=True)
        return judge(video, right).mean((1, 2, 3)), judge(video, wrong).mean((1, 2, 3))

    @jax.jit
    def step(params, state, video):
        def loss(params):
            fits, does_not = verdicts(params, video)
            return jnp.mean(jax.nn.softplus(-fits) + jax.nn.softplus(does_not))

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)
    for seed in range(60):
        params, state = step(params, state, 0.3 * videos(seed) + 0.5 * bright)
    fits, does_not = verdicts(params, 0.3 * videos(99) + 0.5 * bright)
    assert (fits > 0).all() and (does_not < 0).all()


def test_padding_and_no_text_say_nothing():
    judge, video = Judge(8, 2, 1, words=4, rngs=nnx.Rngs(0)), videos(0)
    silent = judge(video, TEXT)
    np.testing.assert_array_equal(judge(video, jnp.full((2, 3), -1)), silent)
    one = judge(video, jnp.array([[3, -1], [-1, -1]]))
    assert (one[0] != silent[0]).any() and (one[1] == silent[1]).all()
    np.testing.assert_allclose(judge(video, jnp.array([[3], [3]]))[0], one[0], rtol=1e-5, atol=1e-6)
