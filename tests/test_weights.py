"""Weights folders: what is saved comes back, and what is damaged, foreign or missing is refused in one line."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from tokvid import weights
from tokvid.config import TokenizerConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.io.files import seal
from tokvid.io.settings import to_dict
from tokvid.io.tensors import fingerprint
from tokvid.tokenizer.cvivit import CViViT
from tokvid.transformer.model import Transformer

TOKENIZER = TokenizerConfig(
    size=(8, 8), width=8, heads=2, mlp=8, encoder=("time",), decoder=("space",), quantizer="fsq"
)
TRANSFORMER = TransformerConfig(text_length=2, text_vocabulary=3, width=12, layers=2, heads=2, kv_heads=1, mlp=8)
FIRST = "decoder.0.attention.key"  # of the tokenizer's leaves, in the order of their names


@pytest.fixture(scope="module")
def tokenizer(random_model):
    return nnx.state(random_model(CViViT, TOKENIZER), nnx.Param)


@pytest.fixture
def saved(tokenizer, tmp_path):
    weights.save(tmp_path, "tokenizer", TOKENIZER, tokenizer, steps=7)
    return tmp_path


def refused(folder, kind="tokenizer"):
    """The line that loading fails with."""
    with pytest.raises(UserError) as error:
        weights.load(folder, kind)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


def edit(folder, change):
    """Applies `change` to config.json's values."""
    values = json.loads((folder / "config.json").read_text())
    change(values)
    values["sha256"] = seal(values)
    (folder / "config.json").write_text(json.dumps(values))


def test_what_is_saved_comes_back_to_float16(saved, tokenizer, random_model):
    loaded = weights.load(saved, "tokenizer")
    assert loaded.config == TOKENIZER and loaded.about["steps"] == 7
    assert jax.tree.structure(loaded.params) == jax.tree.structure(tokenizer)
    for given, found in zip(jax.tree.leaves(tokenizer), jax.tree.leaves(loaded.params), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.asarray(given, np.float16))
    assert weights.parameter_count(loaded.params) == weights.parameter_count(tokenizer) > 1000
    assert isinstance(loaded.model, CViViT) and loaded.model.config == TOKENIZER


def test_saving_again_what_was_loaded_gives_the_same_fingerprint(saved, tmp_path):
    loaded = weights.load(saved, "tokenizer")
    again = weights.save(tmp_path / "again", "tokenizer", loaded.config, loaded.params)
    assert again == loaded.about["fingerprint"] and len(again) == 16
    other = dataclasses.replace(loaded.config, time_window=3)
    assert weights.save(tmp_path / "other", "tokenizer", other, loaded.params) != again


def test_the_transformers_stacked_layers_come_back(random_model, tmp_path):
    model = random_model(Transformer, TRANSFORMER)
    weights.save(tmp_path, "transformer", TRANSFORMER, nnx.state(model, nnx.Param))
    query = weights.load(tmp_path, "transformer").model.blocks.attention.query[...]
    np.testing.assert_array_equal(query, np.asarray(model.blocks.attention.query[...], np.float16))


@pytest.mark.parametrize("place", [0, 3, 20, 0.5, -1])
def test_a_flipped_bit_is_refused(saved, place):
    path = saved / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * len(data)) if place == 0.5 else place] ^= 4
    path.write_bytes(data)
    assert "damaged" in refused(saved)


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_truncated_file_is_refused(saved, length):
    path = saved / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert "damaged" in refused(saved)


def test_another_config_or_other_weights_are_refused(saved, tokenizer, tmp_path):
    edit(saved, lambda values: values["config"].update(time_window=3))
    assert "doesn't belong to the config.json beside it" in refused(saved)
    edit(saved, lambda values: values["config"].update(time_window=TOKENIZER.time_window))
    assert weights.load(saved, "tokenizer").config == TOKENIZER
    other = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, tokenizer)
    weights.save(tmp_path / "other", "tokenizer", TOKENIZER, other)
    (tmp_path / "other" / "weights.safetensors").rename(saved / "weights.safetensors")
    assert "doesn't belong to the config.json beside it" in refused(saved)


