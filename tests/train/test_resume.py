"""Training 4 steps gives what training 2, stopping and going on to 4 gives, bit for bit: both models, real data."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tokvid import weights
from tokvid.config import (
    AdversaryConfig,
    DataConfig,
    LayoutConfig,
    Recipe,
    TokenizerConfig,
    TokensConfig,
    TrainConfig,
    TransformerConfig,
)
from tokvid.input_pipeline.text import TextModel
from tokvid.sharding import make_mesh
from tokvid.tokenizer.cvivit import CViViT
from tokvid.train.checkpoints import Checkpoints
from tokvid.train.loop import agreement, train
from tokvid.train.metrics_log import RATES
from tokvid.train.state import abstract_state
from tokvid.train.token_cache import open_token_cache
from tokvid.train.tokenize import write_token_cache
from tokvid.train.tokenizer_step import TokenizerTraining
from tokvid.train.transformer_step import TransformerTraining

SIZE = (16, 16)
TRAIN = TrainConfig(steps=4, batch=2, learning_rate=1e-2, warmup=1, log_every=3, save_every=0, sample_every=2)
RECIPE = Recipe(
    data=DataConfig(size=SIZE, frames=5, videos=50, threads=2),
    tokenizer=TokenizerConfig(
        size=SIZE,
        width=16,
        heads=2,
        mlp=32,
        encoder=("space",),
        decoder=("time",),
        time_window=2,
        quantizer="fsq",
        levels=(4, 4),
        dtype="float32",
    ),
    transformer=TransformerConfig(
        vocabulary=16,
        text_vocabulary=320,
        text_length=24,
        latent_frames=3,
        grid=(2, 2),
        width=16,
        layers=2,
        heads=2,
        kv_heads=2,
        mlp=32,
        dtype="float32",
    ),
    layouts=LayoutConfig(text_dropout=0.3),
    tokens=TokensConfig(videos=20, latent_frames=5, text_samples=50),
    train_tokenizer=TRAIN,
    train_transformer=TRAIN,
)


# With all that a state can hold: a codebook, an adversary that reads, a network that looks.
VQ = {"quantizer": "vq", "codes": 50, "code_width": 4}
ADVERSARIAL = dataclasses.replace(
    RECIPE,
    tokenizer=dataclasses.replace(RECIPE.tokenizer, **VQ, perceptual_weight=0.5),
    adversary=AdversaryConfig(weight=0.5, width=4, layers=2, start=1, captions=True),
    train_tokenizer=dataclasses.replace(TRAIN, adversary_learning_rate=1e-3),
)


class Watched:
    """A training whose batches are remembered, and which is sent a SIGTERM when it gives out batch `stop_at`."""

    def __init__(self, training, stop_at=None):
        self.training, self.stop_at, self.given = training, stop_at, []

    def __getattr__(self, name):
        return getattr(self.training, name)

    def batches(self, block):
        self.iterator = self.training.batches(block)
        return self

    def __next__(self):
        if len(self.given) == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.given.append(next(self.iterator))
        return self.given[-1]

    def get_state(self):
        return self.iterator.get_state()

    def set_state(self, state):
        self.iterator.set_state(state)

    def close(self):
        self.iterator.close()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, random_model):
    """A tokenizer that was never trained, the tokens it makes, and a network for the perceptual loss."""
    folder = tmp_path_factory.mktemp("workdir")
    model = random_model(CViViT, RECIPE.tokenizer)
    weights.save(folder / "tokenizer", "tokenizer", RECIPE.tokenizer, nnx.state(model, nnx.Param))
    write_token_cache(RECIPE, folder)
    kernel, bias = np.linspace(-1, 1, 4 * 27, dtype=np.float32).reshape(4, 3, 3, 3), np.zeros(4, np.float32)
    save_file({"features.0.weight": kernel, "features.0.bias": bias}, folder / "vgg.safetensors")
    return folder


def make_task(kind, workdir):
    if kind == "tokenizer":
        seen = dataclasses.replace(ADVERSARIAL.train_tokenizer, perceptual=str(workdir / "vgg.safetensors"))
        return TokenizerTraining(
            dataclasses.replace(ADVERSARIAL, train_tokenizer=seen), TextModel.load(workdir / "text.model")
        )
    return TransformerTraining(RECIPE, open_token_cache(workdir, RECIPE))


def state_of(folder, training, config, step):
    with Checkpoints(folder / "checkpoints", 2, agreement(training, config)) as checkpoints:
        found, state, data = checkpoints.restore(abstract_state(training, config, make_mesh(config.mesh))[0])
    assert found == step
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree.leaves_with_path(state)}, data


@pytest.mark.parametrize("kind, optimizer", [("tokenizer", "adamw"), ("transformer", "muon")])
def test_four_steps_are_two_and_two(kind, optimizer, workdir, tmp_path):
    config = dataclasses.replace(getattr(ADVERSARIAL, f"train_{kind}"), optimizer=optimizer)
    whole = Watched(make_task(kind, workdir))
    assert train(whole, config, tmp_path / "whole") == 4

    first, rest = Watched(make_task(kind, workdir), stop_at=1), Watched(make_task(kind, workdir))
    assert train(first, config, tmp_path / "parts") == 2
    halfway, _ = state_of(tmp_path / "parts", first.training, config, 2)
    assert train(rest, config, tmp_path / "parts") == 4

    assert len(first.given) == len(rest.given) == 2
    for batch, other in zip(whole.given, first.given + rest.given, strict=True):
        for name, array in batch._asdict().items():
            np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)

    wanted, wanted_data = state_of(tmp_path / "whole", whole.training, config, 4)
    found, found_data = state_of(tmp_path / "parts", whole.training, config, 4)
    assert wanted_data == found_data
    assert wanted.keys() == found.keys() and any("mu" in name for name in wanted) and any("ema" in n for n in wanted)
    for part in ("'codes'", "'average'", "'adversary'", "'words'", "'perceptual'"):
        assert any(part in name for name in wanted) == (kind == "tokenizer")
    for name, array in wanted.items():
        assert array.tobytes() == found[name].tobytes(), f"{name} differs after resuming"
    moved = [name for name, array in wanted.items() if name.startswith(".params") and (array != halfway[name]).any()]
    assert len(moved) == sum(name.startswith(".params") for name in wanted)

    lines = [(tmp_path / part / "metrics.jsonl").read_text().splitlines() for part in ("whole", "parts")]
    one, other = ([json.loads(line) for line in part] for part in lines)
    for line in one + other:
        for name in RATES:
            line.pop(name, None)
    assert one == other and [line["step"] for line in one] == [3, 4]  # every third, and the last

    ends = [tmp_path / part / "weights.safetensors" for part in ("whole", "parts")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    loaded = weights.load(tmp_path / "parts", kind)
    averaged = wanted[
        ".ema['head']['kernel'].value" if kind == "transformer" else ".ema['tokenizer']['to_latent']['kernel'].value"
    ]
    stored = loaded.params["head"]["kernel"] if kind == "transformer" else loaded.params["to_latent"]["kernel"]
    np.testing.assert_array_equal(stored[...], averaged.astype(np.float16).astype(np.float32))
    if kind == "tokenizer":
        assert sorted(path.name for path in (tmp_path / "parts" / "samples").iterdir()) == [
            "0000002.png",
            "0000004.png",
        ]


def test_a_collapsed_codebook_raises_the_alarm():
    """Under 1 % of the codes, or of the batch's tokens where these are fewer, and never less than two codes."""

    def alarm(levels, used, batch=64):
        tokenizer = dataclasses.replace(RECIPE.tokenizer, levels=levels)
        training = dataclasses.replace(TRAIN, batch=batch)
        recipe = dataclasses.replace(RECIPE, tokenizer=tokenizer, train_tokenizer=training)
        return TokenizerTraining(recipe).alarm({"codes_used": used / np.prod(levels)})

    assert "batches use only 1.0 of 16 codes: the codebook has collapsed" in alarm((4, 4), 1)
    assert "with a lower learning rate, a longer warm-up or fewer codes" in alarm((8, 5, 5, 5), 6)
    assert not alarm((4, 4), 2) and not alarm((8, 5, 5, 5), 10)
    assert not alarm((8, 8, 8, 5, 5, 5), 24, batch=2)  # all that 2 clips of 12 tokens can show of 64,000


