"""Windows of tokens: each task's start and known frames, the caption that governs what is generated, the
mixture.
"""

import collections
import dataclasses

import numpy as np
import pytest

from tokvid.config import LayoutConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.input_pipeline.records import RecordSource, RecordWriter, StoredVideo
from tokvid.input_pipeline.text import PADDING, train_text_model
from tokvid.input_pipeline.windows import AT_SWITCH, TASKS, captions_in_force, cut_window, token_batches
from tokvid.types import Caption

CONFIG = TransformerConfig(vocabulary=1000, text_length=8, latent=(4, 2, 3), temporal_patch=2)
WORDS = ("red left", "blue right", "green up")


def video(latent_frames, switches=(), fps=4.0, key="v"):
    """Latent frame j holds the tokens 10 * j; a new caption from each of `switches` (seconds) on."""
    tokens_THW = np.broadcast_to(10 * np.arange(latent_frames)[:, None, None], (latent_frames, 2, 3))
    captions = tuple(Caption(start, WORDS[i]) for i, start in enumerate((0.0, *switches)))
    return StoredVideo(key, 100.0, captions, tokens=tokens_THW.astype(np.uint16), fps=fps)


def cut(video, task, draws=300, frames=4, **options):
    rng = np.random.default_rng(0)
    return [cut_window(video, task, rng, frames=frames, temporal_patch=2, **options) for _ in range(draws)]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return train_text_model(WORDS, tmp_path_factory.mktemp("text") / "text.model", 400)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "tokens"
    with RecordWriter(path, "tokens", {"temporal_patch": 2}) as writer:
        for i in range(12):
            writer.write(video(6 + i % 3, (1.5,) if i % 2 else (), fps=(2.0, 4.0)[i % 4 // 2], key=str(i)))
    return path


def test_captions_in_force():
    """At 4 fps and 2 frames a latent frame: 0 is frame 0, then frames 1-2, 3-4, 5-6: 0.25-0.5 s, 0.75-1 s,
    1.25-1.5 s.
    """
    captions = (Caption(0.0, "a"), Caption(0.75, "b"))
    np.testing.assert_array_equal(captions_in_force(captions, 4, 4.0, 2), [0, 0, 1, 1])
    captions = (
        Caption(0.0, "a"),
        Caption(1.0, "b"),
    )  # latent frame 2 shows both; its middle still shows the first
    np.testing.assert_array_equal(captions_in_force(captions, 4, 4.0, 2), [0, 0, 0, 1])
    np.testing.assert_array_equal(captions_in_force((Caption(0.0, "a"),), 3, 8.0, 2), [0, 0, 0])


def test_windows_from_the_start():
    for task, known in (("text_to_video", 0), ("image_to_video", 1)):
        for window in cut(video(9), task, 5):
            assert (window.start, window.known, window.text) == (0, known, WORDS[0])
            np.testing.assert_array_equal(window.tokens[:, 0, 0], [0, 10, 20, 30])


def test_continuations_of_one_caption():
    windows = cut(video(6), "continuation")
    found = {(window.start, window.known) for window in windows}
    assert found == {(0, 2), (0, 3), *((start, known) for start in (1, 2) for known in (1, 2, 3))}
    for window in windows:
        np.testing.assert_array_equal(window.tokens[:, 0, 0], 10 * (window.start + np.arange(4)))


def test_known_parts_often_end_at_a_switch():
    """Latent frame 5 (2.25-2.5 s at 4 fps) is the first under the second caption."""
    windows = cut(video(20, (2.25,)), "continuation", 2000)
    at_switch = np.mean([window.start + window.known == 5 for window in windows])
    assert AT_SWITCH < at_switch < AT_SWITCH + 0.15
    for window in windows:
        assert window.text == WORDS[window.start + window.known >= 5]


@pytest.mark.parametrize("task", TASKS)
def test_text_holds_for_most_of_what_is_generated(task):
    made = video(16, (1.0, 2.75))
    shown_T = captions_in_force(made.captions, 16, made.fps, 2)
    windows = cut(made, task, frames=6)
    for window in filter(None, windows):
        told = shown_T[window.start + window.known : window.start + 6]
        assert window.text == WORDS[told[0]] and np.mean(told == told[0]) >= 0.75
    if task == "continuation":
        assert all(windows)
    else:  # the first caption holds for 3 of 6 latent frames, or 2 of 5
        assert not any(windows) and all(cut(made, task, frames=6, least_share=0.0))


@pytest.mark.parametrize("task", TASKS)
def test_videos_shorter_than_the_window(task):
    assert not any(cut(video(3), task))


def test_an_image_is_no_continuation():
    assert not any(cut(video(2), "continuation", frames=2)), "something is left to generate, and one frame isn't enough"


def test_batches(cache, text_model):
    batch = next(token_batches(cache, LayoutConfig(), CONFIG, 5, 0, text_model=text_model, threads=0))
    shapes = {name: (array.shape, array.dtype) for name, array in batch._asdict().items()}
    assert shapes == {
        "tokens": ((5, 4, 2, 3), np.int32),
        "start": ((5,), np.int32),
        "fps": ((5,), np.float32),
        "text": ((5, 8), np.int32),
        "known": ((5,), np.int32),
    }


def test_batches_are_what_the_cache_says(cache, text_model):
    """Every sample's tokens are at its start; its text is the caption there, or nothing."""
    iterator = token_batches(cache, LayoutConfig(), CONFIG, 16, 0, text_model=text_model, threads=0)
    seen = collections.Counter()
    for batch in (next(iterator) for _ in range(40)):
        for tokens_THW, start, fps, text_L, known in zip(*batch, strict=True):
            np.testing.assert_array_equal(tokens_THW[:, 0, 0], 10 * (start + np.arange(4)))
            text = text_model.decode(text_L)
            assert text in ("", *WORDS[:2])
            task = "continuation" if start or known > 1 else "image_to_video" if known else "text_to_video"
            seen[task] += 1
            seen["no text"] += (text_L == PADDING).all()
            seen[float(fps)] += 1
    total = 16 * 40
    for what, share in (
        ("text_to_video", 0.4),
        ("image_to_video", 0.1),
        ("continuation", 0.5),
        ("no text", 0.1),
    ):
        assert abs(seen[what] / total - share) < 0.06, what
    assert abs(seen[2.0] / total - 0.5) < 0.1, "a rate isn't drawn less because its videos fit seldom"


@pytest.mark.parametrize("threads", [1, 4])
def test_order_and_resuming(cache, text_model, threads):
    def open_with(threads):
        return token_batches(cache, LayoutConfig(), CONFIG, 5, 3, text_model=text_model, threads=threads)

    whole = open_with(0)
    expected = [next(whole) for _ in range(8)]
    first = open_with(threads)
    got = [next(first) for _ in range(3)]
    second = open_with(threads)
    second.set_state(first.get_state())
    got += [next(second) for _ in range(5)]
    for one, other in zip(got, expected, strict=True):
        for array, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, wanted)
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latent": (4, 3, 3)}, r"2x3 tokens a latent frame.*\(4, 3, 3\)"),
        ({"vocabulary": 20}, "has tokens .*vocabulary is 20"),
        ({"temporal_patch": 4}, "temporal_patch 2, the transformer has 4"),
        ({"text_vocabulary": 10}, "text_vocabulary 10"),
        ({"latent": (30, 2, 3)}, "no window of 30 latent frames"),
    ],
)
def test_what_does_not_belong_together(cache, text_model, change, said):
    with pytest.raises(UserError, match=said):
        config = dataclasses.replace(CONFIG, **change)
        next(token_batches(cache, LayoutConfig(), config, 8, 0, text_model=text_model, threads=0))


