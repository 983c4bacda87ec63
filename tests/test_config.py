"""Configs come back from JSON as they were, and what doesn't belong is refused in one line that says where."""

import json

import pytest

from tokvid.config import DataConfig, LayoutConfig, Recipe, TokenizerConfig, TrainConfig, TransformerConfig, computed
from tokvid.errors import UserError
from tokvid.io.settings import from_dict, to_dict

RECIPE = Recipe(
    data=DataConfig(size=(36, 64), fps=(1.0, 2.5), fps_rule="lowest"),
    tokenizer=TokenizerConfig(encoder=("space", "space", "time"), quantizer="fsq", levels=(3, 5, 4), dtype="bfloat16"),
    transformer=TransformerConfig(latent_frames=4, grid=(2, 3), scan_layers=True),
    train_tokenizer=TrainConfig(mesh=(2, -1, 1, 1), learning_rate=3e-4),
)


def test_a_recipe_comes_back_from_json_as_it_was():
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(RECIPE)))) == RECIPE
    assert from_dict(Recipe, to_dict(Recipe())) == Recipe()


def test_what_is_not_given_keeps_its_default_and_whole_numbers_may_be_floats():
    made = from_dict(TrainConfig, {"learning_rate": 1, "betas": [0, 0.5]})
    assert made == TrainConfig(learning_rate=1.0, betas=(0.0, 0.5))
    assert isinstance(made.learning_rate, float) and isinstance(made.betas[0], float)


@pytest.mark.parametrize(
    "kind, values, said",
    [
        (Recipe, {"tokeniser": {}}, "config: unknown field 'tokeniser' (did you mean 'tokenizer'?)"),
        (Recipe, {"tokenizer": {"widht": 3}}, "config.tokenizer: unknown field 'widht' (did you mean 'width'?)"),
        (Recipe, {"tokenizer": 3}, "config.tokenizer should be an object of TokenizerConfig's fields, got 3"),
        (Recipe, [], "config should be an object of Recipe's fields, got []"),
        (TokenizerConfig, {"width": "256"}, "config.width should be a whole number, got '256'"),
        (TokenizerConfig, {"width": 256.0}, "config.width should be a whole number, got 256.0"),
        (TokenizerConfig, {"width": True}, "config.width should be a whole number, got True"),
        (TokenizerConfig, {"width": None}, "config.width should be a whole number, got None"),
        (TransformerConfig, {"scan_layers": 1}, "config.scan_layers should be true or false, got 1"),
        (TransformerConfig, {"z_loss": True}, "config.z_loss should be a number, got True"),
        (TransformerConfig, {"z_loss": float("nan")}, "config.z_loss should be a finite number, got nan"),
        (TransformerConfig, {"dtype": "float23"}, "config.dtype: unknown value 'float23' (did you mean 'float32'?)"),
        (DataConfig, {"size": [64]}, "config.size should be a list of 2, got [64]"),
        (DataConfig, {"size": 64}, "config.size should be a list of 2, got 64"),
        (DataConfig, {"size": [64, "64"]}, "config.size[1] should be a whole number, got '64'"),
        (DataConfig, {"fps": "248"}, "config.fps should be a list, got '248'"),
        (DataConfig, {"fps_rule": "lowst"}, "config.fps_rule: unknown value 'lowst' (did you mean 'lowest'?)"),
        (DataConfig, {"fps_rule": []}, "config.fps_rule: unknown value '[]'"),
    ],
)
def test_what_does_not_belong_is_refused(kind, values, said):
    with pytest.raises(UserError) as error:
        from_dict(kind, values)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["patch", "fold", "groups", "temporal_patch", "width", "heads", "mlp", "time_window"])
def test_sizes_of_models_are_positive(name, value):
    with pytest.raises(UserError, match=f"{name} should be 1 or more, got {value}"):
        TokenizerConfig(**{name: value})
    with pytest.raises(UserError, match=r"config: grid should be 1 or more, got \(0, 2\)"):
        from_dict(TransformerConfig, {"latent": [4, 0, 2]})


