"""Every recipe in configs/ fits together: data, tokenizer, transformer."""

import math
import re
from pathlib import Path

import jax
import pytest
from flax import nnx

from tokvid.tokenizer.cvivit import latent_shape
from tokvid.tokenizer.quantizers import codes_of
from tokvid.train.recipe import open_recipe
from tokvid.train.tokenizer_step import TokenizerTraining
from tokvid.transformer.model import Transformer

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_fits_together(path):
    recipe = open_recipe(path, [])
    nnx.eval_shape(lambda: TokenizerTraining(recipe).make_model(nnx.Rngs(0)))
    nnx.eval_shape(lambda: Transformer(recipe.transformer, rngs=nnx.Rngs(0)))
    grid = latent_shape(recipe.tokenizer, recipe.data.frames, *recipe.data.size)
    assert recipe.transformer.latent[1:] == grid[1:]
    assert (recipe.transformer.vocabulary, recipe.transformer.subcodes) == codes_of(recipe.tokenizer)
    assert recipe.transformer.temporal_patch == recipe.tokenizer.temporal_patch
    assert recipe.tokens.latent_frames >= recipe.transformer.latent_frames
    for training in (recipe.train_tokenizer, recipe.train_transformer):
        assert training.warmup < training.steps and math.isfinite(training.learning_rate)


PODS = ("cogvideo_9b", "phenaki_1_8b", "base_350m", "tiny")


@pytest.mark.parametrize("name", PODS)
def test_a_recipe_for_pods_has_a_mesh_for_each_kind_that_its_batch_fits(name):
    path = CONFIGS[0].with_name(f"{name}.py")
    recipe, text = open_recipe(path, []), path.read_text()
    found = dict(re.findall(r"^ *(v5p|v5e|v6e|H100)\S* +(-?\d+ -?\d+ -?\d+ -?\d+)\b", text, re.MULTILINE))
    assert {"v5p", "v6e", "H100"} <= found.keys() and f"tokvid plan configs/{name}.py --topology " in text
    for mesh in found.values():
        data, fsdp, tensor, context = map(int, mesh.split())
        assert recipe.train_transformer.batch % (abs(data) * fsdp) == 0
        assert recipe.transformer.heads % tensor == 0 and context == 1


@pytest.mark.parametrize(
    "name, parameters",
    [("cogvideo_9b", (9.0e9, 9.5e9)), ("phenaki_1_8b", (1.75e9, 1.9e9)), ("base_350m", (3.3e8, 3.6e8))],
)
def test_its_name_says_how_many_parameters_it_has(name, parameters):
    config = open_recipe(CONFIGS[0].with_name(f"{name}.py"), []).transformer
    shapes = nnx.eval_shape(lambda: nnx.state(Transformer(config, rngs=nnx.Rngs(0)), nnx.Param))
    assert parameters[0] < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < parameters[1]
    assert config.scan_layers and config.dtype == "bfloat16" and config.remat != "none"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_docstring_says_how_to_run_it(path):
    own = not open_recipe(path, []).train_transformer.start  # otherwise the tokenizer comes with the weights
    text = path.read_text()
    for command in (*["tokvid train tokenizer"] * own, "tokvid tokenize", "tokvid train transformer"):
        assert f"{command} configs/{path.name} --workdir " in text
