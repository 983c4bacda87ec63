"""Streams equal what is done at once; windows roll on for ever."""

import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid import weights
from tokvid.config import Sampling
from tokvid.errors import UserError
from tokvid.sampling import stream
from tokvid.sampling.stream import (
    Prompt,
    RollingWindow,
    Source,
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
def ids_BTHWQ(any_models, video_BTHWC):
    """All at once."""
    model = any_models.tokenizer.model
    return np.asarray(jax.jit(lambda video: model.encode(video / 127.5 - 1).ids)(jnp.asarray(video_BTHWC, jnp.float32)))


def test_streamed_tokens_are_those_of_the_whole_video(any_models, video_BTHWC, ids_BTHWQ):
    encoder, found, at = StreamEncoder(any_models.tokenizer, 2, (16, 16)), [], 0
    for count in (1, 1, 3, 0, 2, 7, 100):
        found.append(encoder.feed(video_BTHWC[:, at : at + count]))
        at += count
    assert [part.shape[1] for part in found] == [1, 0, 2, 0, 1, 3, LATENT_FRAMES - 7]
    found = np.concatenate(found, axis=1)
    assert found.shape == ids_BTHWQ.shape and len(np.unique(found)) > 10
    assert (found == ids_BTHWQ).mean() > 0.99  # a latent on the border of two codes may round the other way


def test_streamed_pixels_are_those_of_the_whole_video(any_models, ids_BTHWQ):
    model = any_models.tokenizer.model
    whole = np.asarray(jax.jit(model.decode)(jnp.asarray(ids_BTHWQ)))
    whole = np.clip(np.rint((whole + 1) * 127.5), 0, 255)
    decoder = StreamDecoder(any_models.tokenizer, 2, 2, 2)
    parts = [decoder.feed(ids_BTHWQ[:, first:end]) for first, end in ((0, 0), (0, 1), (1, 6), (6, LATENT_FRAMES))]
    assert [part.shape[1] for part in parts] == [0, 1, 10, 28]
    found = np.concatenate(parts, axis=1)
    assert found.dtype == np.uint8 and found.shape == whole.shape and found.std() > 10
    difference = np.abs(found - whole)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001  # rounding to whole grey levels


def test_latents_are_decoded_as_their_codes_are(any_models, ids_BTHWQ):
    """And what lies between two codes isn't rounded to either."""
    codes_VC = np.asarray(any_models.tokenizer.model.latents_of_codes())

    def decoded(latents):
        return StreamDecoder(any_models.tokenizer, 2, 2, 2).feed(latents).astype(int)

    wanted, found = decoded(ids_BTHWQ), decoded(codes_VC[ids_BTHWQ])
    np.testing.assert_array_equal(found, wanted)
    between = decoded((codes_VC[ids_BTHWQ] + codes_VC[ids_BTHWQ[::-1]]) / 2)
    assert between.shape == wanted.shape and (between != wanted).mean() > 0.1
    np.testing.assert_array_equal(between[0], between[1])


def test_frames_that_cannot_be_are_refused(tiny_models):
    with pytest.raises(UserError, match="height 20 is no multiple of a token's 8 pixels"):
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

    def generate(graph, params, request, *, sampling, guided):
        batch, first, count = request.batch, int(request.known) // 4, int(request.tokens) // 4
        filled = np.array(batch.tokens)
        for index in range(first, first + count):
            filled[:, index] = batch.start[0] + index
        coarse = [clip.tokens[0, :, 0, 0, 0].tolist() for clip in batch.conditions]
        calls.append((int(batch.start[0]), first, count, coarse, sampling.rows, guided))
        return filled

    monkeypatch.setattr(stream, "generate", generate)
    return calls


def ask(seed=1):
    """A prompt that says nothing, to one video."""
    no_text, one = np.full((1, 32), -1, np.int32), np.ones(1)
    return Prompt(0.0, no_text, no_text, np.array([seed]), one, one)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_each_window_takes_over_the_last_latent_frames(tiny_models, fake_generate, keep):
    window, made, ends = RollingWindow(tiny_models, 1, 8.0, keep=keep), [], [*window_ends(0, 13, 4, keep)]
    for first, end in itertools.pairwise([0, *ends]):
        made.append(window.extend(ask(), np.ones((1, end - first))))
    assert np.concatenate(made, axis=1)[0, :, 0, 0, 0].tolist() == list(range(13)) and window.latent_frames == 13
    assert fake_generate[0][:3] == (0, 0, 4)
    for first, (start, known, count, *_) in zip(ends, fake_generate[1:], strict=False):
        assert (start + known, known) == (first, keep) and known + count <= 4


def test_what_differs_by_no_prompt_is_not_run_twice(tiny_models, fake_generate):
    """With guidance, a window runs under its prompt and under the negative one."""
    silent, spoken = (np.full((2, 32), -1, np.int32), np.full((2, 32), -1, np.int32))
    spoken[0, 0] = 5
    pairs = ((silent, silent), (spoken, spoken), (spoken, silent), (silent, spoken))
    for text_BL, negative_BL in pairs:
        prompt = Prompt(0.0, text_BL, negative_BL, np.array([1, 2]), np.full(2, 3.0), np.full(2, 3.0))
        RollingWindow(tiny_models, 2, 8.0).extend(prompt, np.full((2, 1), 3.0))
    assert [guided for *_, guided in fake_generate] == [False, False, True, True]


def test_a_window_goes_on_from_what_is_given(tiny_models, fake_generate):
    window = RollingWindow(tiny_models, 1, 8.0)
    window.append(np.full((1, 1, 2, 2, 1), 9, np.int32))
    made = [window.extend(ask(), np.ones((1, count))) for count in (3, 2)]
    assert [call[:3] for call in fake_generate] == [(0, 1, 3), (2, 2, 2)]
    assert np.concatenate(made, axis=1)[0, :, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]


def test_a_window_sees_what_of_the_coarse_video_it_fills_in(tiny_models, fake_generate):
    """Fine latent frames 0 to 3 end with coarse 0, ., 1, .; a window of 4 sees 3 coarse ones, none behind the end."""
    pulled = []

    def coarse():
        for index in range(4):
            pulled.append(index)
            yield np.full((1, 1, 2, 2, 1), 20 + index, np.int32)

    window = RollingWindow(tiny_models, 1, 8.0, sources=[Source("coarse", 4.0, coarse())])
    for count, seen, read in ((4, [20, 21, 22], 3), (2, [21, 22, 23], 4), (1, [22, 23, -1], 4)):
        window.extend(ask(), np.ones((1, count)))
        assert fake_generate[-1][3] == [seen] and len(pulled) == read, "no more is read than is seen"


def test_a_videos_first_latent_frame_is_drawn_token_by_token(tiny_models, fake_generate):
    about = tiny_models.transformer.about | {"layouts": {"rows": [0, 2]}}
    models = tiny_models._replace(transformer=tiny_models.transformer._replace(about=about))
    window = RollingWindow(models, 1, 8.0, sampling=Sampling(rows=2))
    made = [window.extend(ask(), np.ones((1, count))) for count in (4, 2)]
    assert [(known, count, rows) for _, known, count, _, rows, _ in fake_generate] == [(0, 1, 0), (1, 3, 2), (2, 2, 2)]
    assert np.concatenate(made, axis=1)[0, :, 0, 0, 0].tolist() == list(range(6))
    RollingWindow(models, 1, 8.0, sampling=Sampling(rows=2)).extend(ask(), np.ones((1, 1)))
    assert fake_generate[-1][1:3] == (0, 1) and fake_generate[-1][4] == 0
    about["layouts"] = {"rows": [2]}  # not where it wasn't trained
    RollingWindow(models, 1, 8.0, sampling=Sampling(rows=2)).extend(ask(), np.ones((1, 4)))
    assert fake_generate[-1][1:3] == (0, 4) and fake_generate[-1][4] == 2


def test_the_place_in_the_video_decides_not_the_number_of_windows(any_models):
    """The same seed in another place gives other tokens: a long still stretch needn't repeat itself."""
    window = RollingWindow(any_models, 1, 8.0)
    made = [window.extend(ask(5), np.ones((1, count))) for count in (4, 2, 2)]
    again = RollingWindow(any_models, 1, 8.0)
    again.append(np.concatenate(made, axis=1)[:, :6])
    np.testing.assert_array_equal(again.extend(ask(5), np.ones((1, 2))), made[2])
    assert (made[1] != made[2]).any()


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
    transformer = tiny_models.transformer
    other = weights.facts(transformer.about) | {"tokenizer": "f" * 16}
    weights.save(tmp_path / "transformer", "transformer", transformer.config, transformer.params, **other)
    with pytest.raises(UserError, match="was trained on tokenizer ffffffffffffffff, but the tokenizer here is"):
        load_models(tmp_path)


def test_weights_that_recall_see_the_first_latent_frame_beside_every_window_of_mid_video(tiny_models, asked):
    about = tiny_models.transformer.about | {"layouts": {"tasks": {"continuation": 1.0, "recall": 1.0}, "rows": [0]}}
    recalling = tiny_models._replace(transformer=tiny_models.transformer._replace(about=about))
    opening = np.arange(8, dtype=np.int32).reshape(1, 2, 2, 2, 1)
    for models, sources in ((tiny_models, []), (recalling, [coarse_source(opening)]), (recalling, [])):
        asked.clear()
        window = RollingWindow(models, 1, 8.0, keep=2, sources=sources)
        window.append(opening)
        for _ in range(3):
            window.extend(no_prompt(models), np.ones((1, 2), np.float32))
        seen = [[clip for clip in batch.conditions if clip.tokens.shape[1] == 1] for batch in asked]
        assert [len(clips) for clips in seen] == ([0, 1, 1] if models is recalling and not sources else [0, 0, 0])
    for (clip,), batch in zip(seen[1:], asked[1:], strict=True):
        np.testing.assert_array_equal(clip.tokens, opening[:, :1])
        assert clip.start == batch.start - 1 and clip.fps == 8 and clip.condition == 0


def coarse_source(tokens):
    return Source("coarse", 4.0, iter([np.repeat(tokens, 8, axis=1)]))


def no_prompt(models):
    no_text = np.full((1, models.transformer.config.text_length), -1, np.int32)
    return Prompt(0.0, no_text, no_text, np.zeros(1, np.uint32), np.ones(1), np.ones(1))
