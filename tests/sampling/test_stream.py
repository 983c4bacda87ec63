"""Streams equal what is done at once; windows roll on for ever."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.sampling import stream
from tokvid.sampling.stream import (
    RollingWindow,
    StreamDecoder,
    StreamEncoder,
    frames_of,
    latent_frames_for,
    load_models,
    window_ends,
)

LATENT_FRAMES = 5 * 4  # five windows of the tiny transformer, several of the tokenizer's time window


@pytest.fixture(scope="module")
def video_BTHWC():
    return np.random.default_rng(0).integers(256, size=(2, frames_of(LATENT_FRAMES, 2), 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def ids_BTHW(tiny_models, video_BTHWC):
    """All at once."""
    model = tiny_models.tokenizer.model
    return np.asarray(jax.jit(lambda video: model.encode(video / 127.5 - 1).ids)(jnp.asarray(video_BTHWC, jnp.float32)))


def test_streamed_tokens_are_those_of_the_whole_video(tiny_models, video_BTHWC, ids_BTHW):
    encoder, found, at = StreamEncoder(tiny_models.tokenizer, 2, (16, 16)), [], 0
    for count in (1, 1, 3, 0, 2, 7, 100):
        found.append(encoder.feed(video_BTHWC[:, at : at + count]))
        at += count
    assert [part.shape[1] for part in found] == [1, 0, 2, 0, 1, 3, LATENT_FRAMES - 7]
    found = np.concatenate(found, axis=1)
    assert found.shape == ids_BTHW.shape and len(np.unique(found)) > 10
    assert (found == ids_BTHW).mean() > 0.99  # a latent on the border of two codes may round the other way


def test_streamed_pixels_are_those_of_the_whole_video(tiny_models, ids_BTHW):
    model = tiny_models.tokenizer.model
    whole = np.asarray(jax.jit(model.decode)(jnp.asarray(ids_BTHW)))
    whole = np.clip(np.rint((whole + 1) * 127.5), 0, 255)
    decoder = StreamDecoder(tiny_models.tokenizer, 2, 2, 2)
    parts = [decoder.feed(ids_BTHW[:, first:end]) for first, end in ((0, 0), (0, 1), (1, 6), (6, LATENT_FRAMES))]
    assert [part.shape[1] for part in parts] == [0, 1, 10, 28]
    found = np.concatenate(parts, axis=1)
    assert found.dtype == np.uint8 and found.shape == whole.shape and found.std() > 10
    difference = np.abs(found - whole)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001  # rounding to whole grey levels


def test_frames_that_cannot_be_are_refused(tiny_models):
    with pytest.raises(UserError, match="height 20 is no multiple of the patch 8"):
        StreamEncoder(tiny_models.tokenizer, 1, (20, 16))
    with pytest.raises(UserError, match="at most 8192 are allowed"):
        StreamEncoder(tiny_models.tokenizer, 1, (8000, 8000))


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_frames_and_latent_frames(patch):
    for frames in range(1, 20):
        latent_frames = latent_frames_for(frames, patch)
        assert frames_of(latent_frames - 1, patch) < frames <= frames_of(latent_frames, patch)


@pytest.fixture
def fake_generate(monkeypatch):
    """Instead of a model: the number of the latent frame everywhere; records what was asked for."""
    calls = []

    def generate(graph, params, batch, keys_B, guidance_B, frames, *, known, method, guided):
        filled = np.array(batch.tokens)
        for index in range(known, int(frames)):
            filled[:, index] = batch.start[0] + index
        calls.append((int(batch.start[0]), known, int(frames)))
        return filled

    monkeypatch.setattr(stream, "generate", generate)
    return calls


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_each_window_takes_over_the_last_latent_frames(tiny_models, fake_generate, keep):
    window = RollingWindow(tiny_models, 1, 8.0, keep=keep)
    text = np.full((1, 32), -1, np.int32)
    made = [
        *window.extend(7, text, np.array([1]), np.array([1.0])),
        *window.extend(6, text, np.array([2]), np.array([2.0])),
    ]
    assert np.concatenate(made, axis=1)[0, :, 0, 0].tolist() == list(range(13)) and window.latent_frames == 13
    assert fake_generate[0] == (0, 0, 4)
    for before, (start, known, frames) in zip(
        np.cumsum([part.shape[1] for part in made]), fake_generate[1:], strict=False
    ):
        assert (start + known, known) == (before, keep) and frames <= 4
    assert [*window_ends(0, 7, 4, keep), *window_ends(7, 13, 4, keep)] == np.cumsum([m.shape[1] for m in made]).tolist()


def test_a_window_goes_on_from_what_is_given(tiny_models, fake_generate):
    window = RollingWindow(tiny_models, 1, 8.0)
    window.given(np.full((1, 1, 2, 2), 9, np.int32))
    text = np.full((1, 32), -1, np.int32)
    made = np.concatenate([*window.extend(5, text, np.array([1]), np.array([1.0]))], axis=1)
    assert fake_generate == [(0, 1, 4), (2, 2, 4)] and made[0, :, 0, 0].tolist() == [1, 2, 3, 4, 5]


def test_the_place_in_the_video_decides_not_the_number_of_windows(tiny_models):
    """The same seed in another place gives other tokens: a long still stretch needn't repeat itself."""
    text = np.full((1, 32), -1, np.int32)
    window = RollingWindow(tiny_models, 1, 8.0)
    made = [*window.extend(10, text, np.array([5]), np.array([1.0]))]
    again = RollingWindow(tiny_models, 1, 8.0)
    again.given(np.concatenate(made, axis=1)[:, :6])
    np.testing.assert_array_equal(next(iter(again.extend(2, text, np.array([5]), np.array([1.0])))), made[2])


@pytest.mark.parametrize("keep, fps, said", [(0, 8, "keep"), (4, 8, "keep"), (2, 0, "fps"), (2, float("nan"), "fps")])
def test_windows_that_cannot_be_are_refused(tiny_models, keep, fps, said):
    with pytest.raises(UserError, match=f"{said} should be"):
        RollingWindow(tiny_models, 1, fps, keep=keep)


def test_models_that_do_not_belong_together_are_refused(tiny_weights, tiny_models, tmp_path):
    assert tiny_models.size == (16, 16) and len(tiny_models.mark.split("-")) == 3
    with pytest.raises(UserError, match="no weights folder"):
        load_models(tmp_path / "nowhere")
    shutil.copytree(tiny_weights, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "text.model").read_bytes()
    (tmp_path / "text.model").write_bytes(text[:-200])
    with pytest.raises(UserError, match=r"text\.model"):
        load_models(tmp_path)
    about = (tmp_path / "transformer" / "config.json").read_text()
    (tmp_path / "transformer" / "config.json").write_text(
        about.replace(tiny_models.tokenizer.about["fingerprint"], "f" * 16)
    )
    with pytest.raises(UserError, match="was trained on tokenizer ffffffffffffffff, but the tokenizer here is"):
        load_models(tmp_path)