def test_weights_from_before_a_field_was_added_still_load(tokenizer, tmp_path, monkeypatch):
    """A config that lacks a field takes its default; its fingerprint is of what was written then."""
    monkeypatch.setattr(weights, "to_dict", lambda config: {k: v for k, v in to_dict(config).items() if k != "remat"})
    weights.save(tmp_path, "tokenizer", TOKENIZER, tokenizer)
    monkeypatch.undo()
    assert weights.load(tmp_path, "tokenizer").config == TOKENIZER


def test_weights_from_before_a_name_was_changed_still_load(random_model, tmp_path, monkeypatch):
    """The head was one matrix, and the codebook stood alone."""
    models = {
        "tokenizer": (CViViT, dataclasses.replace(TOKENIZER, quantizer="vq", codes=9, code_width=4)),
        "transformer": (Transformer, TRANSFORMER),
    }
    earlier, renamed = {now: before for before, now in weights.RENAMED.items()}, set()
    save = safetensors.numpy.save

    def as_before(tensors):
        renamed.update(earlier.keys() & tensors.keys())
        return save({earlier.get(name, name): tensor for name, tensor in tensors.items()})

    for kind, (model, config) in models.items():
        params = nnx.state(random_model(model, config))
        monkeypatch.setattr(safetensors.numpy, "save", as_before)
        weights.save(tmp_path / kind, kind, config, params)
        monkeypatch.undo()
        for given, found in zip(
            jax.tree.leaves(params), jax.tree.leaves(weights.load(tmp_path / kind, kind).params), strict=True
        ):
            np.testing.assert_array_equal(found, np.asarray(given, np.float16))
    assert renamed == set(weights.RENAMED.values())


@pytest.mark.parametrize(
    "change, said",
    [
        ({"heads": 1}, f"{FIRST} should have shape (8, 1, 8), found shape (8, 2, 4)"),
        ({"encoder": ["time"] * 2}, "encoder.1.attention.key should have shape (8, 2, 4), found nothing"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused_by_name(tokenizer, saved, change, said):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    other = dataclasses.replace(TOKENIZER, **{name: tuple(v) if name == "encoder" else v for name, v in change.items()})
    with pytest.raises(UserError, match=r"^nothing was written to ") as error:  # for they could never be loaded
        weights.save(saved, "tokenizer", other, tokenizer)
    assert said in str(error.value) and {path.name: path.read_bytes() for path in saved.iterdir()} == before
    config = json.loads(before["config.json"])["config"] | change
    mark = fingerprint(config, before["weights.safetensors"])
    edit(saved, lambda values: values.update(config=config, fingerprint=mark))
    assert said in refused(saved)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_both_files_are_written_or_none(tokenizer, saved, monkeypatch, name):
    before, write = {path.name: path.read_bytes() for path in saved.iterdir()}, Path.open

    def full(self, *arguments, **options):
        if self.suffix == Path(name).suffix and "w" in str(arguments or options.get("mode")):
            raise OSError(28, "No space left on device")
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="No space left on device"):
        weights.save(saved, "tokenizer", TOKENIZER, jax.tree.map(lambda leaf: leaf * 0, tokenizer))
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("value", [np.nan, np.inf, 7e4])  # float16 ends at 65504
def test_values_that_float16_cannot_hold_are_not_saved(tokenizer, saved, value):
    before = (saved / "weights.safetensors").read_bytes()
    bad = jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), tokenizer)
    with pytest.raises(UserError, match=f"{FIRST} has values that float16 cannot hold"):
        weights.save(saved, "tokenizer", TOKENIZER, bad)
    assert (saved / "weights.safetensors").read_bytes() == before


