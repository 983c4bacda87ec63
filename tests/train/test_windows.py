"""Windows of tokens: each task's start and known frames, the caption that governs what is generated, the
mixture.
"""

import collections
import dataclasses
import re
import types

import numpy as np
import pytest

from tokvid.config import LayoutConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.input_pipeline.records import RecordSource, RecordWriter
from tokvid.input_pipeline.stored import StoredVideo
from tokvid.input_pipeline.text import PADDING, train_text_model
from tokvid.tasks.conditions import CONDITIONS, Condition
from tokvid.tasks.tasks import TASKS, conditions_of
from tokvid.train import windows
from tokvid.train.token_cache import TokenCache
from tokvid.train.windows import cut_window, fewer_words, windows_in_a_row
from tokvid.transformer.layout import as_generated, slot_count
from tokvid.types import Caption, captions_in_force

CONFIG = TransformerConfig(vocabulary=1000, subcodes=2, text_length=8, latent_frames=4, grid=(2, 3), temporal_patch=2)
WORDS = ("red left", "blue right", "green up")
PLAIN = {"text_to_video": 0.4, "image_to_video": 0.1, "continuation": 0.5}  # the default mixture
AT_SWITCH = TASKS["continuation"].at_switch


def token_batches(source, layouts, config, batch, seed, *, text_model, **options):
    source = source if isinstance(source, RecordSource) else RecordSource(source)
    return windows.token_batches(TokenCache(source, text_model, config, layouts), batch, seed, **options)


def video(latent_frames, switches=(), fps=4.0, key="v"):
    """Latent frame j holds tokens of the sub-codes 10 * j and 5 more; a new caption from each of `switches` (s) on.

    Those of conditions hold theirs and 1 more; coarse ones end with every second latent frame.
    """
    tokens_THWQ = np.empty((latent_frames, 2, 3, 2), np.uint16)
    tokens_THWQ[:] = 10 * np.arange(latent_frames)[:, None, None, None] + [0, 5]
    captions = tuple(Caption(start, WORDS[i]) for i, start in enumerate((0.0, *switches)))
    conditions = {
        name: tokens_THWQ[:: each.slower, :: each.smaller, :: each.smaller] + np.uint16(1)
        for name, each in CONDITIONS.items()
    }
    return StoredVideo(key, 100.0, captions, None, None, tokens_THWQ, fps, conditions)


def cut(video, task, draws=300, frames=4, **options):
    rng = np.random.default_rng(0)
    return [cut_window(video, task, rng, frames=frames, temporal_patch=2, **options) for _ in range(draws)]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return train_text_model(WORDS, tmp_path_factory.mktemp("text") / "text.model", 400)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "tokens"
    with RecordWriter(
        path, "tokens", {"temporal_patch": 2, "conditions": {name: each.facts for name, each in CONDITIONS.items()}}
    ) as writer:
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
            assert (window.start, count_known(window), window.text) == (0, known, WORDS[0])
            assert window.conditions == ()
            np.testing.assert_array_equal(window.tokens[:, 0, 0, 0], [0, 10, 20, 30])


def test_continuations_of_one_caption():
    windows = cut(video(6), "continuation")
    found = {(window.start, count_known(window)) for window in windows}
    assert found == {(0, 2), (0, 3), *((start, known) for start in (1, 2) for known in (1, 2, 3))}
    for window in windows:
        np.testing.assert_array_equal(window.tokens[:, 0, 0, 0], 10 * (window.start + np.arange(4)))


@pytest.mark.parametrize("task", ["restyle", "animate", "inpaint"])
def test_windows_that_begin_a_video_are_drawn_more_often(task):
    """From nothing or a first frame, as sampling begins: 2 of 19 windows by chance."""

    def share(at_start):
        windows = cut(video(9), task, 1000, at_start=at_start)
        return np.mean([window.start == 0 and not window.known[1:].all(axis=(1, 2)).any() for window in windows])

    assert share(0.0) < 0.2 and 0.45 < share(0.4) < 0.55 and share(1.0) == 1


@pytest.mark.parametrize("task", ["continuation", "text_to_video"])
def test_tasks_that_begin_otherwise_are_drawn_as_ever(task):
    assert {w.start for w in cut(video(9), task, at_start=1.0)} == {w.start for w in cut(video(9), task)}


def count_known(window):
    """How many latent frames are known, all at the beginning."""
    frames = len(window.known)
    known = int(window.known[:, 0, 0].sum())
    assert (window.known == (np.arange(frames) < known)[:, None, None]).all() and window.known.shape[1:] == (2, 3)
    return known


