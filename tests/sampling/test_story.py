"""Stories: read from files, told in windows, interrupted and resumed, long without growing."""

import dataclasses
import gc
import itertools
import statistics
import threading
import tracemalloc

import jax
import numpy as np
import pytest

from tokvid.config import Sampling
from tokvid.errors import UserError
from tokvid.sampling import codec, window
from tokvid.sampling.canvas import doubled, paint
from tokvid.sampling.codec import frames_of
from tokvid.sampling.film import show
from tokvid.sampling.kept import KeptWindows
from tokvid.sampling.levels import Levels, rates_of, spans_of, tokens_of
from tokvid.sampling.story import Segment, Story, encode_opening, encode_video, joins, load_story, prompts_of, tell
from tokvid.sampling.window import Around

PROMPTS = (
    "a small red circle moves slowly to the left",
    "the small red circle is not moving",
    "一个小的红色圆形快速向上移动",
)
STORY = Story(tuple(Segment(prompt, seconds) for prompt, seconds in zip(PROMPTS, (1.3, 0.7, 1.1), strict=True)), seed=4)


def told(models, story, partial, opening=None):
    """All frames, once it is told; `partial` is the file of its windows."""
    with KeptWindows(partial, models) as windows:
        return np.concatenate(list(tell(models, story, windows, opening)))


def told_partly(models, story, partial, parts):
    """The first `parts` that it gives."""
    with KeptWindows(partial, models) as windows:
        telling = tell(models, story, windows)
        seen = list(itertools.islice(telling, parts))
        telling.close()
    return seen


def tokens_in(partial, models):
    """The tokens of all windows in a file, in the order in which they were generated."""
    with KeptWindows(partial, models) as kept:
        windows = [kept.get(mark)[0] for mark in kept]
    return np.concatenate([models.no_tokens(1)[0], *windows])


def windows_in(partial, models):
    """The tokens of all windows in a file, by their marks."""
    with KeptWindows(partial, models) as kept:
        return {mark: kept.get(mark).tolist() for mark in kept}


@pytest.fixture(scope="module")
def in_one_go(any_models, tmp_path_factory):
    """The frames of STORY and its tokens."""
    partial = tmp_path_factory.mktemp("story") / "partial"
    return told(any_models, STORY, partial), tokens_in(partial, any_models)


