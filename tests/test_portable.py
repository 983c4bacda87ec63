"""Weights that travel: there and back, byte for byte, under the names that docs/weights.md has."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from tokvid import weights
from tokvid.config import TokenizerConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.io.tensors import fingerprint
from tokvid.portable import bring_in, export

ROOT = Path(__file__).parents[1]
TOKENIZER = TokenizerConfig(
    size=(16, 16), width=24, heads=2, mlp=32, encoder=("space",), decoder=("time", "space"), quantizer="vq", codes=20
)
TRANSFORMER = TransformerConfig(
    vocabulary=20,
    text_vocabulary=300,
    text_length=4,
    latent_frames=2,
    grid=(2, 2),
    width=24,
    layers=3,
    heads=2,
    kv_heads=1,
    mlp=32,
)
KINDS = {
    "tokenizer": ("tokenizer", TOKENIZER),
    "transformer": ("transformer", TRANSFORMER),
    "grouped": ("tokenizer", dataclasses.replace(TOKENIZER, patch=4, fold=2, groups=2)),
    "subcodes": ("transformer", dataclasses.replace(TRANSFORMER, subcodes=8, head_width=16)),
    "copying": (
        "transformer",
        dataclasses.replace(
            TRANSFORMER, subcodes=8, head_width=16, copies=True, copies_slower=True, conditions=("grey",)
        ),
    ),
    "copying one code": ("transformer", dataclasses.replace(TRANSFORMER, copies=True, copies_slower=True)),
    "still": (
        "tokenizer",
        dataclasses.replace(
            TOKENIZER, patch=4, fold=2, groups=2, quantizer="fsq", levels=(4, 4), first_frame="still", recall_first=True
        ),
    ),
    "of a T5": ("transformer", dataclasses.replace(TRANSFORMER, text_width=12)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, random_model):
    folder = tmp_path_factory.mktemp("weights")
    for name, (kind, config) in KINDS.items():
        about = {"tokenizer": "some"} if kind == "transformer" else {}
        model = random_model(weights.KINDS[kind][1], config)
        weights.save(folder / name, kind, config, nnx.state(model), steps=3, **about)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_there_and_back_gives_the_same_bytes(name, folder, tmp_path):
    export(folder / name, tmp_path / "model.safetensors")
    kind = bring_in(tmp_path / "model.safetensors", tmp_path)
    assert kind == KINDS[name][0]
    for file in ("weights.safetensors", "config.json"):
        assert (tmp_path / kind / file).read_bytes() == (folder / name / file).read_bytes()


def test_weights_of_earlier_names_travel_too(folder, tmp_path):
    """What they export, and what was exported before, is what is exported now."""
    earlier = {now: before for before, now in weights.RENAMED.items()}
    for kind in ("tokenizer", "transformer"):
        shutil.copytree(folder / kind, tmp_path / kind)
        tensors = safetensors.numpy.load_file(tmp_path / kind / "weights.safetensors")
        before = {earlier.get(name, name): tensor for name, tensor in tensors.items()}
        assert before.keys() != tensors.keys()
        data, about = safetensors.numpy.save(before), json.loads((tmp_path / kind / "config.json").read_text())
        about["fingerprint"] = fingerprint(about["config"], data)
        del about["sha256"]
        about["format"] = weights.UNSEALED
        (tmp_path / kind / "weights.safetensors").write_bytes(data)
        (tmp_path / kind / "config.json").write_text(json.dumps(about))
        export(folder / kind, tmp_path / "now.safetensors")
        export(tmp_path / kind, tmp_path / "before.safetensors")
        now, then = (safetensors.numpy.load_file(tmp_path / f"{when}.safetensors") for when in ("now", "before"))
        assert now.keys() == then.keys()
        for name, tensor in now.items():
            np.testing.assert_array_equal(then[name], tensor)


@pytest.mark.parametrize("name", KINDS)
def test_every_name_is_documented(name, folder, tmp_path):
    export(folder / name, tmp_path / "model.safetensors")
    names = set(re.findall(r"`([a-zN_.0]+)`", (ROOT / "docs" / "weights.md").read_text()))
    for name in safetensors.numpy.load_file(tmp_path / "model.safetensors"):
        parts = ["N" if part.isdigit() else part for part in name.split(".")]
        assert {".".join(parts), ".".join(parts[2:])} & names, f"{name} isn't in docs/weights.md"


def test_a_linear_layer_computes_what_it_does_here(folder, tmp_path):
    export(folder / "tokenizer", tmp_path / "model.safetensors")
    theirs, ours = (
        safetensors.numpy.load_file(tmp_path / "model.safetensors"),
        weights.load(folder / "tokenizer", "tokenizer"),
    )
    x = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
    block = ours.model.encoder[0]
    made = x @ theirs["encoder.0.attention.query.weight"].T.astype(np.float32)
    wanted = np.einsum("ld,dne->lne", x, block.attention.query[...])
    np.testing.assert_allclose(made.reshape(5, 2, 12), wanted, rtol=1e-5, atol=1e-5)
    heads = np.random.default_rng(1).normal(size=(5, 2, 12)).astype(np.float32)
    made = heads.reshape(5, 24) @ theirs["encoder.0.attention.out.weight"].T.astype(np.float32)
    np.testing.assert_allclose(made, np.einsum("lne,ned->ld", heads, block.attention.out[...]), rtol=1e-5, atol=1e-5)


def test_layers_stand_one_after_the_other(folder, tmp_path):
    export(folder / "transformer", tmp_path / "model.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    ours = weights.load(folder / "transformer", "transformer").params["blocks"]["mlp"]["down"][...]
    for number in range(3):
        np.testing.assert_array_equal(theirs[f"layers.{number}.mlp.down.weight"], ours[number].T)


def changed(folder, tmp_path, change, metadata=True):
    path = tmp_path / "model.safetensors"
    export(folder / "tokenizer", path)
    with safetensors.safe_open(path, "numpy") as file:
        about = file.metadata()
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, about if metadata else None)
    return path


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda tensors: tensors.pop("from_latent.bias"),
            r"from_latent\.bias should .*found nothing",
        ),
        (
            lambda tensors: tensors.update({"quantizer.codes": np.zeros((3, 3), np.float32)}),
            r"quantizer\.codes .*\(20, 32\)",
        ),
        (lambda tensors: tensors["to_latent.bias"].fill(np.nan), "not finite"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(change, said, folder, tmp_path):
    with pytest.raises(UserError, match=said):
        bring_in(changed(folder, tmp_path, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        bring_in(tmp_path / "none.safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="lacks 'tokvid' in its metadata"):
        bring_in(changed(folder, tmp_path, lambda tensors: None, metadata=False), tmp_path / "out")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match=r"cannot be read as a \.safetensors file"):
        bring_in(tmp_path / "text.safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="no weights in"):
        export(tmp_path, tmp_path / "out.safetensors")
    (tmp_path / "config.json").write_text('{"kind": ["tokenizer"]}')
    with pytest.raises(UserError, match="unknown kind of weights in"):
        export(tmp_path, tmp_path / "out.safetensors")
    (tmp_path / "config.json").write_text(100_000 * "[")
    with pytest.raises(UserError, match="is not valid JSON"):
        export(tmp_path, tmp_path / "out.safetensors")
    (tmp_path / "config.json").write_text('{"kind": "vocoder"}')
    with pytest.raises(UserError, match=r"unknown kind of weights in .*'vocoder'"):
        export(tmp_path, tmp_path / "out.safetensors")
    about = {"tokvid": json.dumps({"kind": "vocoder", "config": {}})}
    safetensors.numpy.save_file({}, tmp_path / "vocoder.safetensors", about)
    with pytest.raises(UserError, match=r"unknown kind of model in .*'vocoder'"):
        bring_in(tmp_path / "vocoder.safetensors", tmp_path / "out")


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_a_model_is_not_exported_over_itself(folder, name):
    file = folder / "tokenizer" / name
    before = file.read_bytes()
    with pytest.raises(UserError, match=f"{name} would replace a file of the model itself; name another"):
        export(folder / "tokenizer", file)
    assert file.read_bytes() == before


def test_weights_are_known_by_what_they_are_not_by_their_folders_name(folder, tmp_path):
    (folder / "transformer").rename(folder / "mine")
    try:
        assert export(folder / "mine", tmp_path / "model.safetensors") > 0
        assert bring_in(tmp_path / "model.safetensors", tmp_path) == "transformer"
    finally:
        (folder / "mine").rename(folder / "transformer")


def test_the_config_travels_in_the_metadata(folder, tmp_path):
    export(folder / "tokenizer", tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        about = json.loads(file.metadata()["tokvid"])
    assert about["kind"] == "tokenizer" and about["config"]["codes"] == 20 and about["steps"] == 3
