"""Recipes for training: each fact is stated once, and the other configs take it from there."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from tokvid import weights
from tokvid.config import SPEED, Recipe, TokenizerConfig, TrainConfig, TransformerConfig, load_recipe
from tokvid.errors import UserError
from tokvid.input_pipeline.sources import source_of
from tokvid.io.settings import from_dict
from tokvid.io.urls import local
from tokvid.tasks.tasks import conditions_of
from tokvid.text.t5 import t5_config
from tokvid.tokenizer.cvivit import latent_shape
from tokvid.tokenizer.quantizers import codes_of, silent_code
from tokvid.transformer import lora_files

HOW = (*SPEED, "dtype", "later_temperature")  # how to compute and sample

log = logging.getLogger(__name__)


def open_recipe(path: Path, overrides: list[str]) -> Recipe:
    """The `fitted` recipe of a config file, with fields changed by `--field.name value`."""
    return fitted(load_recipe(path, overrides))


def fitted(recipe: Recipe) -> Recipe:
    """The recipe with its tokenizer fitted to its data, and its transformer to the tokenizer's tokens and the tasks.

    Facts that the recipe leaves out are filled in; UserError for ones that contradict.
    """
    _warn_of_idle(recipe)
    recipe = _started(recipe)
    size = recipe.tokenizer.size if recipe.tokenizer.size != TokenizerConfig.size else recipe.data.size
    tokenizer, transformer = dataclasses.replace(recipe.tokenizer, size=size), recipe.transformer
    if not transformer.vocabulary:
        codes, (_, *grid) = codes_of(tokenizer), latent_shape(tokenizer, 1, *size)
        facts: dict[str, Any] = {
            "grid": tuple(grid),
            "temporal_patch": tokenizer.temporal_patch,
            "vocabulary": codes.vocabulary,
            "subcodes": codes.per_token,
            "generated": tokenizer.later_codes[0],
            "silent": silent_code(tokenizer),
        }
        for name, value in facts.items():
            if (current := getattr(transformer, name)) not in (value, getattr(TransformerConfig, name)):
                raise UserError(f"transformer.{name} {current} is not the tokenizer's, which is {value}; leave it out")
        transformer = dataclasses.replace(transformer, **facts)
    if recipe.tokens.t5:
        if recipe.adversary.captions or recipe.reward.name:
            raise UserError("adversary.captions and reward.name need the text model's ids; leave out tokens.t5")
        transformer = dataclasses.replace(transformer, text_width=t5_config(local(recipe.tokens.t5)).width)
    named = tuple(name for name, condition in conditions_of(recipe.layouts.tasks).items() if condition.named)
    if not transformer.conditions:
        transformer = dataclasses.replace(transformer, conditions=named)
    if missing := set(named) - set(transformer.conditions):
        raise UserError(f"transformer.conditions {transformer.conditions} lacks {min(missing)}; add it")
    return dataclasses.replace(recipe, tokenizer=tokenizer, transformer=transformer)


def _warn_of_idle(recipe: Recipe) -> None:
    """Warns of settings of data and training that change nothing without others, or for this model.

    They aren't refused: a recipe's `schedule` or `images` may be changed alone, on the command line.
    """
    data, transformer = recipe.data, recipe.train_transformer
    idle = {
        "data.path": data.path and data.source == "shapes" and "shapes are drawn; name the data.source of these files",
        "data.images_path": data.images_path and not data.images and "set data.images, too",
        "data.held_out": data.held_out and source_of(data).held_out and f"{data.source} has held-out videos of its own",
        "train_transformer.perceptual": transformer.perceptual and "it is the tokenizer's; set train_tokenizer's",
        "train_transformer.adversary_learning_rate": transformer.adversary_learning_rate
        and "only the tokenizer has an adversary; set train_tokenizer's",
    }
    for name in ("train_tokenizer", "train_transformer"):
        config = getattr(recipe, name)
        idle |= {
            f"{name}.freeze_steps": config.freeze_steps and not config.freeze and f"set {name}.freeze, too",
            f"{name}.start_without": config.start_without and not config.start and f"set {name}.start, too",
            f"{name}.decay": config.decay != TrainConfig.decay
            and config.schedule == "cosine"
            and f"cosine falls all the time; set {name}.schedule stable, too",
            f"{name}.betas": config.betas != TrainConfig.betas
            and config.optimizer == "adafactor"
            and "adafactor has a decay of its own; choose another optimizer",
        }
    for name, instead in idle.items():
        if instead:
            log.warning("%s has no effect: %s, or leave it out", name, instead)


def _started(recipe: Recipe) -> Recipe:
    """The recipe with the configs of the weights that its transformer starts from, where it leaves these out.

    So it is with the rank of a LoRA. UserError for a LoRA without such weights, or of the tokenizer.
    """
    recipe = _of_rank(recipe)
    start, lora = recipe.train_transformer.start, recipe.train_transformer.lora
    if lora and not start:
        raise UserError(
            f"train_transformer.lora {lora} needs weights to update; name some: --train_transformer.start robots"
        )
    if not start:
        return recipe
    folder = weights.find(start)
    both = {kind: _left_out(getattr(recipe, kind), folder, kind) for kind in ("tokenizer", "transformer")}
    return dataclasses.replace(recipe, **both)


def _of_rank(recipe: Recipe) -> Recipe:
    """The recipe with the rank of the LoRA whose training goes on. UserError for another rank, or other weights."""
    for name in ("lora", "start_lora"):
        if getattr(recipe.train_tokenizer, name):
            raise UserError(f"train_tokenizer.{name}: only the transformer has LoRAs; set train_transformer.{name}")
    config = recipe.train_transformer
    if not config.start_lora:
        return recipe
    if not config.start:
        raise UserError("train_transformer.start_lora needs the weights that it updates: name train_transformer.start")
    about, _ = lora_files.read_lora(config.start_lora)
    if not isinstance(rank := about.get("rank"), int):
        raise UserError(f"{config.start_lora} doesn't say its rank; train it again")
    if config.lora not in (0, rank):
        raise UserError(f"{config.start_lora} has rank {rank}, train_transformer.lora is {config.lora}; leave it out")
    base = weights.describe(weights.find(config.start) / "transformer", "transformer")["fingerprint"]
    if about.get("base") != base:
        raise UserError(
            f"{config.start_lora} was trained on weights {about.get('base')}, {config.start} has {base}; "
            "name the weights that it started from with --train_transformer.start"
        )
    return dataclasses.replace(recipe, train_transformer=dataclasses.replace(config, lora=rank))


def _left_out(config: Any, folder: Path, kind: str) -> Any:
    """`config`, or that of the weights where it says nothing but how to compute."""
    default = type(config)()
    how = {name: getattr(config, name) for name in HOW if hasattr(config, name)}
    if dataclasses.replace(default, **how) != config:
        return config
    about = weights.describe(folder / kind, kind)
    config = from_dict(type(config), about["config"], f"{folder / kind / 'config.json'}")
    return dataclasses.replace(
        config, **{name: value for name, value in how.items() if value != getattr(default, name)}
    )
