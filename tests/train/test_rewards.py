"""Fine-tuning by a reward: that rewards rise, that it goes on where it stopped, and what a bad reward leads to."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

from tokvid import weights
from tokvid.config import (
    DataConfig,
    Recipe,
    RewardConfig,
    TokenizerConfig,
    TokensConfig,
    TrainConfig,
    TransformerConfig,
)
from tokvid.errors import UserError
from tokvid.evaluate.rewards import REWARDS, Judge, Made, judge_of, load_reward, shapes
from tokvid.input_pipeline.text import TextModel
from tokvid.shapes.drawing import ShapesDataset, attributes_of, render
from tokvid.sharding import make_mesh, shard_batch
from tokvid.tokenizer.cvivit import CViViT
from tokvid.train.loop import train
from tokvid.train.reward_step import Judged, RewardTraining
from tokvid.train.state import abstract_state, init_state, make_step
from tokvid.train.token_cache import open_token_cache
from tokvid.train.tokenize import write_token_cache
from tokvid.train.transformer_step import TransformerTraining
from tokvid.train.windows import token_batches
from tokvid.transformer import lora_files
from tokvid.transformer.layout import in_order
from tokvid.transformer.model import Transformer

SIZE = (16, 16)
BAD = r"^the reward brightness of a video of '[^\n]*' "
RECIPE = Recipe(
    data=DataConfig(size=SIZE, frames=5, videos=30, threads=1),
    tokenizer=TokenizerConfig(
        size=SIZE, width=16, heads=2, mlp=32, encoder=("space",), decoder=("time",), quantizer="fsq", levels=(4, 4),
        dtype="float32",
    ),
    transformer=TransformerConfig(
        vocabulary=16, grid=(2, 2), text_vocabulary=320, text_length=48, latent_frames=2, width=16, layers=1, heads=2,
        kv_heads=2, mlp=32, dtype="float32",
    ),
    tokens=TokensConfig(videos=12, latent_frames=3, text_samples=60, held_out=2),
    reward=RewardConfig("brightness", group=6, kept=4, kl=0.01, real=0.0),
    train_transformer=TrainConfig(
        steps=6, batch=8, warmup=0, learning_rate=3e-2, schedule="stable", decay=0.0, weight_decay=0.0, ema=0.0,
        log_every=1, save_every=2, sample_every=0, val_every=0,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, random_model):
    """A token cache, and a transformer to start from that was trained with its text model."""
    folder = tmp_path_factory.mktemp("workdir")
    tokenizer = nnx.state(random_model(CViViT, RECIPE.tokenizer), nnx.Param)
    mark = weights.save(folder / "tokenizer", "tokenizer", RECIPE.tokenizer, tokenizer)
    write_token_cache(RECIPE, folder)
    params = nnx.split(random_model(Transformer, RECIPE.transformer))[1]
    text = TextModel.load(folder / "text.model").fingerprint
    about = {"tokenizer": mark, "text_model": text, "fps": [2.0], "size": SIZE, "layouts": {"tasks": {"infilling": 1}}}
    weights.save(folder / "start" / "transformer", "transformer", RECIPE.transformer, params, steps=9, **about)
    return folder


def small_codes(self, tokens_BTHWQ, *others):
    return np.mean(tokens_BTHWQ < 8, axis=(1, 2, 3, 4))


def tune(workdir, folder, judge, recipe=(), **changes):
    """Trains; gives the lines of the log."""
    config = dataclasses.replace(RECIPE.train_transformer, start=str(workdir / "start"), **changes)
    recipe = dataclasses.replace(RECIPE, train_transformer=config, **dict(recipe))
    train(RewardTraining(recipe, open_token_cache(workdir, recipe), judge), config, folder)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def judge(workdir, monkeypatch):
    """`judge(function)` judges by a function from a video and its prompt."""
    cache = open_token_cache(workdir, RECIPE)

    def judging(reward):
        monkeypatch.setitem(REWARDS, "brightness", lambda made: reward(made.video_THWC, made.prompt))
        return judge_of("brightness", workdir, cache.text)

    return judging


def brightness(video_THWC, prompt):
    assert video_THWC.shape == (3, *SIZE, 3) and video_THWC.dtype == np.uint8 and attributes_of(prompt)
    return float(video_THWC.mean()) / 255


def params(folder):
    return jax.tree.leaves(weights.load(folder, "transformer").params)


def test_rewards_rise_and_the_first_step_is_that_of_the_start(workdir, judge, tmp_path, monkeypatch):
    monkeypatch.setattr(Judge, "judge", small_codes)
    lines = tune(workdir, tmp_path, judge(brightness), steps=10)
    rewards = [line["reward"] for line in lines]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.1, rewards
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-5) and lines[-1]["kl"] > 1e-3
    about = weights.describe(tmp_path, "transformer")
    assert about["layouts"] == {"tasks": {"infilling": 1}} and about["fps"] == [2.0]  # still known from the start


def test_a_lora_is_trained_by_a_reward_and_goes_on(workdir, judge, tmp_path, monkeypatch):
    """From the start with its updates, of which it keeps the tasks; the transformer stays as it is."""
    monkeypatch.setattr(Judge, "judge", small_codes)
    tune(workdir, tmp_path / "first", judge(brightness), lora=2, steps=3)
    first = tmp_path / "first" / lora_files.LORA_FILE
    assert not (tmp_path / "first/weights.safetensors").exists()
    about, factors = lora_files.read_lora(first)
    start = weights.describe(workdir / "start/transformer", "transformer")["fingerprint"]
    assert about["base"] == start and about["layouts"]["tasks"] == {"text_to_video": 1.0}
    assert all(np.abs(factor).max() > 1e-3 for factor in factors.values())

    tasks = {"reward": dataclasses.replace(RECIPE.reward, tasks=("inpaint",))}
    again = {"lora": 2, "start_lora": str(first), "steps": 2}
    line, *_ = tune(workdir, tmp_path / "second", judge(brightness), **again, recipe=tasks, learning_rate=1e-9)
    assert line["kl"] == pytest.approx(0, abs=1e-5)
    about, after = lora_files.read_lora(tmp_path / "second" / lora_files.LORA_FILE)
    assert about["base"] == start and about["layouts"]["tasks"] == {"text_to_video": 1.0, "inpaint": 1.0}
    for name, factor in factors.items():
        np.testing.assert_allclose(after[name], factor, atol=1e-4)


@pytest.mark.slow
def test_nothing_is_lost_to_a_reward_that_raises(workdir, judge, tmp_path):
    asked = 0

    def fails_in_step_4(video_THWC, prompt):
        nonlocal asked
        asked += 1
        return brightness(video_THWC, prompt) if asked != 40 else 1 / 0  # 12 videos a step

    with pytest.raises(UserError, match=BAD + "raised ZeroDivisionError: division by zero; mend it, and run again"):
        tune(workdir, tmp_path / "run", judge(fails_in_step_4), save_every=0)
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
    lines = tune(workdir, tmp_path / "run", judge(brightness), save_every=0)
    whole = tune(workdir, tmp_path / "whole", judge(brightness), save_every=0)
    assert [line["loss"] for line in lines] == [line["loss"] for line in whole]
    for one, other in zip(params(tmp_path / "run"), params(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf, "bright", None], ids=repr)
def test_a_bad_reward_is_one_line(workdir, judge, bad):
    cache = open_token_cache(workdir, RECIPE)
    windows = next(token_batches(cache, 2, 0))
    with pytest.raises(
        UserError, match=BAD + "is [^\n]*, it should be a (finite )?number; mend it, and run again to go on"
    ):
        judge(lambda video_THWC, prompt: bad).judge(windows.tokens, windows.tokens, windows.fps, windows.text)


def test_equal_rewards_leave_the_model_where_it_is(workdir, judge, tmp_path):
    lines = tune(workdir, tmp_path, judge(lambda video_THWC, prompt: 0.3), steps=2)
    assert all(line["judged_apart"] == 0 and abs(line["kl"]) < 1e-5 for line in lines)


def test_groups_that_hardly_differ_count_less(workdir, judge, monkeypatch):
    """Advantages are in units of the batch's spread, not of each group's own; equal rewards have none."""
    rewards = np.array([[0.5, 0.5, 0.5, 0.51], [0, 0, 1, 1], [0.3] * 4], np.float32)
    monkeypatch.setattr(Judge, "judge", lambda self, *windows: rewards.ravel())
    config = dataclasses.replace(RECIPE.train_transformer, batch=12, start=str(workdir / "start"))
    reward = dataclasses.replace(RECIPE.reward, group=4, kept=4)
    recipe = dataclasses.replace(RECIPE, train_transformer=config, reward=reward)
    training, mesh = RewardTraining(recipe, open_token_cache(workdir, recipe), judge(brightness)), make_mesh((1,) * 4)
    state = init_state(training, config, abstract_state(training, config, mesh)[0])
    batches = training.batches()
    advantage_PK = np.asarray(training.prepare(shard_batch(next(batches), mesh), state, mesh).advantage_B).reshape(3, 4)
    batches.close()
    assert advantage_PK.std() == pytest.approx(1) and (advantage_PK[2] == 0).all()
    np.testing.assert_allclose(np.ptp(advantage_PK, axis=1) / np.ptp(advantage_PK[1]), [0.01, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    "reward, changes, said",
    [
        ({}, {"start": ""}, "name their folder with --train_transformer.start"),
        ({}, {"batch": 6}, "batch 6 should be a multiple of reward.kept, the 4 videos of a prompt"),
        ({"tasks": ("continuation",)}, {}, "reward.tasks can be text_to_video, .*, interpolation, got 'continuation'"),
        ({"tasks": ()}, {}, "reward.tasks is empty"),
        (
            {"tasks": ("restyle",)},
            {},
            "needs tokens of the condition edges; give one of its tasks",
        ),
        ({"rows": 2}, {}, "reward.rows can't be all rows"),
        ({"rows": 7}, {}, "rows should be"),
        ({"rows": 1, "tasks": ("inpaint",)}, {}, "windows of inpaint are partly known and drawn token by token"),
    ],
)
def test_what_cannot_be_trained_is_refused(workdir, reward, changes, said):
    config = dataclasses.replace(RECIPE.train_transformer, start=str(workdir / "start"))
    recipe = dataclasses.replace(
        RECIPE,
        reward=dataclasses.replace(RECIPE.reward, **reward),
        train_transformer=dataclasses.replace(config, **changes),
    )
    with pytest.raises(UserError, match=said):
        RewardTraining(recipe, open_token_cache(workdir, recipe), rollouts=None)


def test_the_videos_of_a_prompt_stay_together(workdir, judge):
    """Three prompts of four videos each can't be split in two, though twelve videos can."""
    config = dataclasses.replace(RECIPE.train_transformer, start=str(workdir / "start"), batch=12, accumulate=2)
    recipe, mesh = dataclasses.replace(RECIPE, train_transformer=config), make_mesh((1,) * 4)
    training = RewardTraining(recipe, open_token_cache(workdir, recipe), judge(brightness))
    said = r"batch 12 can't be split over 1 devices in 2 parts, 4 of a prompt together; use a multiple of 8"
    with pytest.raises(UserError, match=said):
        make_step(training, config, mesh, *abstract_state(training, config, mesh))