@pytest.mark.parametrize("change", [pytest.param({}, marks=pytest.mark.slow), VQ])
def test_an_encoder_that_is_constant_raises_the_alarm_at_the_first_line_after_warm_up(change, tmp_path, caplog):
    class Constant(TokenizerTraining):
        def make_model(self, rngs):
            players = super().make_model(rngs)
            kernel = players.tokenizer.to_latent.kernel
            kernel[...] = jnp.zeros_like(kernel[...])
            return players

    config = dataclasses.replace(
        TRAIN, batch=8, steps=7, warmup=3, log_every=2, sample_every=0, freeze=("tokenizer.to_latent",)
    )
    tokenizer = dataclasses.replace(RECIPE.tokenizer, **change)
    training = Constant(dataclasses.replace(RECIPE, tokenizer=tokenizer, train_tokenizer=config))
    train(training, config, tmp_path)
    (alarm,) = [record.message for record in caplog.records if "collapsed" in record.message]
    assert alarm.startswith("step 4: batches use only 1.0 of")


@pytest.mark.parametrize(
    "frames, window, said", [(7, 3, ""), (5, 4, "data.frames 9"), (7, 4, "data.frames 9"), (1, 4, "")]
)
def test_clips_too_short_to_train_a_stream_are_told(frames, window, said, caplog):
    tokenizer = dataclasses.replace(RECIPE.tokenizer, encoder=("time",), decoder=("space",), time_window=window)
    TokenizerTraining(
        dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, frames=frames), tokenizer=tokenizer)
    )
    assert (said in caplog.text) if said else not caplog.text
