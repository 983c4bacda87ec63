"""Losses of held-out data: what they are of, and that they depend on nothing but the weights."""

import contextlib
import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokvid import weights
from tokvid.config import (
    DataConfig,
    LayoutConfig,
    Recipe,
    TokenizerConfig,
    TokensConfig,
    TrainConfig,
    TransformerConfig,
)
from tokvid.input_pipeline.records import RecordSource
from tokvid.shapes.drawing import ShapesDataset
from tokvid.tokenizer.cvivit import CViViT
from tokvid.train.loop import train
from tokvid.train.token_cache import HELD_OUT, open_token_cache
from tokvid.train.tokenize import write_token_cache
from tokvid.train.tokenizer_step import FEW_FROM_THE_FIRST, TokenizerTraining
from tokvid.train.transformer_step import TransformerTraining

SIZE = (16, 16)
TRAIN = TrainConfig(
    steps=4, batch=2, warmup=1, log_every=3, save_every=0, sample_every=0, val_every=2, val_batches=3, ema=0.0
)
RECIPE = Recipe(
    data=DataConfig(size=SIZE, frames=5, videos=50, flip=1.0),
    tokenizer=TokenizerConfig(
        size=SIZE, width=16, heads=2, mlp=32, encoder=("space",), decoder=("time",), quantizer="fsq", levels=(4, 4)
    ),
    transformer=TransformerConfig(
        vocabulary=16, grid=(2, 2), text_vocabulary=320, text_length=24, latent_frames=3, width=16, layers=1, heads=2,
        kv_heads=2, mlp=32,
    ),
    layouts=LayoutConfig(corruption=1.0),
    tokens=TokensConfig(videos=20, latent_frames=5, held_out=7),
    train_tokenizer=TRAIN,
    train_transformer=TRAIN,
)  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, random_model):
    folder = tmp_path_factory.mktemp("workdir")
    params = nnx.state(random_model(CViViT, RECIPE.tokenizer), nnx.Param)
    weights.save(folder / "tokenizer", "tokenizer", RECIPE.tokenizer, params)
    write_token_cache(RECIPE, folder)
    return folder


def training_of(kind, workdir, recipe=RECIPE):
    return (
        TokenizerTraining(recipe)
        if kind == "tokenizer"
        else TransformerTraining(recipe, open_token_cache(workdir, recipe))
    )


def some(batches, count):
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


@pytest.mark.parametrize("kind", [pytest.param("tokenizer", marks=pytest.mark.slow), "transformer"])
def test_lines_of_their_own_say_the_mean_over_held_out_batches(kind, workdir, tmp_path):
    training = training_of(kind, workdir)
    train(training, TRAIN, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in validated] == [2, 4] and all("loss" not in line for line in validated)
    batches = some(training.validation(), TRAIN.val_batches)
    model = weights.load(tmp_path, kind)
    made = training.make_model(nnx.Rngs(0))
    nnx.update(made.tokenizer if kind == "tokenizer" else made, nnx.state(nnx.merge(model.graph, model.params)))
    loss = jax.jit(lambda batch: training.loss(made, batch, None)[0])
    losses = [float(loss(jax.tree.map(np.asarray, batch))) for batch in batches]
    assert validated[-1]["val_loss"] == pytest.approx(np.mean(losses), rel=2e-3)  # weights are kept in 16 bits


@pytest.mark.parametrize("kind", [pytest.param("tokenizer", marks=pytest.mark.slow), "transformer"])
def test_nothing_is_drawn(kind, workdir):
    """Neither augmented nor corrupted; the same batches each time."""
    training = training_of(kind, workdir)
    one, other = (some(training.validation(), 2) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    plain = dataclasses.replace(
        RECIPE, data=dataclasses.replace(RECIPE.data, flip=0.0), layouts=LayoutConfig(corruption=0.0)
    )
    unchanged = training_of(kind, workdir, plain)
    jax.tree.map(np.testing.assert_array_equal, one, some(unchanged.validation(), 2))
    model = training.make_model(nnx.Rngs(0))
    batch = jax.tree.map(np.asarray, one[0])
    losses = [float(each.loss(model, batch, None)[0]) for each in (training, unchanged)]
    assert losses[0] == losses[1]


def test_held_out_tokens_are_of_videos_never_trained_on(workdir):
    held_out, trained = (RecordSource(workdir / name) for name in (HELD_OUT, "tokens"))
    assert (len(held_out), len(trained)) == (7, 20)
    told = {caption.text for i in range(7) for caption in held_out[i].captions}
    every = {caption.text for item in map(ShapesDataset(200, 0).__getitem__, range(200)) for caption in item.captions}
    assert told and not told & {caption.text for i in range(20) for caption in trained[i].captions}
    assert not told & every  # compositions that training holds out


def test_held_out_videos_are_tokenized_where_only_they_are_missing(workdir, tmp_path, capsys):
    shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / HELD_OUT)
    write_token_cache(RECIPE, tmp_path / "copy")
    assert "copy/tokens is finished already" in capsys.readouterr().err
    for path in (workdir / HELD_OUT).iterdir():
        assert (tmp_path / "copy" / HELD_OUT / path.name).read_bytes() == path.read_bytes()


