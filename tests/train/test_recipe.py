"""A recipe says each thing once."""

import dataclasses

import pytest

from tokvid.config import DataConfig, LayoutConfig, Recipe, TokenizerConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.io.settings import changed
from tokvid.tasks import conditions, tasks
from tokvid.train.recipe import fitted

RECIPE = Recipe(
    data=DataConfig(size=(32, 48)),
    tokenizer=TokenizerConfig(patch=4, fold=2, groups=3, temporal_patch=4, quantizer="fsq", levels=(8, 5)),
)


def test_the_transformer_is_for_the_tokens_of_the_tokenizer():
    recipe = fitted(RECIPE)
    assert recipe.tokenizer.size == (32, 48)
    assert recipe.transformer.latent == (RECIPE.transformer.latent_frames, 4, 6)
    assert (recipe.transformer.vocabulary, recipe.transformer.subcodes, recipe.transformer.temporal_patch) == (
        40,
        12,
        4,
    )
    assert fitted(recipe) == recipe


@pytest.mark.parametrize("name, value", [("grid", (9, 9)), ("subcodes", 5), ("temporal_patch", 3)])
def test_what_is_said_otherwise_is_refused(name, value):
    with pytest.raises(UserError, match=rf"transformer\.{name} .* is not the tokenizer's, which is .*; leave it out"):
        fitted(dataclasses.replace(RECIPE, transformer=TransformerConfig(**{name: value})))


def test_conditions_that_need_an_embedding_have_one(monkeypatch):
    monkeypatch.setitem(conditions.CONDITIONS, "grey", conditions.Condition("a grey clip"))
    monkeypatch.setitem(tasks.TASKS, "colourise", tasks.Task("colours", conditions=("grey",)))
    layouts = LayoutConfig({"colourise": 1, "interpolation": 1})
    recipe = fitted(dataclasses.replace(RECIPE, layouts=layouts))
    assert recipe.transformer.conditions == ("grey",)
    other = dataclasses.replace(recipe.transformer, conditions=("edges",))
    with pytest.raises(UserError, match="lacks grey; add it"):
        fitted(dataclasses.replace(recipe, transformer=other))


@pytest.mark.parametrize(
    "changes, lacking",
    [
        ({"data.path": "clips"}, {"data.source": "folder"}),
        ({"data.images_path": "pictures"}, {"data.images": 1}),
        ({"train_transformer.perceptual": "vgg.safetensors"}, None),
        ({"train_transformer.adversary_learning_rate": 1e-4}, None),
        ({"train_tokenizer.freeze_steps": 5}, {"train_tokenizer.freeze": ["tokenizer.encoder"]}),
        ({"train_transformer.freeze_steps": 5}, {"train_transformer.freeze": ["embedding"]}),
        ({"train_tokenizer.start_without": ["decoder"]}, {"train_tokenizer.start": "runs/other"}),
        ({"train_transformer.decay": 0.5}, {"train_transformer.schedule": "stable"}),
        ({"data.held_out": 5}, {"data.source": "records"}),
        (
            {"train_tokenizer.betas": [0.8, 0.9], "train_tokenizer.optimizer": "adafactor"},
            {"train_tokenizer.optimizer": "adamw"},
        ),
    ],
)
def test_what_has_no_effect_is_told(caplog, changes, lacking):
    fitted(changed(RECIPE, changes))
    (told,) = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert told.startswith(f"{next(iter(changes))} has no effect: ") and told.endswith(", or leave it out")
    caplog.clear()
    if lacking:
        fitted(changed(RECIPE, changes | lacking))
        assert "no effect" not in caplog.text