@pytest.mark.parametrize(
    "kind, values, said",
    [
        (TrainConfig, {"batch": 0}, "batch should be 1 or more, got 0"),
        (TrainConfig, {"accumulate": 0}, "accumulate should be 1 or more, got 0"),
        (TrainConfig, {"clip_norm": -1.0}, "clip_norm should be above 0, got -1"),
        (TrainConfig, {"clip_norm": 0.0}, "clip_norm should be above 0, got 0"),
        (TrainConfig, {"ema": -1.0}, "ema should be 0 or more and below 1, got -1"),
        (TrainConfig, {"ema": 1.0}, "ema should be 0 or more and below 1, got 1"),
        (TrainConfig, {"betas": [0.9, 1.0]}, "betas should be 0 or more and below 1"),
        (TrainConfig, {"steps": 0}, "steps should be 1 or more, got 0"),
        (TrainConfig, {"keep": 0}, "keep should be 1 or more, got 0"),
        (TrainConfig, {"step_timeout": -1.0}, "step_timeout should be 0 or more, got -1"),
        (TrainConfig, {"learning_rate": -1e-3}, "learning_rate should be 0 or more, got -0.001"),
        (TrainConfig, {"log_every": -1}, "log_every should be 0 or more, got -1"),
        (TrainConfig, {"seed": -1}, "seed should be 0 to 4294967295, got -1"),
        (DataConfig, {"seed": 2**32}, "seed should be 0 to 4294967295, got 4294967296"),
        (TokenizerConfig, {"later_codes": []}, "later_codes is empty; give numbers of sub-codes, 0 for all"),
        (TokenizerConfig, {"hysteresis": float("nan")}, "hysteresis should be a finite number"),
    ],
)
def test_what_no_training_can_have_is_refused(kind, values, said):
    with pytest.raises(UserError, match=said):
        from_dict(kind, values)


def test_settings_of_speed_are_no_others():
    """So a training may go on with rematerialisation, say, also one that an earlier version began."""
    slow = TransformerConfig(remat="full", scan_layers=True, attention="xla")
    assert computed(slow) == computed(TransformerConfig()) == computed(to_dict(slow))
    assert computed(TransformerConfig(width=24)) != computed(TransformerConfig())


def test_a_window_of_earlier_versions_is_read():
    config = from_dict(TransformerConfig, {"latent": [4, 3, 2], "vocabulary": 9})
    assert config == TransformerConfig(latent_frames=4, grid=(3, 2), vocabulary=9) and config.latent == (4, 3, 2)


def test_a_retired_field_is_accepted_with_the_value_that_still_holds():
    assert from_dict(TransformerConfig, {"seconds": True, "rate_token": True}) == TransformerConfig()
    with pytest.raises(UserError, match=r"transformer\.seconds can only be True in this version, got False"):
        from_dict(TransformerConfig, {"seconds": False}, "transformer")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            TokenizerConfig(),
            "code_width codes commitment_weight decoder dtype encoder entropy_weight first_frame fold groups "
            "heads hysteresis l1_weight l2_weight levels mlp patch perceptual_weight quantizer size "
            "ssim_weight stillness_weight temporal_patch temporal_weight tile time_window width ",
        ),
        (
            TransformerConfig(),
            "conditions copies dtype grid head head_layers head_width heads kv_heads latent_frames layers mlp "
            "subcodes temporal_patch text_length text_vocabulary ticks_per_second vocabulary "
            "width z_loss ",
        ),
        (LayoutConfig(), "corruption lengths rows scheduled_sampling stalls tasks text_dropout "),
    ],
    ids=["tokenizer", "transformer", "layouts"],
)
def test_a_setting_of_a_later_version_does_not_stop_earlier_checkpoints(config, names):
    """Theirs lack it: with its default, which is in ADDED, it isn't among what has to agree."""
    assert sorted(computed(config)) == names.split()
