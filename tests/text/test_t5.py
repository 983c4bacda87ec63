"""Prompts read by a T5: its encoder equals PyTorch's, is read from the user's files, and trains and samples with us."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece
from flax import nnx

import tokvid
from tokvid import weights
from tokvid.api.training import train_transformer
from tokvid.config import DataConfig, Recipe, TokenizerConfig, TokensConfig, TrainConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.input_pipeline.records import RecordSource
from tokvid.io.settings import from_dict
from tokvid.shapes.drawing import captions_corpus
from tokvid.text.t5 import load_text, read_t5, take_t5
from tokvid.train.recipe import fitted
from tokvid.train.token_cache import open_token_cache
from tokvid.train.tokenize import write_token_cache

STORED = Path(__file__).parent / "t5"  # by scripts/t5_fixture.py
SCRIPT = Path(__file__).parents[2] / "scripts" / "t5_fixture.py"
VERSIONS = ("v1_0", "v1_1", "mt5")
SMALL = ("512", "6", "64", "1024", "8")  # v1.1 and mT5
WIDTH, LENGTH = 12, 10


def difference(folder):
    """The largest difference between our hidden states and those that PyTorch computed, and the largest of these."""
    config, tensors = read_t5(folder)
    model = nnx.merge(*weights.fill(weights.TEXT, config, tensors, folder))
    theirs = safetensors.numpy.load_file(folder / "states.safetensors")
    real_BL = theirs["mask"] > 0
    states_BLD = np.asarray(model(jnp.where(real_BL, theirs["ids"], -1)))
    assert not states_BLD[~real_BL].any()
    return np.abs(states_BLD - theirs["states"])[real_BL].max(), np.abs(theirs["states"]).max()


@pytest.mark.parametrize("version", VERSIONS)
def test_hidden_states_are_those_of_pytorch(version):
    far, largest = difference(STORED / version)
    assert far < 1e-4 and largest > 1


def torch_python():
    if not (python := os.environ.get("TOKVID_TORCH_PYTHON")):
        pytest.skip("needs TOKVID_TORCH_PYTHON, a Python with torch, transformers and protobuf")
    return python


@pytest.mark.torch
def test_hidden_states_are_those_of_pytorch_at_a_published_size(tmp_path):
    command = [torch_python(), SCRIPT, tmp_path, "--dtype", "bfloat16", "--widths", *SMALL]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, timeout=250, env=environment)
    for version in VERSIONS:
        far, largest = difference(tmp_path / version)
        assert far < 1e-4 and largest > 1, version


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """The folder of a random T5 v1.1, of captions' pieces, as `save_pretrained` writes it."""
    folder, rng = tmp_path_factory.mktemp("t5"), np.random.default_rng(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions_corpus(200, seed=0)), model_prefix=str(folder / "spiece"), vocab_size=120,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    about = json.loads((STORED / "v1_1" / "config.json").read_text()) | {"vocab_size": 500, "d_model": WIDTH}
    (folder / "config.json").write_text(json.dumps(about))
    tensors = safetensors.numpy.load_file(STORED / "v1_1" / "model.safetensors")
    tensors["shared.weight"] = rng.normal(size=(500, WIDTH)).astype(np.float16)
    names = sorted(tensors)
    for number, part in enumerate((names[:5], names[5:])):  # large ones are written in several files
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / f"model-{number}.safetensors")
    return folder


@pytest.fixture(scope="module")
def recipe(t5, tiny_weights):
    """Twenty steps on tokens of `tiny_weights`."""
    about = weights.describe(tiny_weights / "tokenizer", "tokenizer")
    return fitted(
        Recipe(
            data=DataConfig(size=(16, 16), fps=(4.0, 8.0), frames=5, videos=30, threads=1),
            tokenizer=from_dict(TokenizerConfig, about["config"]),
            transformer=TransformerConfig(
                latent_frames=3, text_length=LENGTH, width=16, layers=1, heads=2, kv_heads=2, mlp=16
            ),
            tokens=TokensConfig(videos=24, latent_frames=5, held_out=4, t5=str(t5)),
            train_transformer=TrainConfig(steps=20, batch=2, val_every=10, val_batches=1, sample_every=20),
        )
    )