def test_infilling_knows_any_latent_frames():
    windows = cut(video(6), "infilling", 500)
    assert {window.start for window in windows} == {0, 1, 2}
    found = {tuple(window.known[:, 1, 1].tolist()) for window in windows}
    assert all((window.known == window.known[:, :1, :1]).all() for window in windows)
    assert len(found) == 2**4 - 2, "all but none and all"


@pytest.mark.parametrize(
    "start, known, wanted",
    [
        # Fine latent frames 0 1 2 3 end with coarse ones 0 . 1 .
        (0, 0, (0, [1, 21, 41])),
        (0, 2, (0, [1, 21, 41])),
        (0, 3, (1, [21, 41, 61])),
        (2, 2, (1, [21, 41, 61])),
        (4, 1, (2, [41, 61, 81])),
        (5, 3, (3, [61, 81, -1])),
    ],
)
def test_an_interpolation_sees_the_coarse_clip_from_just_before_to_the_end(start, known, wanted):
    windows = cut(video(10), "interpolation", 2000)
    found = {(window.start, count_known(window)): window for window in windows}
    assert set(found) == {(0, 0), *((start, known) for start in range(6) for known in (1, 2, 3))}
    window = found[start, known]
    (coarse,) = window.conditions
    assert (coarse.start, coarse.tokens[:, 0, 0, 0].tolist()) == wanted
    last = -(-(start + 3) // 2)  # coarse latent frame that shows the last of the window
    assert coarse.start <= (start + known) / 2 and last < coarse.start + (coarse.tokens >= 0).sum() / 12


def test_an_interpolation_ends_where_the_coarse_clip_does():
    short = dataclasses.replace(video(10), conditions={"coarse": video(10).conditions["coarse"][:4]})
    assert {window.start for window in cut(short, "interpolation")} == {0, 1, 2, 3}
    with pytest.raises(UserError, match="v has no tokens of the condition coarse; tokenize again"):
        cut(dataclasses.replace(short, conditions={}), "interpolation", 1)


@pytest.mark.parametrize("frames, factor", [(4, 2), (6, 2), (5, 2), (4, 3), (6, 4), (2, 2)])
def test_coarse_spans_reach_over_every_window(frames, factor):
    for first in range(30):
        start, count = Condition("", slower=factor).span(first, frames)
        for generated in range(1, frames if first else frames + 1):
            assert start * factor < max(first, 1) and (start + count - 1) * factor >= first + generated - 1


def test_known_parts_often_end_at_a_switch():
    """Latent frame 5 (2.25-2.5 s at 4 fps) is the first under the second caption."""
    windows = cut(video(20, (2.25,)), "continuation", 2000)
    at_switch = np.mean([window.start + count_known(window) == 5 for window in windows])
    assert AT_SWITCH < at_switch < AT_SWITCH + 0.15
    for window in windows:
        assert window.text == WORDS[window.start + count_known(window) >= 5]


@pytest.mark.parametrize("task", TASKS)
def test_text_holds_for_most_of_what_is_generated(task):
    made = video(16, (1.0, 2.75))
    shown_T = captions_in_force(made.captions, 16, made.fps, 2)
    windows = cut(made, task, frames=6)
    for window in filter(None, windows):
        known = 0 if task == "infilling" else int(window.known.all(axis=(1, 2)).sum())
        told = shown_T[window.start + known : window.start + 6]
        assert window.text == WORDS[told[0]] and np.mean(told == told[0]) >= 0.75
    if task not in ("text_to_video", "image_to_video"):
        assert all(windows)
    else:  # the first caption holds for 3 of 6 latent frames, or 2 of 5
        assert not any(windows) and all(cut(made, task, frames=6, least_share=0.0))


@pytest.mark.parametrize("task", TASKS)
def test_videos_shorter_than_the_window(task):
    assert not any(cut(video(3), task))


def test_a_window_of_mid_video_recalls_the_first_latent_frame():
    """Right before it, however long ago it was; it comes from the video's own tokens, and needs no place in a cache."""
    made = video(20)
    assert conditions_of({"recall": 1.0}) == {}
    windows = cut(dataclasses.replace(made, conditions={}), "recall", 2000)
    assert {window.start for window in windows} == set(range(1, 17))
    for window in windows:
        (part,) = window.conditions
        np.testing.assert_array_equal(part.tokens, made.tokens[:1])
        assert part.start == window.start - 1 and 1 <= count_known(window) <= 3


def test_an_image_is_no_continuation():
    assert not any(cut(video(2), "continuation", frames=2)), "something is left to generate, and one frame isn't enough"


def test_batches(cache, text_model):
    batch = next(token_batches(cache, LayoutConfig(), CONFIG, 5, 0, text_model=text_model, threads=0))
    assert batch.conditions == ()
    shapes = {name: (array.shape, array.dtype) for name, array in batch._asdict().items() if name != "conditions"}
    assert shapes == {
        "tokens": ((5, 4, 2, 3, 2), np.int32),
        "start": ((5,), np.int32),
        "fps": ((5,), np.float32),
        "text": ((5, 8), np.int32),
        "known": ((5, 4, 2, 3), bool),
        "stride": ((5,), np.int32),
        "drawn": ((5, 4, 2, 3), bool),
    }


def test_batches_are_what_the_cache_says(cache, text_model):
    """Every sample's tokens are at its start; its text is the caption there, or nothing."""
    layouts = LayoutConfig(PLAIN | {"interpolation": 0.5}, rows=(0, 1, 2))
    iterator = token_batches(cache, layouts, CONFIG, 16, 0, text_model=text_model, threads=0)
    seen = collections.Counter()
    for batch in (next(iterator) for _ in range(80)):
        interpolates, coarse = bool(batch.conditions), next(iter(batch.conditions), None)
        assert not batch.drawn[batch.stride < 6].any()
        if coarse is not None:
            assert coarse.tokens.shape == (16, 3, 2, 3, 2) and not coarse.condition.any()
            np.testing.assert_array_equal(coarse.fps, batch.fps / 2)
        for i, (start, known) in enumerate(zip(batch.start, batch.known[:, :, 0, 0].sum(axis=1), strict=True)):
            np.testing.assert_array_equal(batch.tokens[i, :, 0, 0, 0], 10 * (start + np.arange(4)))
            np.testing.assert_array_equal(batch.tokens[i, ..., 1], batch.tokens[i, ..., 0] + 5)
            if interpolates:
                coarse_T = coarse.tokens[i, :, 0, 0, 0]
                wanted_T = 20 * (coarse.start[i] + np.arange(3)) + 1
                np.testing.assert_array_equal(coarse_T[coarse_T >= 0], wanted_T[coarse_T >= 0])
            text = text_model.decode(batch.text[i])
            assert text in ("", *WORDS[:2])
            plain = "continuation" if start or known > 1 else "image_to_video" if known else "text_to_video"
            seen["interpolation" if interpolates else plain] += 1
            seen["no text"] += (batch.text[i] == PADDING).all()
            seen[float(batch.fps[i])] += 1
            seen[f"step {batch.stride[i]}"] += 1
    for what, share in (
        ("text_to_video", 0.4 / 1.5),
        ("image_to_video", 0.1 / 1.5),
        ("continuation", 0.5 / 1.5),
        ("interpolation", 0.5 / 1.5),
        ("no text", 0.1),
        ("step 1", 1 / 3),
        ("step 3", 1 / 3),
        ("step 6", 1 / 3),
    ):
        assert abs(seen[what] / (16 * 80) - share) < (0.12 if what == "interpolation" else 0.08), what
    assert abs(seen[2.0] / (16 * 80) - 0.5) < 0.1, "a rate isn't drawn less because its videos fit seldom"


def test_a_frame_that_is_not_given_has_as_few_sub_codes_as_the_others(cache, text_model):
    config = dataclasses.replace(CONFIG, generated=1, silent=99)
    iterator = token_batches(cache, LayoutConfig(PLAIN), config, 16, 0, text_model=text_model, threads=0)
    seen = collections.Counter()
    for batch in (next(iterator) for _ in range(10)):
        wanted = np.where(batch.known, batch.tokens[..., 0] + 5, 99)
        np.testing.assert_array_equal(batch.tokens[..., 1], wanted)
        seen.update(batch.known[..., 0, 0].ravel().tolist())
    assert seen[False] and seen[True]
    window = np.int32([[3, 4], [5, 6], [-1, -1]])
    known = np.array([True, False, False])
    np.testing.assert_array_equal(as_generated(config, window, known), [[3, 4], [5, 99], [-1, -1]])
    np.testing.assert_array_equal(as_generated(CONFIG, window, known), window)


def test_in_rounds_latent_frames_stand_in_part(cache, text_model):
    """From hardly anything to nearly all, and often all before one that doesn't."""
    iterator = token_batches(
        cache, LayoutConfig({"text_to_video": 1}, rows=(2,)), CONFIG, 256, 0, text_model=text_model, threads=0
    )
    drawn_BTL = next(iterator).drawn.reshape(256, 4, 6)
    share_BT = drawn_BTL.mean(axis=2)
    assert not share_BT[:, -1].all() and 0.2 < share_BT[:, -1].mean() < 0.5, "1 - 2/π = 0.36 for the last"
    assert set(np.unique(drawn_BTL[:, -1].sum(axis=1))) == set(range(7))
    before_one = [np.flatnonzero(share_T < 1)[0] for share_T in share_BT if (share_T < 1).any()]
    assert min(collections.Counter(before_one)[i] for i in range(4)) > 256 / 16


def test_interpolations_come_in_whole_batches_of_all_processes(cache, text_model):
    kinds = []
    for shard in ((0, 2), (1, 2)):
        layouts = LayoutConfig({"text_to_video": 0.5, "interpolation": 0.5})
        iterator = token_batches(cache, layouts, CONFIG, 3, 5, text_model=text_model, threads=0, shard=shard)
        kinds.append([len(next(iterator).conditions) for _ in range(20)])
    assert kinds[0] == kinds[1] and 4 < sum(kinds[0]) < 16


def test_short_windows_fill_as_many_slots_as_whole_ones(cache, text_model):
    """Of text 8, rate and latent frames of 6 slots each, whole windows of 4 take 33, and two images 30."""
    layouts, counts = (
        LayoutConfig(PLAIN | {"interpolation": 0.4}, rows=(0, 2), lengths=(0, 2, 1)),
        collections.Counter(),
    )
    for shard in ((0, 2), (1, 2)):
        iterator = token_batches(cache, layouts, CONFIG, 5, 0, text_model=text_model, threads=0, shard=shard)
        for number in range(60):
            batch = next(iterator)
            frames = batch.tokens.shape[1]
            rows = 5 * {4: 1, 2: 1, 1: 2}[frames]
            assert all(len(array) == rows for array in batch[:-1]) and (frames == 4 or not batch.conditions)
            np.testing.assert_array_equal(batch.tokens[..., 0, 0, 0], 10 * (batch.start[:, None] + np.arange(frames)))
            if frames == 1:
                assert not batch.known.any() and not batch.start.any(), "an image: a video's first frame, from text"
            else:
                assert batch.known[:, :, 0, 0].sum(axis=1).max() < frames
            counts[number, frames, len(batch.conditions)] += 1
    assert set(counts.values()) == {2}, "a batch is alike in all processes"
    seen = collections.Counter(frames for _, frames, coarse in counts if not coarse)
    assert min(seen[1], seen[2], seen[4]) > 5 and len(counts) - sum(seen.values()) > 10


@pytest.mark.parametrize("length, text, wanted", [(1, 8, 2), (2, 8, 1), (4, 8, 1), (1, 0, 3), (1, 1, 3), (2, 0, 1)])
def test_windows_in_a_row(length, text, wanted):
    config = dataclasses.replace(CONFIG, text_length=text)
    whole, short = slot_count(config), slot_count(config, length)
    assert windows_in_a_row(config, length) == wanted and wanted * short <= whole < (wanted + 1) * short


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
        ({"grid": (3, 3)}, r"2x3 tokens of 2 sub-codes a latent frame.*\(3, 3\)"),
        ({"subcodes": 1}, r"2x3 tokens of 2 sub-codes a latent frame.*\(2, 3\) and subcodes 1"),
        ({"vocabulary": 20}, "has tokens .*vocabulary is 20"),
        ({"temporal_patch": 4}, "temporal_patch 2, the config has 4"),
        ({"text_vocabulary": 10}, "text_vocabulary is 10"),
        ({"latent_frames": 30}, "no window of 30 latent frames"),
    ],
)
def test_what_does_not_belong_together(cache, text_model, change, said):
    with pytest.raises(UserError, match=said):
        config = dataclasses.replace(CONFIG, **change)
        next(token_batches(cache, LayoutConfig(), config, 8, 0, text_model=text_model, threads=0))