def test_kept_samples_are_part_of_the_group():
    with pytest.raises(UserError, match=r"kept should be 2 to group \(4\), got 5"):
        RewardConfig("shapes", group=4, kept=5)


def test_rewards_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def short(video, prompt):\n    return -len(video)\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    video_THWC = np.zeros((5, 2, 2, 3), np.uint8)
    assert load_reward("my_rewards:short")(Made(video_THWC, 2.0, "a prompt", video_THWC)) == -5
    (tmp_path / "my_broken.py").write_text("import nothing_like_it\n")
    for name, said in [
        ("shape", r"unknown reward 'shape' \(did you mean 'shapes'\?\); allowed: shapes; or name a function"),
        ("my_rewards:number", "my_rewards has no function 'number'"),
        ("my_rewards:long", "my_rewards has no function 'long'"),
        ("my_broken:f", "my_broken cannot be imported: ModuleNotFoundError: No module named 'nothing_like_it'"),
    ]:
        with pytest.raises(UserError, match=said):
            load_reward(name)


def test_the_reward_of_shapes_reads_the_prompts_attributes():
    story = ShapesDataset(1, 3, segments=(1, 1))[0].story
    segment = story.segments[0]
    video_THWC = render(story, fps=4.0, frames=9, size=64)
    assert shapes(Made(video_THWC, 4.0, segment.caption, video_THWC)) == 1
    other = next(
        each.segments[0].caption
        for each in (ShapesDataset(50, 4, segments=(1, 1))[i].story for i in range(50))
        if each.segments[0].attributes.shape != segment.attributes.shape
    )
    assert 0 <= shapes(Made(video_THWC, 4.0, other, video_THWC)) < 1
    with pytest.raises(UserError, match="'a dog' is no caption of Moving Shapes; captions are like 'a small red"):
        shapes(Made(video_THWC, 4.0, "a dog", video_THWC))