def test_no_tokens_of_an_earlier_cache_are_validated_with(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "copy")
    fewer = dataclasses.replace(RECIPE, tokens=dataclasses.replace(RECIPE.tokens, held_out=0))
    shutil.rmtree(tmp_path / "copy" / "tokens")
    write_token_cache(fewer, tmp_path / "copy")
    assert not (tmp_path / "copy" / HELD_OUT).exists()
    assert training_of("transformer", tmp_path / "copy", fewer).validation() is None


def test_a_job_that_ended_while_it_validated_validates_when_it_goes_on(workdir, tmp_path):
    train(training_of("tokenizer", workdir), TRAIN, tmp_path)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8").splitlines()
    assert '"step": 4, "val_' in whole[-1]
    path.write_text("".join(f"{line}\n" for line in whole[:-1]), encoding="utf-8")
    train(training_of("tokenizer", workdir), dataclasses.replace(TRAIN, steps=5), tmp_path)
    again = path.read_text(encoding="utf-8").splitlines()
    assert again.count(whole[-1]) == 1
    train(training_of("tokenizer", workdir), dataclasses.replace(TRAIN, steps=6, val_every=4), tmp_path)
    assert path.read_text(encoding="utf-8").splitlines().count(whole[-1]) == 1


def test_no_batches_are_no_validation(workdir, tmp_path):
    train(training_of("tokenizer", workdir), dataclasses.replace(TRAIN, val_batches=0), tmp_path)
    assert "val_loss" not in (tmp_path / "metrics.jsonl").read_text()


def test_without_held_out_videos_there_is_no_validation(tmp_path):
    data = dataclasses.replace(RECIPE.data, source="records", path=str(tmp_path), flip=0.0)
    assert TokenizerTraining(dataclasses.replace(RECIPE, data=data)).validation() is None


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({}, False),
        ({"time_window": 4}, True),
        ({"time_window": 4, "later_codes": (1, 0)}, False),  # which are meant to see the first frame
    ],
)
def test_a_tokenizer_that_always_sees_the_first_frame_is_warned_of(caplog, changes, warns):
    data = dataclasses.replace(RECIPE.data, frames=9)
    layers = {"encoder": ("space", "time"), "decoder": ("space", "time") * 2}
    settings = layers | {"time_window": 2, "groups": 2, "quantizer": "fsq"} | changes
    tokenizer = dataclasses.replace(RECIPE.tokenizer, **settings)
    TokenizerTraining(dataclasses.replace(RECIPE, data=data, tokenizer=tokenizer))
    assert ("the decoder looks back over" in caplog.text) == warns


@pytest.mark.parametrize(("later", "wanted"), [((3, 0), {0, 3}), ((2, 4), {2, 4})])
def test_training_draws_how_many_sub_codes_later_frames_keep(later, wanted):
    """One number for a clip; its first frame keeps all, or in some clips as few."""
    tokenizer = dataclasses.replace(RECIPE.tokenizer, quantizer="fsq", patch=4, fold=2, later_codes=later)
    training = TokenizerTraining(dataclasses.replace(RECIPE, tokenizer=tokenizer))
    truth = jnp.zeros((400, RECIPE.data.frames, *RECIPE.data.size, 3))
    kept_BT = np.asarray(training._kept_codes(truth, jax.random.key(0)))
    assert (kept_BT[:, 1:] == kept_BT[:, 1:2]).all() and {*np.unique(kept_BT[:, 1])} == wanted
    few_B = (kept_BT[:, 0] == kept_BT[:, 1]) & (kept_BT[:, 1] > 0)
    assert (kept_BT[~few_B, 0] == 0).all()
    assert abs(few_B[kept_BT[:, 1] > 0].mean() - FEW_FROM_THE_FIRST) < 0.06
    assert training._kept_codes(truth, None) is None