def test_words_are_left_out_each_for_itself(cache, text_model):
    """Of captions of two words, all four parts are seen, in half of the windows or so the whole; without, only it."""

    def seen(**layouts):
        layouts = LayoutConfig(text_dropout=0.0, **layouts)
        batch = next(iter(token_batches(cache, layouts, CONFIG, 400, 0, text_model=text_model)))
        return collections.Counter(text_model.decode(text_L) for text_L in batch.text)

    assert seen().keys() == {"red left", "blue right"}
    fewer = seen(word_dropout=1.0)
    assert fewer.keys() == {"red left", "red", "left", "blue right", "blue", "right", ""}
    # Each word stays with a chance that is drawn from 0 to 1, so both with 1/3 and none as well.
    assert 90 < fewer["red left"] + fewer["blue right"] < 180 and 90 < fewer[""] < 180
    assert 0.35 < fewer["red"] / (fewer["red"] + fewer["left"]) < 0.65


@pytest.mark.parametrize("text", ["红圆向左", "a red circle", "一个 red 圆", "don't stop ."])
def test_what_is_left_of_a_caption_is_part_of_it(text):
    rng, words = np.random.default_rng(0), re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", text)
    left = {fewer_words(text, 1.0, rng) for _ in range(2000)}
    assert {text, "", *words} <= left and len(left) == 2 ** len(words)
    assert fewer_words(text, 0.0, rng) == text