def test_without_a_prompt_the_reward_of_shapes_compares_with_the_real_video():
    """Its object, and where that is."""
    first, second = (ShapesDataset(9, 3, segments=(1, 1))[i].story for i in range(2))
    real, other = (render(story, fps=4.0, frames=9, size=64) for story in (first, second))
    moved = np.roll(real, 20, axis=2)
    rewards = [shapes(Made(video_THWC, 4.0, "", real)) for video_THWC in (real, moved, other, np.zeros_like(real))]
    assert rewards[0] == 1 and 0.8 < rewards[1] < 0.9  # six of seven
    assert rewards[2] < rewards[1] and rewards[3] == 0
    recoloured = real[..., [1, 2, 0]]  # one of the five attributes is wrong, and so not all are right
    assert shapes(Made(recoloured, 4.0, "", real)) == pytest.approx(5 / 7, abs=0.01)
    small = render(first, fps=4.0, frames=9, size=32)
    near = (6 + np.exp(-1)) / 7  # a pixel away, which are two of a world of 64
    assert shapes(Made(np.roll(small, 1, axis=2), 4.0, "", small)) == pytest.approx(near, abs=0.01)


def judged_batch(workdir, task, rows, later=None, **reward):
    """A training from the start, and its first batch."""
    reward = {"group": 3, "kept": 2} | reward
    recipe = dataclasses.replace(
        RECIPE,
        transformer=dataclasses.replace(RECIPE.transformer, later_temperature=later),
        reward=RewardConfig("shapes", (task,), rows, **reward),
        train_transformer=dataclasses.replace(RECIPE.train_transformer, batch=4, start=str(workdir / "start")),
    )
    cache = open_token_cache(workdir, recipe)
    training = RewardTraining(recipe, cache, judge_of("shapes", workdir, cache.text))
    mesh = make_mesh((-1, 1, 1, 1))
    like, _ = abstract_state(training, recipe.train_transformer, mesh)
    state = init_state(training, recipe.train_transformer, like)._replace(params=training.start.params)
    batches = training.batches()
    judged = training.prepare(shard_batch(next(batches), mesh), state, mesh)
    batches.close()
    return training, judged


