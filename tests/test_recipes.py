"""Every recipe in configs/ fits together: data, tokenizer, transformer."""

import math
from pathlib import Path

import pytest
from flax import nnx

from tokvid.config import load_recipe
from tokvid.tokenizer.cvivit import latent_shape
from tokvid.tokenizer.quantizers import vocabulary
from tokvid.train.tokenizer_step import TokenizerTask
from tokvid.transformer.model import Transformer

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_fits_together(path):
    recipe = load_recipe(path, [])
    nnx.eval_shape(lambda: TokenizerTask(recipe).make_model(nnx.Rngs(0)))
    nnx.eval_shape(lambda: Transformer(recipe.transformer, rngs=nnx.Rngs(0)))
    grid = latent_shape(recipe.tokenizer, recipe.data.frames, *recipe.data.size)
    assert recipe.transformer.latent[1:] == grid[1:]
    assert recipe.transformer.vocabulary == vocabulary(recipe.tokenizer)
    assert recipe.transformer.temporal_patch == recipe.tokenizer.temporal_patch
    assert recipe.tokens.latent_frames >= recipe.transformer.latent[0]
    for training in (recipe.train_tokenizer, recipe.train_transformer):
        assert training.warmup < training.steps and math.isfinite(training.learning_rate)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_docstring_says_how_to_run_it(path):
    text = path.read_text()
    for command in ("tokvid train tokenizer", "tokvid tokenize", "tokvid train transformer"):
        assert f"{command} configs/{path.name} --workdir " in text