@pytest.mark.parametrize("layouts", [LayoutConfig(0, 0, 0), LayoutConfig(-1, 1, 1), LayoutConfig(text_dropout=1.5)])
def test_mixtures_that_cannot_be(cache, text_model, layouts):
    with pytest.raises(UserError, match="should be"):
        token_batches(cache, layouts, CONFIG, 8, 0, text_model=text_model)


def test_the_text_model_beside_the_cache(tmp_path, text_model):
    train_text_model(WORDS, tmp_path / "text.model", 400)
    for metadata, said in (
        ({}, None),
        ({"text_model": text_model.fingerprint}, None),
        ({"text_model": "x"}, "x, this"),
    ):
        with RecordWriter(tmp_path / "set", "tokens", metadata) as writer:
            writer.write(video(6))
        if said is None:
            assert next(token_batches(tmp_path / "set", LayoutConfig(), CONFIG, 2, 0, threads=0)).text.max() > 0
        else:
            with pytest.raises(UserError, match=said):
                token_batches(tmp_path / "set", LayoutConfig(), CONFIG, 2, 0, threads=0)


def test_a_cache_of_something_else(tmp_path, text_model):
    with RecordWriter(tmp_path / "set", "frames"):
        pass
    with pytest.raises(UserError, match="0 records of kind 'frames', not tokens"):
        token_batches(tmp_path / "set", LayoutConfig(), CONFIG, 8, 0, text_model=text_model)
    assert RecordSource(tmp_path / "set").kind == "frames"