def test_a_track_is_mostly_seen_without_its_text(cache, text_model):
    def silent(task, **layouts):
        layouts = LayoutConfig(tasks={task: 1.0}, **layouts)
        batch = next(iter(token_batches(cache, layouts, config, 400, 0, text_model=text_model)))
        return np.mean([not text_model.decode(text_L) for text_L in batch.text])

    config = dataclasses.replace(CONFIG, conditions=("edges", "picture", "track"))
    assert silent("animate") == pytest.approx(0.75, abs=0.07) and silent("animate", text_dropout=1.0) == 1
    assert silent("restyle") == pytest.approx(0.1, abs=0.05)


def test_hidden_states_of_whole_captions_lack_no_word(cache, text_model):
    config, layouts = dataclasses.replace(CONFIG, text_width=8), LayoutConfig(word_dropout=0.5)
    of_t5 = types.SimpleNamespace(source=RecordSource(cache), text=text_model, config=config, layouts=layouts)
    with pytest.raises(UserError, match="word_dropout is for text models"):
        windows.WindowSampler(of_t5)


@pytest.mark.parametrize(
    ("layouts", "said"),
    [
        ({"tasks": {"text_to_video": 0}}, "should be above 0"),
        ({"tasks": {"text_to_video": 1, "continuation": -1}}, "continuation should be 0 or more"),
        ({"tasks": {"text_to_video": float("nan")}}, "text_to_video should be 0 or more"),
        ({"tasks": {"text2video": 1}}, "unknown task 'text2video' .did you mean 'text_to_video'"),
        ({"text_dropout": 1.5}, "text_dropout should be 0 to 1"),
        ({"word_dropout": -0.1}, "word_dropout should be 0 to 1"),
        ({"corruption": -0.5}, "corruption should be 0 to 1"),
        ({"rows": ()}, "rows is empty"),
        ({"rows": (0, 3)}, "rows should be 0"),
        ({"lengths": (4, 5)}, "lengths .* should be 1 to 4"),
        ({"lengths": ()}, "lengths .* should be 1 to 4"),
        ({"lengths": (-1,)}, "lengths .* should be 1 to 4"),
    ],
)
def test_mixtures_that_cannot_be(cache, text_model, layouts, said):
    with pytest.raises(UserError, match=said):
        token_batches(cache, LayoutConfig(**layouts), CONFIG, 8, 0, text_model=text_model)


