"""Each window goes on from what it is given and sees what it should."""

import itertools

import numpy as np
import pytest

from tokvid.config import Sampling
from tokvid.errors import UserError
from tokvid.sampling import window
from tokvid.sampling.prompts import Prompt
from tokvid.sampling.window import RollingWindow, Source, window_ends


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

    monkeypatch.setattr(window, "generate", generate)
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
