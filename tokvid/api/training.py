"""Training, as `tokvid train` and `tokvid tokenize` do it: `tokvid.fit("recipe.py", "runs/mine")`."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokvid.api.world import World, load
from tokvid.config import Recipe, load_recipe
from tokvid.distributed import check_same
from tokvid.errors import UserError
from tokvid.evaluate.rewards import judge_of
from tokvid.evaluate.samples import training_samples
from tokvid.input_pipeline.sources import open_source
from tokvid.io.compiled import keep_programs
from tokvid.io.files import check_folder
from tokvid.io.settings import changed, to_dict
from tokvid.io.urls import local, text_of
from tokvid.train import loop
from tokvid.train.recipe import fitted
from tokvid.train.reward_step import RewardTraining
from tokvid.train.token_cache import open_token_cache
from tokvid.train.tokenize import write_text_model, write_token_cache
from tokvid.train.tokenizer_step import TokenizerTraining
from tokvid.train.transformer_step import TransformerTraining


def fit(
    recipe: Recipe | str | os.PathLike[str], workdir: str | os.PathLike[str], changes: Mapping[str, Any] | None = None
) -> World:
    """Trains a tokenizer and a transformer on the videos of a recipe, and loads them.

    `recipe` is a Python file, as those in configs/, or a `tokvid.config.Recipe`; `changes` replace some of its fields:
    {"data.path": "my/clips", "train_tokenizer.steps": 2000}. Everything is kept in the folder `workdir`: after an
    interruption, the same call resumes. UserError for a recipe, or videos, that cannot be used; KeyboardInterrupt when
    interrupted, after saving.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(local(text_of(recipe)), [])
    recipe, folder = fitted(changed(recipe, changes or {})), Path(text_of(workdir))
    check_rewarded(recipe, changes or {})
    check_folder(folder)
    keep_programs()
    if not train_tokenizer(recipe, folder):
        raise KeyboardInterrupt("training was interrupted; the same call resumes it")
    write_token_cache(recipe, folder)
    if not train_transformer(recipe, folder):
        raise KeyboardInterrupt("training was interrupted; the same call resumes it")
    return load(folder)


def check_rewarded(recipe: Recipe, changes: Iterable[str]) -> None:
    """UserError for changed settings of rewards where there is none: the transformer would learn by likelihood.

    An empty name is none of these: it takes a recipe's reward away.
    """
    idle = [name for name in changes if name.startswith("reward.") and name != "reward.name"]
    if idle and not recipe.reward.name:
        raise UserError(f"{idle[0]} has no effect without a reward; name one (--rewards, reward.name), or leave it out")


def train_tokenizer(recipe: Recipe, workdir: Path) -> bool:
    """The first of three steps: `workdir`/tokenizer. False where it was interrupted."""
    check_same(to_dict(recipe.tokenizer))  # `loop` compares what must stay on resuming, which isn't all
    text = None
    if recipe.adversary.captions:
        text = write_text_model(recipe, open_source(recipe.data), workdir)
    config = recipe.train_tokenizer
    return loop.train(TokenizerTraining(recipe, text), config, workdir / "tokenizer") >= config.steps


def train_transformer(recipe: Recipe, workdir: Path) -> bool:
    """The last of three steps, after `write_token_cache`: `workdir`/transformer. False where it was interrupted."""
    check_same(to_dict(recipe.transformer))
    cache = open_token_cache(workdir, recipe)
    show = training_samples(workdir, cache)
    if recipe.reward.name:
        judge = judge_of(recipe.reward.name, workdir, cache.text)
        training: TransformerTraining = RewardTraining(recipe, cache, judge, show)
    else:
        training = TransformerTraining(recipe, cache, show)
    return loop.train(training, recipe.train_transformer, workdir / "transformer") >= recipe.train_transformer.steps