@pytest.fixture
def fake_generate(monkeypatch):
    """Instead of a model: fixed tokens; records the first latent frame to be made, guidance and text."""
    calls = []

    def generate(graph, params, request, *, sampling, guided):
        batch, first = request.batch, int(request.known) // 4
        calls.append(
            {
                "first": int(batch.start[0]) + first,
                "fps": float(batch.fps[0]),
                "guidance": request.guidance_BT[0, first : first + request.tokens // 4].tolist(),
                "text": batch.text[0],
                "negative": request.negative_BL[0],
                "coarse": [number for clip in batch.conditions for number in clip.tokens[0, :, 0, 0, 0].tolist()],
            }
        )
        filled = np.array(batch.tokens)  # each latent frame of a level holds its number
        filled[:] = (np.arange(filled.shape[1]) + batch.start[0])[:, None, None, None] % 30
        return filled

    monkeypatch.setattr(window, "generate", generate)
    return calls


# How long, and where windows fall


@pytest.mark.parametrize("fps", [8.0, 7.0, 2.5, 23.976, 0.3])
@pytest.mark.parametrize("seconds", [(1.0,), (0.01,), (3.3, 0.01, 1.9), (0.7,) * 9])
def test_frames_are_exact(tiny_models, fake_generate, tmp_path, seconds, fps):
    story = Story(tuple(Segment("", length) for length in seconds), fps)
    frames = told(tiny_models, story, tmp_path / "partial")
    assert len(frames) == story.frames == max(1, round(sum(seconds) * fps))
    assert [end for _, end in story.spans[:-1]] == [first for first, _ in story.spans[1:]]
    for (first, end), segment in zip(story.spans, story.segments, strict=True):
        assert abs((end - first) - segment.seconds * fps) <= 1


@pytest.mark.parametrize("given", [0, 1, 2, 5])
def test_joins_are_where_windows_really_begin(tiny_models, fake_generate, tmp_path, given):
    rng = np.random.default_rng(given)
    for number in range(10):
        lengths = rng.uniform(0.05, 4, size=rng.integers(1, 6))
        story = Story(
            tuple(Segment("", float(length)) for length in lengths), float(rng.choice([2, 5, 8])), keep=1 + number % 3
        )
        fake_generate.clear()
        told(tiny_models, story, tmp_path / f"{number}", np.zeros((given, 2, 2, 1), np.int32) if given else None)
        begun = [call["first"] for call in fake_generate]
        if not given:
            assert joins(story, tiny_models) == [frames_of(first, 2) for first in begun[1:]]


def test_each_segment_has_its_text_seed_and_guidance(tiny_models, fake_generate, tmp_path):
    segments = (Segment("up", 2.0), Segment("", 1.0, guidance=1.0), Segment("down", 1.0, seed=7, guidance=5.0))
    told(tiny_models, Story(segments, guidance=3.0), tmp_path / "partial")
    # Latent frame j shows frames 2j-1 and 2j: that with the middle at or after 16 and 24 shows the next prompt.
    for call in fake_generate:
        number = 0 if call["first"] < 9 else 1 if call["first"] < 13 else 2
        np.testing.assert_array_equal(call["text"], tiny_models.text.encode(segments[number].prompt, 32))
        assert set(call["guidance"]) == {(3.0, 1.0, 5.0)[number]}
    assert {9, 13} <= {call["first"] for call in fake_generate}  # a new prompt begins a new window


# Going on from a picture or a video


def test_a_picture_is_the_first_frame(tiny_models, fake_generate, tmp_path):
    image = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    opening = encode_opening(tiny_models, iter([image]))
    frames = told(tiny_models, STORY, tmp_path / "partial", opening)
    assert opening.shape == (1, 2, 2, 1) and len(frames) == STORY.frames
    np.testing.assert_array_equal(
        frames[0], codec.StreamDecoder(tiny_models.tokenizer, 1, 2, 2).feed(opening[None])[0, 0]
    )
    assert fake_generate[0]["first"] == 1
    only = dataclasses.replace(STORY, segments=(Segment("a", 0.1),))
    assert len(told(tiny_models, only, tmp_path / "only", opening)) == 1


@pytest.mark.parametrize("count, kept", [(2, 1), (5, 5), (6, 5), (21, 21)])
def test_a_video_comes_before_the_story(tiny_models, fake_generate, tmp_path, count, kept):
    """Its frames that fill latent frames do; then as many new frames as the story has, each under its own prompt."""
    video = np.random.default_rng(0).integers(256, size=(count, 16, 16, 3), dtype=np.uint8)
    opening = encode_opening(tiny_models, iter(video))
    frames = told(tiny_models, STORY, tmp_path / "partial", opening)
    assert frames_of(len(opening), 2) == kept
    before = kept if kept > 1 else 0  # of a video of one frame it can't be told that it isn't a picture
    assert len(frames) == before + STORY.frames
    switch = next(call["first"] for call in fake_generate if call["text"].tolist() == _ids(tiny_models, PROMPTS[1]))
    assert abs((frames_of(switch, 2) - before) / STORY.fps - STORY.starts[1]) <= 1 / STORY.fps


@pytest.mark.parametrize("count", [1, 2, 5, 6, 21])
def test_no_frame_of_a_video_to_go_on_from_is_lost(tiny_models, count):
    video = np.random.default_rng(0).integers(256, size=(count, 16, 16, 3), dtype=np.uint8)
    opening = encode_video(tiny_models, iter(video))
    before = opening.before(2)
    assert 0 <= before < 2 and before + frames_of(len(opening.tokens_THWQ), 2) == count
    np.testing.assert_array_equal(opening.tokens_THWQ, encode_opening(tiny_models, iter(video[before:])))
    np.testing.assert_array_equal(opening.frames_THWC, video)
    story = dataclasses.replace(STORY, segments=STORY.segments[:1])
    shown = np.concatenate(list(show(tiny_models, story, opening)))
    np.testing.assert_array_equal(shown[:count], video)


def generated(monkeypatch):
    """The rate of each window that is generated from now on, and its first new latent frame."""
    begun, generate = [], window.generate

    def watched(graph, params, request, **options):
        H, W = request.batch.tokens.shape[2:4]
        begun.append((float(request.batch.fps[0]), int(request.batch.start[0]) + int(request.known) // (H * W)))
        return generate(graph, params, request, **options)

    monkeypatch.setattr(window, "generate", watched)
    return begun


def _ids(models, prompt):
    return models.text.encode(prompt, 32).tolist()


# Interrupted


@pytest.mark.parametrize("windows", [0, 1, 4, 100])
def test_resumed_after_any_window_it_is_the_same_video(any_models, in_one_go, tmp_path, monkeypatch, windows):
    frames, tokens = in_one_go
    seen = told_partly(any_models, STORY, tmp_path / "partial", windows)
    made = len(tokens_in(tmp_path / "partial", any_models)) if windows else 0
    one_ahead = 2 * any_models.transformer.config.latent_frames
    assert 0 <= frames_of(made, 2) - sum(map(len, seen)) < one_ahead
    begun = generated(monkeypatch)
    np.testing.assert_array_equal(told(any_models, STORY, tmp_path / "partial"), frames)
    np.testing.assert_array_equal(tokens_in(tmp_path / "partial", any_models), tokens)
    assert [first for _, first in begun[:1]] == [made] * (made < len(tokens))  # nothing is generated twice


def test_what_is_generated_after_the_end_is_not_kept(any_models, tmp_path):
    """By a thread that was a window ahead."""
    with KeptWindows(tmp_path / "partial", any_models) as kept:
        kept["0" * 32] = any_models.no_tokens(1)
    kept["1" * 32] = any_models.no_tokens(1)
    assert kept.get("0" * 32) is None and list(windows_in(tmp_path / "partial", any_models)) == ["0" * 32]
    with KeptWindows(tmp_path / "none", any_models) as kept:
        pass
    kept["1" * 32] = any_models.no_tokens(1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("cut", [1, 16, 17, 48, 100, 200, 10_000])
def test_a_torn_file_gives_the_same_video(any_models, in_one_go, tmp_path, cut):
    """Cut in mid-token, in mid-window, in its first line: only whole windows of it are used."""
    frames, tokens = in_one_go
    told(any_models, STORY, tmp_path / "partial")
    data = (tmp_path / "partial").read_bytes()
    (tmp_path / "partial").write_bytes(data[: max(5, len(data) - cut)])
    np.testing.assert_array_equal(told(any_models, STORY, tmp_path / "partial"), frames)
    np.testing.assert_array_equal(tokens_in(tmp_path / "partial", any_models), tokens)


def test_what_belongs_to_another_story_or_other_weights_is_not_used(any_models, in_one_go, tmp_path):
    frames, _ = in_one_go
    other_models = any_models._replace(
        transformer=any_models.transformer._replace(about=any_models.transformer.about | {"fingerprint": "other"})
    )
    others = [(any_models, dataclasses.replace(STORY, seed=5)), (any_models, dataclasses.replace(STORY, fps=7.0))]
    for models, story in [*others, (other_models, STORY)]:
        partial = tmp_path / "partial"
        told(models, story, partial)
        np.testing.assert_array_equal(told(any_models, STORY, partial), frames)
    changed = told(any_models, dataclasses.replace(STORY, seed=5), tmp_path / "partial")
    assert (changed != frames).any()


@pytest.mark.parametrize("place", [-1, -30, -100])
def test_a_damaged_window_is_generated_again(any_models, in_one_go, tmp_path, place):
    frames, _ = in_one_go
    partial = tmp_path / "partial"
    told(any_models, STORY, partial)
    whole = partial.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 64
    partial.write_bytes(damaged)
    np.testing.assert_array_equal(told(any_models, STORY, partial), frames)
    assert partial.read_bytes() == whole


@pytest.mark.parametrize("levels", [False, True])
def test_a_changed_story_keeps_the_windows_before_the_change(any_models, tmp_path, monkeypatch, levels):
    """At every level, and the video is the one that it would be without them."""
    models = of_levels(any_models) if levels else any_models
    changed = dataclasses.replace(STORY, segments=(*STORY.segments[:2], Segment("it moves down", 1.1, seed=3)))
    told(models, STORY, tmp_path / "partial")
    begun = generated(monkeypatch)
    frames = told(models, changed, tmp_path / "partial")
    # The third segment begins at 2 s, latent frame 8 at 8 fps; the level above sees the one below a window ahead.
    assert begun and min(first / fps for fps, first in begun) >= (0.5 if levels else 1.0)
    count = len(begun)
    np.testing.assert_array_equal(told(models, changed, tmp_path / "fresh"), frames)
    assert len(begun) - count > count


def test_another_prompt_for_the_third_segment_leaves_the_first_two_as_they_were(any_models, in_one_go, tmp_path):
    _, tokens = in_one_go
    segments = (*STORY.segments[:2], dataclasses.replace(STORY.segments[2], prompt="it moves down"))
    told(any_models, dataclasses.replace(STORY, segments=segments), tmp_path / "partial")
    changed, first = (
        tokens_in(tmp_path / "partial", any_models),
        next(
            step.first
            for step in spans_of(any_models, STORY.starts[:-1], STORY.fps, len(tokens), keep=STORY.keep)
            if step.segment == 2
        ),
    )
    np.testing.assert_array_equal(changed[:first], tokens[:first])
    assert (changed[first:] != tokens[first:]).any()


def test_memory_does_not_grow_with_length(tiny_models, tmp_path, monkeypatch):
    """Ten seconds, then a minute: Python and NumPy never hold more. (The whole process: scripts/flat_cost.py.)"""
    monkeypatch.setattr(window, "generate", lambda graph, params, request, **_: np.array(request.batch.tokens))

    def usually_held(seconds):
        held = []
        tracemalloc.start()
        with KeptWindows(tmp_path / f"{seconds}", tiny_models) as windows:
            for index, _ in enumerate(tell(tiny_models, Story((Segment("up", seconds),)), windows)):
                if index % 5 == 4:
                    gc.collect()
                    held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        return statistics.median(held)  # a thread is at work, and what it holds for a moment varies

    usually_held(10.0)  # whatever is remembered once
    short, long = usually_held(10.0), usually_held(60.0)
    assert long - short < 50_000, (short, long)  # 400 frames more are 300,000 bytes, half of them half of the time


# Level by level


@pytest.fixture
def levels_models(tiny_models):
    """As if trained to interpolate from half the rate, and to draw rows."""
    return of_levels(tiny_models)


def of_levels(models):
    about = models.transformer.about | {"coarse_factor": 2, "layouts": {"interpolation": 0.4, "rows": [0, 1, 2]}}
    return models._replace(transformer=models.transformer._replace(about=about))


@pytest.mark.parametrize(
    "fps, scheme, wanted",
    [(8, None, [4, 8]), (16, "hierarchical", [4, 8, 16]), (6, None, [6]), (4, None, [4]), (8, "one-level", [8])],
)
def test_rates_of_the_levels(levels_models, tiny_models, fps, scheme, wanted):
    """Halved as long as the models were trained for it, at 4 and 8 fps."""
    assert rates_of(levels_models, float(fps), scheme) == wanted
    assert rates_of(tiny_models, 8.0, None) == [8.0]
    with pytest.raises(UserError, match="not trained to interpolate"):
        rates_of(tiny_models, 8.0, "hierarchical")


def test_no_level_and_no_place_draws_with_the_noise_of_another(levels_models, monkeypatch):
    """What one drew chose its noise: a level that shared it would not be drawn from its own distribution."""
    keys = []

    def generate(graph, params, request, *, sampling, guided):
        keys.append((float(request.batch.fps[0]), bytes(np.asarray(jax.random.key_data(request.keys_B)))))
        return np.where(request.batch.known[..., None], request.batch.tokens, 1)

    monkeypatch.setattr(window, "generate", generate)
    prompts = prompts_of(Story((Segment("up", 2.0),), seed=3), levels_models)
    none_BTHWQ, levels = levels_models.no_tokens(1), Levels([4.0, 8.0, 16.0], 17)
    list(tokens_of(levels_models, prompts, levels, none_BTHWQ))
    assert {fps for fps, _ in keys} == {4.0, 8.0, 16.0} and len({key for _, key in keys}) == len(keys) > 6
    keys.clear()
    none_BTHW = np.zeros((1, 3, 2, 6), bool)
    empty = Around(np.zeros((*none_BTHW.shape, none_BTHWQ.shape[-1]), np.int32), none_BTHW)
    paint(levels_models, prompts, Levels([8.0], 3), empty, [(0, 0), (0, 2), (0, 4)])
    assert len({key for _, key in keys}) == len(keys) == 3
    keys.clear()
    config = dataclasses.replace(levels_models.transformer.config, conditions=())
    models = levels_models._replace(transformer=levels_models.transformer._replace(config=config))
    for size in (8, 16, 32):  # nor does a doubling
        doubled(models, prompts, Levels([8.0], 3), np.zeros((1, 5, size, size, 3), np.uint8))
    assert len({key for _, key in keys}) == len(keys) > 30


def of_rate(calls, fps):
    return [(call["first"], call["coarse"]) for call in calls if call["fps"] == fps]


def test_levels_are_told_in_step(levels_models, fake_generate, tmp_path):
    """Each window sees the coarse latent frames of its seconds.

    The coarse video's first latent frame is taken over, not made again.
    """
    told(levels_models, Story((Segment("up", 2.0),)), tmp_path / "partial")
    # At 4 fps latent frames 0 to 4, in windows up to 4 and 5; at 8 fps 0 to 8: up to 4, 6, 8, 9.
    assert of_rate(fake_generate, 4.0) == [(0, []), (4, [])]
    fine = [(1, [0, 1, 2]), (4, [1, 2, 3]), (6, [2, 3, 4]), (8, [3, 4, -1])]
    assert of_rate(fake_generate, 8.0) == fine and len(fake_generate) == 6


def test_settings_of_jax_hold_in_every_level(levels_models, fake_generate, tmp_path, monkeypatch):
    """Also where they hold for a `with` statement, that is for a thread."""
    seen, generate = [], window.generate

    def watched(*models, **how):
        seen.append((jax.config.jax_default_matmul_precision, jax.config.jax_default_device))
        return generate(*models, **how)

    monkeypatch.setattr(window, "generate", watched)
    device = jax.devices()[0]
    with jax.default_matmul_precision("highest"), jax.default_device(device):
        told(levels_models, Story((Segment("up", 1.0),)), tmp_path / "partial")
    assert set(seen) == {("highest", device)} and {call["fps"] for call in fake_generate} == {4.0, 8.0}


@pytest.mark.parametrize("parts", range(1, 9))
def test_a_level_is_at_most_one_window_ahead(levels_models, fake_generate, tmp_path, parts):
    """Of what the next level has needed, or the viewer has seen, however long the story is."""
    others = set(threading.enumerate())
    told_partly(levels_models, Story((Segment("up", 60.0),)), tmp_path / "partial", parts)
    for thread in set(threading.enumerate()) - others:  # they end with the window under way
        thread.join()
    fine, coarse = of_rate(fake_generate, 8.0), of_rate(fake_generate, 4.0)
    assert len(fine) == parts  # a part is a window's, but the first, which is the coarse video's first latent frame
    assert fine[-1][1][-1] < 4 + 2 * len(coarse) <= fine[-1][1][-1] + 6


@pytest.mark.parametrize("windows", [0, 1, 3, 100])
def test_a_story_of_levels_is_resumed_too(any_models, tmp_path, monkeypatch, windows):
    levels_models = of_levels(any_models)
    frames = told(levels_models, STORY, tmp_path / "whole")
    assert frames.shape[0] == STORY.frames
    told_partly(levels_models, STORY, tmp_path / "partial", windows)
    begun = generated(monkeypatch)
    np.testing.assert_array_equal(told(levels_models, STORY, tmp_path / "partial"), frames)
    whole, partial = (windows_in(tmp_path / name, levels_models) for name in ("whole", "partial"))
    assert whole == partial
    if windows == 100:
        assert not begun


def test_a_picture_begins_every_level_and_a_video_but_one(levels_models, fake_generate, tmp_path):
    told(levels_models, STORY, tmp_path / "image", np.full((1, 2, 2, 1), 9, np.int32))
    assert of_rate(fake_generate, 4.0)[0] == (1, []) and of_rate(fake_generate, 8.0)[0] == (1, [9, 1, 2])
    fake_generate.clear()
    told(levels_models, STORY, tmp_path / "video", np.full((3, 2, 2, 1), 9, np.int32))
    assert {call["fps"] for call in fake_generate} == {8.0}


def test_guidance_changes_over_a_segment_and_turns_away_from_a_text(tiny_models, fake_generate, tmp_path):
    segments = (Segment("up", 2.0, last_guidance=5.0), Segment("down", 1.0, guidance=4.0, negative="a red circle"))
    told(tiny_models, Story(segments, guidance=1.0, last_guidance=2.0, negative="blue"), tmp_path / "partial")
    scales = [scale for call in fake_generate for scale in call["guidance"]]
    np.testing.assert_allclose(scales, [*np.linspace(1, 5, 9), *np.linspace(4, 2, 4)], rtol=1e-6)
    for call in fake_generate:
        wanted = "blue" if call["first"] < 9 else "a red circle"
        np.testing.assert_array_equal(call["negative"], tiny_models.text.encode(wanted, 32))


def test_rows_that_were_not_trained_are_refused(tiny_models, levels_models, tmp_path):
    story = dataclasses.replace(STORY, sampling=Sampling(rows=1))
    with pytest.raises(UserError, match=r"these weights draw token by token \(rows 0\), got rows 1"):
        told(tiny_models, story, tmp_path / "partial")
    assert len(told(levels_models, story, tmp_path / "partial")) == STORY.frames
    with pytest.raises(UserError, match=r"divide a latent frame, \[1, 2\]; got 3"):
        told(tiny_models, dataclasses.replace(STORY, sampling=Sampling(rows=3)), tmp_path / "partial")


# Files


def write(tmp_path, text):
    path = tmp_path / "story.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_field_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "s.json").write_text('{"segments": [{"prompt": "a circle", "prompt": "a star", "seconds": 1}]}')
    with pytest.raises(UserError, match="'prompt' is there twice"):
        load_story(tmp_path / "s.json")


def test_a_story_file(tmp_path):
    path = write(
        tmp_path,
        "fps: 4\nseed: 9\nguidance: 3\nkeep: 1\nsampling: {temperature: 0.5, top_k: 10}\nsegments:\n"
        "  - prompt: 一个圆\n    seconds: 2.5\n    seed: 7\n    guidance: null\n  - {prompt: 'no: 1', guidance: 1}\n",
    )
    found = load_story(path)
    assert found.segments == (Segment("一个圆", 2.5, seed=7), Segment("no: 1", 4.0, guidance=1.0))
    assert (found.fps, found.seed, found.guidance, found.keep, found.sampling.top_k) == (4.0, 9, 3.0, 1, 10)
    assert found.seconds == 6.5 and found.frames == 26 and found.spans == [(0, 10), (10, 26)]


ONE = "segments: [{prompt: a}]\n"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "should be an object of Story's fields, got None"),
        ("just words", "got 'just words'"),
        ("- a\n- b", "got ['a', 'b']"),
        ("fps: 8", "segments is missing"),
        ("segments: []", "at least one segment"),
        ("segments:", "story.segments should be a list, got None"),
        (
            "segments: [a]",
            "story.segments[0] should be an object of Segment's fields, got 'a'; they are prompt, seconds",
        ),
        ("segments:\n  - prompt: one: a", "line 2: mapping values are not allowed here; indent with spaces, and quote"),
        ("segments:\n\t- prompt: a", "line 2: found character '\\t' that cannot start any token; indent with spaces"),
        ("segments: [{seconds: 3}]", "story.segments[0]: prompt is missing"),
        ("segments: [{prompt: a, second: 3}]", "unknown field 'second' (did you mean 'seconds'?)"),
        ("segments: [{prompt: a, seconds: two}]", "story.segments[0].seconds should be a number, got 'two'"),
        ("segments: [{prompt: a, seconds: .nan}]", "finite"),
        ("segments: [{prompt: a, seconds: .inf}]", "finite"),
        ("segments: [{prompt: a, seconds: -1}]", "seconds should be above 0"),
        ("segments: [{prompt: a, seconds: 1e9}]", "should be a number, got '1e9'"),  # YAML 1.1 wants 1.0e+9
        ("segments: [{prompt: a, seconds: 100000}]", "seconds should be above 0 and at most 86400"),
        ("segments: [{prompt: a, seconds: 80000}, {prompt: b, seconds: 80000}]", "all segments together"),
        ("segments: [{prompt: yes}]", "prompt should be text, got True"),
        ("segments: [{prompt: 7}]", "prompt should be text, got 7"),
        ("segments: [{prompt: a, seed: 4294967296}]", "seed should be 0 to 4294967295"),
        ("segments: [{prompt: a, seed: 1.5}]", "seed should be a whole number, got 1.5"),
        (ONE + "fps: 0", "fps should be above 0"),
        (ONE + "fps: true", "fps should be a number, got True"),
        (ONE + "seed: -1", "seed should be 0 to"),
        (ONE + "guidance: 1000", "guidance should be 0 to 100"),
        (ONE + "keep: many", "keep should be a whole number, got 'many'"),
        (ONE + "sampling: {temperature: -1}", "temperature should be"),
        (ONE + "sampling: {top_q: 1}", "unknown field 'top_q'"),
        (ONE + "fsp: 8", "unknown field 'fsp' (did you mean 'fps'?)"),
        (ONE + "seed: 1\nseed: 2", "line 3: 'seed' is there twice"),
        (ONE + ONE, "line 2: 'segments' is there twice"),
        (ONE + f"fps: {'9' * 400}", "fps should be"),
        (ONE + f"seed: 0x{'f' * 5000}", "story.yaml"),
        (BOMB + "segments: *h", "aliases are not allowed"),
        ("a: &a {<<: *a}", "aliases are not allowed"),
        ("segments: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        (ONE + 'seed: !!int ""', "not valid YAML"),
        (ONE + "seed: !!timestamp x", "not valid YAML"),
        (ONE + "seed: 2001-99-99", "not valid YAML"),
        ("segments: [", "line 1: "),
        ("a: b: c", "line 1: mapping values are not allowed here"),
        ("\t", "story.yaml"),
        ("[" * 5000, "not valid YAML: RecursionError"),
        (b"segments: [{prompt: \xff}]", "not UTF-8 text"),
        (ONE.encode("utf-16"), "not UTF-8 text"),
        (b"segments: \x00", "not valid YAML"),
        (b"#" * (1 << 21), "more than 1048576 bytes"),
        ('segments: [{prompt: "\\ud800"}]', "not valid UTF-8"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_story_is_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        load_story(write(tmp_path, text))
    assert said in str(error.value) and len(str(error.value)) < 1000 and str(tmp_path) in str(error.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot read story"):
            load_story(path)


@pytest.mark.parametrize("scheme", ["one-level", "hierarchical"])
def test_a_story_file_may_name_its_scheme(tmp_path, scheme):
    (tmp_path / "story.yaml").write_text(f"scheme: {scheme}\nsegments:\n  - prompt: up\n")
    assert load_story(tmp_path / "story.yaml").scheme == scheme
    (tmp_path / "story.yaml").write_text("scheme: levels\nsegments:\n  - prompt: up\n")
    with pytest.raises(UserError, match=r"story\.scheme: unknown value 'levels'.*; allowed: hierarchical, one-level"):
        load_story(tmp_path / "story.yaml")