def test_a_changed_fact_is_refused_and_an_unsealed_one_is_read(saved):
    """A fact beside the config, which no fingerprint covers. Earlier versions wrote no checksum of it."""
    path = saved / "config.json"
    before = json.loads(path.read_text())
    assert before["steps"] == 7
    path.write_text(json.dumps(before | {"steps": 8}))
    assert "damaged, or was changed after it was written" in refused(saved)
    without = {name: value for name, value in before.items() if name != "sha256"} | {"steps": 8}
    path.write_text(json.dumps(without | {"sha257": before["sha256"]}))  # the damage may be in the name
    assert "damaged, or was changed after it was written" in refused(saved)
    path.write_text(json.dumps(without | {"format": weights.UNSEALED}))
    assert weights.load(saved, "tokenizer").about["steps"] == 8


def test_values_that_are_not_finite_are_refused(saved):
    tensors = safetensors.numpy.load_file(saved / "weights.safetensors")
    tensors[FIRST][0] = np.nan
    data = safetensors.numpy.save(tensors)
    (saved / "weights.safetensors").write_bytes(data)
    config = json.loads((saved / "config.json").read_text())["config"]
    edit(saved, lambda values: values.update(fingerprint=fingerprint(config, data)))
    assert f"{FIRST} has values that are not finite" in refused(saved)


def test_another_kind_or_format_is_refused(saved):
    said = "has kind 'tokenizer', format 2; this program reads kind 'transformer', formats 1 and 2"
    assert said in refused(saved, "transformer")
    edit(saved, lambda values: values.update(format=3))
    assert "format 3; this program reads kind 'tokenizer', formats 1 and 2" in refused(saved)


def test_a_damaged_config_is_refused(saved):
    edit(saved, lambda values: values["config"].update(widht=8))
    assert "unknown field 'widht' (did you mean 'width'?)" in refused(saved)
    edit(saved, lambda values: values.update(config=[]))
    assert "should be an object of TokenizerConfig's fields, got []" in refused(saved)
    (saved / "config.json").write_text('{"format": 1,')
    assert "is not valid JSON" in refused(saved)


def test_missing_files_are_named(saved, tmp_path):
    assert "no tokenizer weights in" in refused(tmp_path / "nowhere")
    assert "tokvid train tokenizer" in refused(tmp_path / "nowhere")
    (saved / "weights.safetensors").unlink()
    assert "cannot read" in refused(saved)


def test_a_transformer_of_another_tokenizer_is_refused_with_both_fingerprints(saved):
    tokenizer = weights.load(saved, "tokenizer")
    mark = tokenizer.about["codes"]
    for known in (mark, tokenizer.about["fingerprint"]):  # which older transformers keep
        weights.check_pair(tokenizer, tokenizer._replace(about={"tokenizer": known}))
    for other in ("0123456789abcdef", None):
        with pytest.raises(UserError, match=f"trained on tokenizer {other}, but the tokenizer here is {mark}"):
            weights.check_pair(tokenizer, tokenizer._replace(about={"tokenizer": other}))


def test_a_decoder_may_be_trained_on_and_nothing_else(tokenizer, tmp_path):
    def codes(changed="", **config):
        moved = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf + 1 if changed and f"['{changed}']" in jax.tree_util.keystr(path) else leaf,
            tokenizer,
        )
        weights.save(tmp_path, "tokenizer", dataclasses.replace(TOKENIZER, **config), moved)
        return weights.load(tmp_path, "tokenizer").about["codes"]

    before = codes()
    assert codes("decoder") == codes("paint_rest") == codes(l1_weight=3.0, stillness_weight=1.0) == before
    changed = {
        codes("encoder"),
        codes("embed_first"),
        codes("to_latent"),
        codes(time_window=3),
        codes(levels=(8, 8, 8, 8)),
        codes(hysteresis=0.2),
    }
    assert len(changed) == 6 and before not in changed