@pytest.fixture(scope="module")
def workdir(recipe, tiny_weights, tmp_path_factory):
    """With a token cache."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_weights / "tokenizer", folder / "tokenizer")
    write_token_cache(recipe, folder)
    return folder


def test_prompts_become_hidden_states(t5, workdir):
    text, (config, tensors) = load_text(workdir), read_t5(t5)
    assert text.width == WIDTH and config.vocabulary == 500
    states_LD = text.encode("a small red circle", LENGTH)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(t5 / "spiece.model"))
    ids = [*pieces.encode("a small red circle"), pieces.eos_id()]
    model = nnx.merge(*weights.fill(weights.TEXT, config, tensors, t5))
    whole_LD = np.asarray(model(jnp.array([ids])))[0]
    assert len(ids) > LENGTH or not states_LD[len(ids) :].any()
    if len(ids) <= LENGTH:
        np.testing.assert_allclose(states_LD[: len(ids)], whole_LD, atol=2e-2)  # float16
    assert not text.encode("", LENGTH).any()
    assert text.encoder(LENGTH)("a blue star").dtype == np.float16


@pytest.fixture
def ids_of(t5, tmp_path, monkeypatch):
    """`ids_of(text)`: what the T5 would read."""
    take_t5(t5, tmp_path)
    text, read = load_text(tmp_path), []

    def states(graph, params, ids_BL):
        read.append([int(each) for each in ids_BL[0] if each >= 0])
        return np.zeros((*ids_BL.shape, WIDTH))

    monkeypatch.setattr("tokvid.text.t5._states", states)
    return lambda prompt: text.encode(prompt, 100) is not None and read[-1]


def test_prompts_cannot_name_ids(ids_of, t5):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(t5 / "spiece.model"))
    for name in ("</s>", "<pad>"):
        ids = ids_of(f"a {name} star")
        assert ids[-1] == pieces.eos_id() and not {pieces.eos_id(), pieces.pad_id()} & set(ids[:-1])


@pytest.mark.torch
def test_ids_are_those_of_transformers(ids_of, t5):
    texts = ["a small red circle", "  a  small\t red\n circle ", "a\u3000blue\u00a0star ", "一个小的红色圆形快速移动"]
    texts += ["a 🙂 star 👩‍👩‍👧", "ﬁ ① É e\u0301", "a\u200bb\x00c", "▁a▁b", "don't (12.5)…", "?"]
    code = "import json, sys, transformers; read = transformers.AutoTokenizer.from_pretrained(sys.argv[1]); "
    code += "print(json.dumps(read(json.load(sys.stdin)).input_ids))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [torch_python(), "-c", code, t5]
    said = subprocess.run(
        command, input=json.dumps(texts), env=environment, check=True, timeout=250, text=True, stdout=subprocess.PIPE
    )
    assert json.loads(said.stdout) == [ids_of(text) for text in texts]


def test_hidden_states_of_captions_are_cached_with_the_tokens(workdir):
    text, source = load_text(workdir), RecordSource(workdir / "tokens")
    for video in (source[0], source[len(source) - 1]):
        assert len(video.states) == len(video.captions)
        for caption, states_LD in zip(video.captions, video.states, strict=True):
            whole_LD = text.encode(caption.text, LENGTH)
            np.testing.assert_array_equal(states_LD, whole_LD[: len(states_LD)])
            assert not whole_LD[len(states_LD) :].any()
    assert source.metadata["text_model"] == source.metadata["tokens"]["t5"] == text.fingerprint


@pytest.mark.slow
def test_a_transformer_is_trained_on_them_and_samples(recipe, workdir):
    assert train_transformer(recipe, workdir)
    losses = [json.loads(line) for line in (workdir / "transformer" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for row in losses for value in row.values() if isinstance(value, float))
    assert (workdir / "transformer" / "samples" / "0000020.mp4").is_file()
    world = tokvid.load(workdir, quiet=True)
    one, same, other = (
        world.generate(prompt, seconds=1.0, guidance=3.0).frames
        for prompt in ("a red circle", "a red circle", "一颗星")
    )
    assert one.shape == (8, 16, 16, 3)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_mistakes_are_reported(recipe, t5, workdir, tmp_path):
    plain = dataclasses.replace(
        recipe,
        tokens=dataclasses.replace(recipe.tokens, t5=""),
        transformer=dataclasses.replace(recipe.transformer, text_width=0),
    )
    with pytest.raises(UserError, match=r"give the same tokens\.t5"):
        open_token_cache(workdir, plain)
    copy = tmp_path / "t5"
    shutil.copytree(t5, copy)
    (copy / "spiece.model").unlink()
    with pytest.raises(UserError, match=r"no spiece\.model"):
        take_t5(copy, tmp_path / "w")
    (copy / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match="lack "):
        take_t5(copy, tmp_path / "w")
    (copy / "model-0.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        take_t5(copy, tmp_path / "w")
    for change in ({"model_type": "bert"}, {"feed_forward_proj": "gated-silu"}, {"d_model": "12"}):
        about = json.loads((t5 / "config.json").read_text()) | change
        (copy / "config.json").write_text(json.dumps(about))
        with pytest.raises(UserError, match=r"config\.json"):
            take_t5(copy, tmp_path / "w")
    assert not (tmp_path / "w").exists()