def start_of(training):
    """The transformer that a training starts from."""
    graph = nnx.split(nnx.eval_shape(lambda: Transformer(training.config, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, training.start.params)


def loss_at_start(training):
    """The loss of a batch under that transformer, and its metrics, as one program."""
    model = start_of(training)
    return jax.jit(lambda judged: training.loss(model, judged, None))


@pytest.mark.parametrize("task, rows", [("text_to_video", 0), ("image_to_video", 1), ("inpaint", 0)])
def test_generated_windows_keep_what_is_known(workdir, task, rows):
    """Whose number differs between windows where a box moves."""
    training, judged = judged_batch(workdir, task, rows)
    assert isinstance(judged, Judged) and isinstance(training.rollouts, Judge)
    tokens, real = np.asarray(judged.windows.tokens), np.asarray(judged.real.tokens).repeat(2, axis=0)
    known = np.asarray(judged.windows.known)
    assert (tokens == real)[known].all() and not (tokens == real)[~known].all()
    assert (np.asarray(judged.windows.start) == 0).all()
    assert (np.asarray(judged.windows.stride) == max(1, 2 * rows)).all()


def test_every_second_video_of_a_group_is_drawn_with_guidance(workdir, monkeypatch):
    """The others are the model's own, whose rewards are logged, and whose divergence from the start counts."""
    monkeypatch.setattr(Judge, "judge", lambda self, tokens_BTHWQ, *others: np.arange(len(tokens_BTHWQ), dtype=float))
    (_, own), (training, guided) = (
        judged_batch(workdir, "text_to_video", 0, group=4, kept=4, guidance=scale) for scale in (1.0, 20.0)
    )
    same_B = (np.asarray(own.windows.tokens) == np.asarray(guided.windows.tokens)).all(axis=(1, 2, 3, 4))
    assert same_B.tolist() == [True, False, True, False]
    assert own.reward_B.tolist() == [1.5] * 4 and guided.reward_B.tolist() == [1.0] * 4
    assert own.own_B.tolist() == [1] * 4 and guided.own_B.tolist() == [1, 0, 1, 0]
    assert guided.advantage_B.tolist() == own.advantage_B.tolist()
    loss = loss_at_start(training)
    for number, far in ((0, True), (1, False)):
        moved = guided._replace(start_BL=guided.start_BL.at[number].add(2.0))
        assert (float(loss(moved)[1]["kl"]) > 0.1) == far


def test_the_loss_is_the_gain_less_the_divergence_and_the_real_windows_by_their_weights(workdir, monkeypatch):
    monkeypatch.setattr(Judge, "judge", lambda self, tokens_BTHWQ, *others: np.arange(len(tokens_BTHWQ), dtype=float))
    shares = (0.0, 0.0), (0.5, 0.0), (0.0, 2.0)
    several = [judged_batch(workdir, "text_to_video", 0, group=4, kept=4, kl=kl, real=real) for kl, real in shares]
    training, judged = several[0]
    model = start_of(training)

    @jax.jit
    def losses(judged):
        """By each of the weights, and of the real windows alone."""
        moved = judged._replace(start_BL=judged.start_BL + 1.0)
        values, (metrics, *_) = zip(*(each.loss(model, moved, None) for each, _ in several), strict=True)
        return values, metrics, TransformerTraining.loss(training, model, judged.real, None)[0]

    (gain, with_divergence, with_real), metrics, plain = losses(judged)
    assert with_divergence - gain == pytest.approx(0.5 * float(metrics["kl"]), rel=1e-4)
    assert with_real - gain == pytest.approx(2 * float(plain), rel=1e-4)
    assert float(metrics["kl"]) == pytest.approx(np.e - 2, rel=1e-3)  # exp(1) - 1 - 1 for each token


@pytest.mark.parametrize(
    "task, later, random",
    [("text_to_video", None, True), ("text_to_video", 0.0, True), ("inpaint", 1e-3, False), ("inpaint", None, True)],
)
def test_later_frames_are_drawn_and_scored_at_the_weights_own_temperature(workdir, task, later, random):
    """At a low one they are as good as certain. At 0 they would have no likelihood, so 1 stands for it."""
    training, judged = judged_batch(workdir, task, 0, later)
    likelihood_BL = np.asarray(judged.start_BL)
    order_BL = np.asarray(in_order(judged.windows.known))
    new_BL = np.take_along_axis(~np.asarray(judged.windows.known).reshape(order_BL.shape), order_BL, axis=1)
    first_BL = order_BL < math.prod(RECIPE.transformer.grid)
    assert -10 < likelihood_BL[new_BL & first_BL].mean() < -0.5
    assert (likelihood_BL[new_BL & ~first_BL].mean() < -0.5) == random
    value, metrics = loss_at_start(training)(judged)
    assert np.isfinite(value) and float(metrics["kl"]) == pytest.approx(0, abs=1e-4)