@pytest.mark.parametrize("facts", [None, {"slower": 3, "smaller": 1}])
def test_a_condition_needs_its_tokens(tmp_path, text_model, facts):
    with RecordWriter(tmp_path / "set", "tokens", {"conditions": {"coarse": facts}} if facts else {}) as writer:
        writer.write(dataclasses.replace(video(6), conditions={}))
    with pytest.raises(UserError, match=r"no tokens of the condition coarse as it is now; delete it and run `tok"):
        token_batches(
            tmp_path / "set", LayoutConfig({"interpolation": 0.1}), CONFIG, 2, 0, text_model=text_model, threads=0
        )


def test_the_text_model_of_the_cache(tmp_path, text_model):
    for metadata, said in (
        ({}, None),
        ({"text_model": text_model.fingerprint}, None),
        ({"text_model": "x"}, "x, this"),
    ):
        with RecordWriter(tmp_path / "set", "tokens", metadata) as writer:
            writer.write(video(6))
        how = {"text_model": text_model, "threads": 0}
        if said is None:
            assert next(token_batches(tmp_path / "set", LayoutConfig(), CONFIG, 2, 0, **how)).text.max() > 0
        else:
            with pytest.raises(UserError, match=said):
                next(token_batches(tmp_path / "set", LayoutConfig(), CONFIG, 2, 0, **how))


def test_a_cache_of_something_else(tmp_path, text_model):
    with RecordWriter(tmp_path / "set", "frames"):
        pass
    with pytest.raises(UserError, match="0 records of kind frames, no tokens"):
        token_batches(tmp_path / "set", LayoutConfig(), CONFIG, 8, 0, text_model=text_model)
    assert RecordSource(tmp_path / "set").kind == "frames"
