"""Training: train, tokenize, and the fields of a recipe."""

import pytest

from tokvid.api import training
from tokvid.config import DataConfig, Recipe, TrainConfig, load_recipe
from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe

SMALLEST = """
from tokvid.config import *

layers = ("space", "time")
recipe = Recipe(
    data=DataConfig(size=(16, 16), frames=5, videos=50, threads=1),
    tokenizer=TokenizerConfig(
        size=(16, 16), width=16, heads=2, mlp=16, encoder=layers, decoder=layers, quantizer="fsq", levels=(4, 4)
    ),
    tokens=TokensConfig(videos=40, latent_frames=6, text_samples=100),
    transformer=TransformerConfig(
        vocabulary=16, text_vocabulary=320, latent_frames=4, grid=(2, 2),
        width=16, layers=1, heads=2, kv_heads=2, mlp=16,
    ),
    train_tokenizer=TrainConfig(steps=3, batch=2),
    train_transformer=TrainConfig(steps=9),
)
"""


SUBCODES = "--tokenizer.patch 4 --tokenizer.fold 2 --tokenizer.groups 2 --transformer.subcodes 8"


@pytest.mark.parametrize(
    "tokens", ["", pytest.param(SUBCODES, marks=pytest.mark.slow)], ids=["one code", "eight sub-codes"]
)
def test_training_from_nothing_to_a_story(tokvid, tmp_path, tokens):
    (tmp_path / "recipe.py").write_text(SMALLEST)
    for words in (["train", "tokenizer"], ["tokenize"], ["train", "transformer"]):
        override = [
            "--train_transformer.steps",
            2,
            "--train_transformer.batch=2",
            "--train_transformer.sample_every",
            2,
            *tokens.split(),
        ]
        code, _, err = tokvid(*words, "recipe.py", "--workdir", "run", *override)
        assert code == 0, err
    assert (tmp_path / "run" / "transformer" / "samples" / "0000002.mp4").is_file()
    assert tokvid("story", "--prompt", "a red circle", "--seconds", 1, "--weights", "run")[0] == 0
    assert probe(tmp_path / "story.mp4").frames == 8
    code, out, _ = tokvid("inspect", "run")
    assert code == 0 and "kind                     dataset of tokens" in out
    assert tokvid("inspect", "run/transformer/checkpoints/2")[1].startswith("kind                     checkpoint")


def test_fields_of_a_recipe_can_be_changed(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text("from tokvid.config import *\nrecipe = Recipe(data=DataConfig(videos=7))\n")
    words = "--data.fps 2 --train_tokenizer.steps 5 --train_tokenizer.learning_rate=1e-4 --transformer.scan_layers True"
    words += " --train_tokenizer.mesh -1 2 1 1 --data.path=7 --tokenizer.encoder space --data.fit letterbox"
    found = load_recipe(path, words.split())
    assert found.data == DataConfig(videos=7, fps=(2.0,), path="7", fit="letterbox")
    assert found.train_tokenizer == TrainConfig(steps=5, learning_rate=1e-4, mesh=(-1, 2, 1, 1))
    assert found.transformer.scan_layers is True and found.tokenizer.encoder == ("space",)
    assert load_recipe(path, []) == Recipe(data=DataConfig(videos=7))


@pytest.mark.parametrize(
    "words, said",
    [
        ("--train_tokeniser.steps 5", "did you mean 'train_tokenizer.steps'?"),
        ("--train_tokenizer.stepz 5", "did you mean 'train_tokenizer.steps'?"),
        ("--steps 5", "unknown field of the recipe 'steps'"),
        ("--data", "unknown field of the recipe 'data'"),
        ("--train_tokenizer.steps five", "recipe.train_tokenizer.steps should be a whole number, got 'five'"),
        ("--train_tokenizer.steps", "--train_tokenizer.steps takes one value, got 0"),
        ("--train_tokenizer.steps 1 2", "--train_tokenizer.steps takes one value, got 2"),
        ("--train_tokenizer.learning_rate NaN", "should be a finite number"),
        ("--data.size 64", "recipe.data.size should be a list of 2, got [64]"),
        ("--data.fit stretch", "recipe.data.fit: unknown value 'stretch'"),
        ("steps", "fields are changed like this"),
    ],
)
def test_fields_that_cannot_be_changed_so_are_refused(tmp_path, words, said):
    (tmp_path / "recipe.py").write_text("from tokvid.config import *\nrecipe = Recipe()\n")
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "recipe.py", words.split())
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("recipe = 3", "should define `recipe"),
        ("", "should define `recipe"),
        ("\nimport nothing_like_it", "fails in line 2 with ModuleNotFoundError"),
        ("from tokvid.config import *\nTrainConfig(batchsize=4)", "argument 'batchsize' (did you mean 'batch'?)"),
        ("recipe = (", "fails with SyntaxError"),
        ("import sys\nsys.exit(0)", "fails in line 2 with SystemExit: 0"),
        ("from tokvid.errors import UserError\nraise UserError('so it is')", "so it is"),
        (None, "no config file"),
    ],
)
@pytest.mark.parametrize("command", [("train", "tokenizer"), ("tokenize",)])
def test_recipes_that_are_none(refused, tmp_path, command, text, said):
    if text is not None:
        (tmp_path / "recipe.py").write_text(text)
    assert said in refused(*command, "recipe.py", "--workdir", "w")


@pytest.mark.parametrize("done, code", [(True, 0), (False, 143)])
def test_a_training_that_was_stopped_is_not_done(tokvid, tmp_path, monkeypatch, done, code):
    """Launchers start it again, and `&&` goes no further."""
    (tmp_path / "recipe.py").write_text("from tokvid.config import *\nrecipe = Recipe()\n")
    monkeypatch.setattr(training, "train_tokenizer", lambda recipe, workdir: done)
    assert tokvid("train", "tokenizer", "recipe.py", "--workdir", "w")[0] == code
