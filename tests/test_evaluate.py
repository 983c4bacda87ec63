"""Evaluation: a perfect model gets full marks, a bad one none, and the reader is sure of the truth."""

import collections
import dataclasses
import itertools
import json
import types

import numpy as np
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.evaluate import batches, interpolation, reconstruction, shapes
from tokvid.evaluate.batches import Settings, generate_batch, through, usual
from tokvid.evaluate.interpolation import InterpolationSet, blend, evaluate_interpolation, jitter
from tokvid.evaluate.reconstruction import Reconstruction, evaluate_reconstruction, some_clips, with_later_codes
from tokvid.evaluate.shapes import evaluate_shapes, read_segments
from tokvid.io.worlds import SHIPPED
from tokvid.metrics.features import load_features
from tokvid.metrics.video import psnr
from tokvid.sampling.story import Segment, Story, load_story
from tokvid.shapes.drawing import LANGUAGES, PHRASINGS, ShapesDataset, ShapesSegment, ShapesStory, caption, render
from tokvid.shapes.words import (
    COLORS,
    DIRECTIONS,
    NO_SPEED,
    SHAPES,
    SIZES,
    SPEEDS,
    STILL,
    ShapeAttributes,
    is_held_out,
)

RATES = (2.0, 4.0, 8.0)
FEATURES = load_features("random-convolutions")


def every_caption():
    """What each possible caption says."""
    for size in SIZES:
        for color in COLORS:
            for shape in SHAPES:
                for direction in DIRECTIONS:
                    for speed in (NO_SPEED,) if direction == STILL else SPEEDS:
                        attributes = ShapeAttributes(size, color, shape, direction, speed)
                        for language in LANGUAGES:
                            for index in range(PHRASINGS[language]):
                                yield caption(attributes, index, language), attributes


SAID = dict(every_caption())


def perfect(models, fps, parts, seeds_B, settings):
    """Draws exactly what the prompts say."""
    frames = round(sum(seconds for seconds, _ in parts) * fps)
    videos = []
    for prompts, seed in zip(zip(*(prompts for _, prompts in parts), strict=True), seeds_B, strict=True):
        starts = np.cumsum([0, *(seconds for seconds, _ in parts)])
        segments = tuple(
            ShapesSegment(float(start), 10.0, SAID[prompt], prompt)
            for start, prompt in zip(starts, prompts, strict=False)
        )
        place = np.random.default_rng(seed).uniform(0, 64, size=2)
        radius = SIZES[SAID[prompts[0]].size]
        story = ShapesStory(radius, 0.0, 30, (float(place[0]), float(place[1])), segments)
        videos.append(render(story, fps=fps, frames=frames, size=models.size[0]))
    return np.stack(videos)


@pytest.fixture
def models(monkeypatch):
    """What evaluation asks of models, at the size of the shipped ones; the tokenizer loses nothing."""
    monkeypatch.setattr(shapes, "generate_batch", perfect)
    monkeypatch.setattr(shapes, "through", lambda tokenizer, video_BTHWC: (video_BTHWC, None))
    transformer = types.SimpleNamespace(
        config=types.SimpleNamespace(latent=(4, 8, 8), latent_frames=4), about={"fps": RATES}
    )
    return types.SimpleNamespace(size=(32, 32), mark="mark", tokenizer=None, temporal_patch=2, transformer=transformer)


def test_a_perfect_model_gets_full_marks(models):
    figures = evaluate_shapes(models, 60, seed=3)
    for name in ("attributes", "ceiling_real", "ceiling_reconstruction"):
        assert set(figures[name]) == {"color", "shape", "size", "direction", "speed", "joint"}
        assert min(figures[name].values()) >= 0.98, (name, figures[name])
    assert figures["held_out"]["joint"] >= 0.9 and figures["held_out"]["samples"] == 15
    assert set(figures["speed_error_by_fps"]) == {"2", "4", "8"}
    assert max(figures["speed_error_by_fps"].values()) < 0.05
    assert figures["prompt_switch"]["follows_within_a_second"] >= 0.9
    assert figures["prompt_switch"]["keeps_identity"] >= 0.9
    assert 0.8 < figures["seam_ratio"] < 1.25
    assert (figures["samples"], figures["seed"], figures["weights"]) == (60, 3, "mark")
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("fps", RATES)
def test_the_reader_is_sure_of_the_truth_at_every_rate(models, fps):
    models.transformer.about["fps"] = (fps,)
    figures = evaluate_shapes(models, 100, seed=0)
    assert figures["ceiling_real"]["joint"] >= 0.99


def test_a_model_that_does_not_listen_gets_no_marks(models, monkeypatch):
    def deaf(models, fps, parts, seeds_B, settings):
        said = caption(ShapeAttributes("small", "red", "circle", "left", "slow"), 0, "en")
        return perfect(models, fps, [(seconds, [said] * len(prompts)) for seconds, prompts in parts], seeds_B, None)

    monkeypatch.setattr(shapes, "generate_batch", deaf)
    figures = evaluate_shapes(models, 60, seed=0)
    assert figures["attributes"]["joint"] < 0.1 and figures["attributes"]["color"] < 0.4
    assert figures["ceiling_real"]["joint"] >= 0.98
    assert figures["prompt_switch"]["follows_within_a_second"] < 0.4
    assert figures["prompt_switch"]["keeps_identity"] == 1.0


def test_an_object_that_is_never_drawn_shows(models, monkeypatch):
    def without_small_stars(models, fps, parts, seeds_B, settings):
        video = perfect(models, fps, parts, seeds_B, settings).copy()
        video[[(SAID[text].size, SAID[text].shape) == ("small", "star") for text in parts[0][1]]] = 0
        return video

    monkeypatch.setattr(shapes, "generate_batch", without_small_stars)
    joint = evaluate_shapes(models, 100, seed=0)["joint_by_object"]
    assert len(joint) == 8 and joint.pop("small star") == 0 and min(joint.values()) > 0.8


def test_a_model_that_makes_nothing_gives_null_not_nan(models, monkeypatch):
    monkeypatch.setattr(shapes, "generate_batch", lambda *args: perfect(*args) * 0)
    figures = evaluate_shapes(models, 4, seed=0)
    assert figures["speed_error_by_fps"] == {"2": None, "4": None, "8": None} and figures["seam_ratio"] is None
    assert set(figures["attributes"].values()) == {0.0} and figures["prompt_switch"]["keeps_identity"] == 0.0
    json.dumps(figures, allow_nan=False)


def test_prompt_switches_are_timed(models, monkeypatch):
    """A motion that changes two seconds late doesn't follow within one."""

    def late(models, fps, parts, seeds_B, settings):
        if len(parts) == 2:
            (first, before), (second, after) = parts
            parts = [(first + 2, before), (second - 2, after)]
        return perfect(models, fps, parts, seeds_B, settings)

    monkeypatch.setattr(shapes, "generate_batch", late)
    figures = evaluate_shapes(models, 40, seed=0)
    assert figures["prompt_switch"]["follows_within_a_second"] < 0.5 and figures["attributes"]["joint"] >= 0.98


def test_a_jump_at_every_join_shows(models, monkeypatch):
    def jumpy(models, fps, parts, seeds_B, settings):
        video = perfect(models, fps, parts, seeds_B, settings).copy()
        if len(parts) == 2:  # every other window elsewhere; they are two latent frames long, the first four
            for first in range(7, video.shape[1], 8):
                video[:, first : first + 4] = np.roll(video[:, first : first + 4], 16, axis=2)
        return video

    monkeypatch.setattr(shapes, "generate_batch", jumpy)
    assert evaluate_shapes(models, 20, seed=0)["seam_ratio"] > 1.5


def test_batches_do_not_matter(models, monkeypatch, by_two):
    whole = evaluate_shapes(models, 20, seed=1)
    monkeypatch.setattr(shapes, "BATCH", 3)
    in_parts = evaluate_shapes(models, 20, seed=1)
    for name in ("ceiling_real", "attributes", "held_out", "joint_by_object"):
        assert in_parts[name] == whole[name]
    assert by_two(lambda: evaluate_shapes(models, 20, seed=1)) == [in_parts, in_parts]


def test_real_models_are_measured_the_same_way_twice(tiny_models):
    first = evaluate_shapes(tiny_models, 4, seed=5)
    assert first == evaluate_shapes(tiny_models, 4, seed=5)
    assert set(first) == {
        "attributes", "ceiling_real", "ceiling_reconstruction", "held_out", "by_language", "joint_by_object",
        "speed_error_by_fps", "prompt_switch",
        "seam_ratio", "seam_ratio_reconstruction", "samples", "seed", "settings", "weights",
    }  # fmt: skip
    assert first["settings"]["guidance"] == 3.0 and set(first["speed_error_by_fps"]) == {"4", "8"}


@pytest.mark.parametrize("change", [{"samples": 3}, {"size": (32, 48)}])
def test_what_cannot_be_evaluated_is_refused(models, change):
    models.size = change.get("size", models.size)
    with pytest.raises(UserError, match="4 or more samples of square videos"):
        evaluate_shapes(models, change.get("samples", 8), seed=0)


def test_the_shipped_story_says_only_what_was_trained():
    """One object in the words of the captions; nothing that is held out, so that it shows what the weights can do."""
    story = load_story(SHIPPED / "demo" / "story.yaml")
    told = [SAID[segment.prompt] for segment in story.segments]
    assert story.seconds == 11 and story.fps == 8 and len(told) == 4
    assert len({(each.size, each.shape) for each in told}) == 1 and not any(map(is_held_out, told))
    colors = [each.color for each in told]
    assert sum(one != other for one, other in itertools.pairwise(colors)) <= 1
    assert all((a.direction, a.speed) != (b.direction, b.speed) for a, b in itertools.pairwise(told))


@pytest.mark.parametrize("count", [1, 5])
def test_generated_videos_begin_with_given_frames(tiny_models, count, monkeypatch):
    given = np.random.default_rng(0).integers(0, 256, (2, count, 16, 16, 3), np.uint8)
    asked = (tiny_models, 4.0, [(2.25, ["up", "down"])], np.array([1, 2], np.uint32), Settings(guidance=1.0), given)
    made = generate_batch(*asked)
    assert made.shape == (2, 9, 16, 16, 3)
    np.testing.assert_array_equal(made[:, :count], given)
    monkeypatch.setattr(batches, "restored", lambda made, given: made)  # what was decoded is of their tokens, too
    rebuilt = through(tiny_models.tokenizer, given)[0].astype(int)
    np.testing.assert_allclose(generate_batch(*asked)[:, :count], rebuilt, atol=1)


def test_reconstruction_with_other_numbers_of_later_codes(any_models):
    data, tokenizer = DataConfig(size=(16, 16), fps=(4.0,), frames=5, videos=20), any_models.tokenizer
    if not any_models.transformer.config.generated:
        with pytest.raises(UserError, match="leave out --later-codes"):
            with_later_codes(tokenizer, 0)
        return
    figures = {
        number: evaluate_reconstruction(with_later_codes(tokenizer, number), data, 4, 0, FEATURES)
        for number in (0, 1, 2)
    }
    assert [figures[number]["later_codes"] for number in (0, 1, 2)] == [0, 1, 2]
    bits = {number: each["bits_per_pixel"] / figures[1]["bits_per_pixel"] for number, each in figures.items()}
    codes = any_models.transformer.config.subcodes
    assert bits == pytest.approx({0: 3 * codes / (codes + 2), 1: 1, 2: (codes + 4) / (codes + 2)})
    assert figures[2]["psnr"] == evaluate_reconstruction(tokenizer, data, 4, 0, FEATURES)["psnr"]
    assert len({each["psnr"] for each in figures.values()}) == 3
    with pytest.raises(UserError, match="later_codes"):
        with_later_codes(tokenizer, codes + 1)


def test_reconstruction_of_larger_clips_than_in_training(any_models):
    data, size = DataConfig(size=(32, 32), fps=(4.0,), frames=5, videos=20), any_models.tokenizer.config.size
    assert size == (16, 16)
    figures = evaluate_reconstruction(any_models.tokenizer, data, 4, 0, FEATURES)
    smaller = evaluate_reconstruction(any_models.tokenizer, dataclasses.replace(data, size=size), 4, 0, FEATURES)
    assert figures["size"] == [32, 32] and figures["psnr"] != smaller["psnr"]
    assert figures["bits_per_pixel"] == pytest.approx(smaller["bits_per_pixel"])
    with pytest.raises(UserError, match="width 30 is no multiple"):
        evaluate_reconstruction(any_models.tokenizer, dataclasses.replace(data, size=(32, 30)), 4, 0, FEATURES)


def test_reconstruction(any_models, by_two):
    data = DataConfig(size=(16, 16), fps=(4.0, 8.0), frames=5, videos=100)
    figures = evaluate_reconstruction(any_models.tokenizer, data, 40, 0, FEATURES)
    config = any_models.transformer.config
    assert figures["samples"] == 40 and figures["split"] == "held_out" and 0 < figures["codes_used"] <= 1
    assert figures["psnr"] < 20 < figures["repeat_psnr"] <= 100  # random weights against a truth that hardly moves
    subcodes = config.subcodes + 2 * (config.generated or config.subcodes)  # of a place, in three latent frames
    assert abs(figures["bits_per_pixel"] - 4 * subcodes * np.log2(30) / (5 * 16 * 16)) < 1e-9
    again = by_two(lambda: evaluate_reconstruction(any_models.tokenizer, data, 40, 0, FEATURES))
    assert again == [figures, figures]
    assert figures["frechet"] > figures["frechet_real_halves"] and figures["features"].startswith(FEATURES.name)
    assert 1 <= figures["perplexity"] <= 30 and figures["temporal_error"] > figures["repeat_temporal_error"]
    json.dumps(figures, allow_nan=False)
    assert figures["frechet_shuffled"] > 1e-4  # the order of frames counts


@pytest.mark.parametrize("samples, data", [(0, {}), (4, {"size": (8, 8)}), (4, {"fps": (0.01,)})])
def test_reconstruction_that_cannot_be_is_refused(tiny_models, samples, data):
    config = DataConfig(**({"size": (16, 16), "fps": (4.0,), "frames": 5, "videos": 10} | data))
    with pytest.raises(UserError):
        evaluate_reconstruction(tiny_models.tokenizer, config, samples, 0, FEATURES)


def test_damaged_clips_are_left_out_and_no_more_are_read_than_wanted(monkeypatch):
    data, read = DataConfig(size=(16, 16), fps=(4.0,), frames=5), []

    class Source:
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            read.append(index)
            if len(read) % 3 == 1:
                raise UserError("the record is damaged")
            return ShapesDataset(1000, 0)[index]

    monkeypatch.setattr(reconstruction, "open_source", lambda data, split: Source())
    clips = list(some_clips(data, "train", 8, np.random.default_rng(0)))
    assert len(clips) == 8 and len(read) == 12 and all(clip_THWC.shape == (5, 16, 16, 3) for clip_THWC, _ in clips)


def test_a_streamed_reconstruction_equals_one_of_all_frames(any_models):
    tokenizer = any_models.tokenizer
    truth_THWC = np.random.default_rng(0).integers(256, size=(6, 16, 16, 3), dtype=np.uint8)  # half a latent frame less
    whole_BTHWC, ids_BTHWQ = through(tokenizer, truth_THWC[None])
    streamed = Reconstruction(tokenizer, (16, 16))
    assert not streamed.complete
    np.testing.assert_array_equal(list(streamed.frames(iter(truth_THWC))), whole_BTHWC[0])
    figures = streamed.figures()
    assert streamed.complete and figures["frames"] == 6 and figures["tokens"] == ids_BTHWQ[..., 0].size
    psnrs = [psnr(truth_THWC[i : i + 1], whole_BTHWC[0, i : i + 1]) for i in range(6)]
    assert figures["psnr"] == pytest.approx(np.mean(psnrs), abs=1e-4)


def test_each_segment_of_a_story_is_read_back():
    said = [ShapeAttributes("large", "red", "square", direction, "slow") for direction in ("right", "up")]
    parts = tuple(ShapesSegment(2.0 * number, 2.0, one, one.direction) for number, one in enumerate(said))
    frames = render(ShapesStory(SIZES["large"], 0.0, 30, (32.0, 32.0), parts), fps=8.0, frames=32)
    segments = read_segments(Story(tuple(Segment(one.direction, 2.0) for one in said), fps=8.0), list(frames))
    for segment, one in zip(segments, said, strict=True):
        assert (segment["prompt"], segment["seconds"]) == (one.direction, 2.0)
        fields = dataclasses.asdict(one)
        assert {name: segment["read_from_the_pixels"][name] for name in fields} == fields
    black = [np.zeros((64, 64, 3), np.uint8)] * 32
    assert read_segments(Story((Segment("a"),), fps=8.0), black)[0]["read_from_the_pixels"] is None


def test_blending_and_repeating():
    """Frames 0, 1, 2, … hold 0, 10, 20, … : a blend is exact there, up to the end."""
    video = np.broadcast_to(10 * np.arange(9, dtype=np.uint8)[None, :, None, None, None], (1, 9, 2, 2, 3))
    for factor in (2, 4):
        np.testing.assert_array_equal(blend(video, factor), video)
    video = np.array([0, 9, 20, 50, 90], np.uint8)[None, :, None, None, None]
    np.testing.assert_array_equal(blend(video, 2).ravel(), [0, 10, 20, 55, 90])


def test_jitter_is_that_of_the_displacement():
    """A steady motion has next to none; one that jumps back and forth by 2 pixels has its variance."""
    said = caption(ShapeAttributes("large", "red", "circle", "right", "slow"), 0, "en")
    types_of = types.SimpleNamespace(size=(64, 64))
    steady = perfect(types_of, 8.0, [(2.0, [said])], [3], None)[0]
    assert jitter(steady, 8.0) < 0.05
    shaken = np.stack([np.roll(frame_HWC, 2 * (i % 2), axis=1) for i, frame_HWC in enumerate(steady)])
    assert jitter(shaken, 8.0) == pytest.approx(4.0, rel=0.1)
    assert jitter(np.zeros_like(steady), 8.0) is None


def test_interpolation(tiny_models, by_two, monkeypatch):
    """Random weights are worse than anything; the same twice."""
    monkeypatch.setattr(interpolation, "BATCH", 3)
    about = tiny_models.transformer.about | {"layouts": {"tasks": {"interpolation": 0.4}, "rows": [0]}}
    models = tiny_models._replace(transformer=tiny_models.transformer._replace(about=about))
    data = DataConfig(size=(16, 16), fps=(4.0, 8.0), videos=100)
    figures = evaluate_interpolation(models, data, InterpolationSet(5, 2, 0))
    assert figures["samples"] == 5 and figures["frames"] == 17 and figures["fps"] == 8
    assert figures["psnr"] < 15 < figures["repeat_psnr"] < figures["blend_psnr"] <= 100
    assert figures["ceiling_psnr"] < 20
    assert figures["ssim"] < figures["repeat_ssim"] < figures["blend_ssim"] <= 1
    assert 0 <= figures["blend_perceptual"] < figures["repeat_perceptual"] < figures["moving"]["perceptual"]
    assert by_two(lambda: evaluate_interpolation(models, data, InterpolationSet(5, 2, 0))) == [figures, figures]
    several = evaluate_interpolation(models, data, InterpolationSet(5, 2, 0, draws=2), usual("interpolation", draws=2))
    assert (several["draws"], several["settings"]["sampling"]["temperature"]) == (2, 1.0)
    assert several["psnr"] != figures["psnr"] and several["blend_psnr"] == figures["blend_psnr"]
    json.dumps(figures, allow_nan=False)
    with pytest.raises(UserError, match=r"factor should be a power of 2 .*, got 3"):
        evaluate_interpolation(models, data, InterpolationSet(5, 3, 0))
    with pytest.raises(UserError, match=r"4 or more, of 11 pixels or more, got 5 of \(8, 8\)"):
        evaluate_interpolation(models, dataclasses.replace(data, size=(8, 8)), InterpolationSet(5, 2, 0))


def test_only_new_frames_are_compared_and_the_half_that_moves_most_apart():
    """Where repeating the frame before is worst, most moves."""
    truth_THWC = np.random.default_rng(0).integers(256, size=(5, 16, 16, 3), dtype=np.uint8)
    made_THWC, scores = truth_THWC.copy(), collections.defaultdict(list)
    made_THWC[::2] = 0  # frames that were given
    interpolation._compare(scores, {"": made_THWC, "ceiling_": truth_THWC}, truth_THWC, 8.0, 2)
    assert scores["psnr"] == [100] and scores["ssim"] == [pytest.approx(1)]
    for kind, metric in itertools.product(("", "blend_", "repeat_", "ceiling_"), interpolation.COMPARED):
        scores[f"{kind}{metric}"] = [1.0, 2.0, 3.0, 4.0]
    scores["repeat_psnr"] = [30.0, 10.0, 40.0, 20.0]
    figures = interpolation._figures(scores)
    assert figures["psnr"] == 2.5 and figures["moving"]["psnr"] == 3.0


def test_interpolation_is_measured_with_its_own_lora(tiny_models):
    def load():
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        evaluate_interpolation(
            tiny_models._replace(tuned={"interpolation": load}), DataConfig(size=(16, 16)), InterpolationSet(5, 2, 0)
        )


def test_a_perfect_interpolation_reaches_the_ceiling(tiny_models, monkeypatch):
    """When models make what the tokenizer makes of the truth, the figures are its own."""
    about = tiny_models.transformer.about | {"layouts": {"tasks": {"interpolation": 0.4}, "rows": [0]}}
    models = tiny_models._replace(transformer=tiny_models.transformer._replace(about=about))
    data, seen = DataConfig(size=(32, 32), fps=(8.0,), videos=100), []

    def remember(truth_BTHWC, factor):
        seen.append(truth_BTHWC)
        return blend(truth_BTHWC, factor)

    class Made:
        """Frames that are known only once the truth was seen."""

        def __init__(self, *_, **__):
            pass

        def __iter__(self):
            yield real[len(seen)]

    real = []
    monkeypatch.setattr(interpolation, "blend", remember)
    monkeypatch.setattr(interpolation, "through", lambda tokenizer, video_BTHWC: (video_BTHWC, None))
    monkeypatch.setattr(interpolation, "interpolated", lambda *_, **__: iter([np.zeros((5, 17, 32, 32, 3), np.uint8)]))
    evaluate_interpolation(models, data, InterpolationSet(5, 2, 0))
    real.extend(seen)
    seen.clear()
    monkeypatch.setattr(interpolation, "interpolated", Made)
    figures = evaluate_interpolation(models, data, InterpolationSet(5, 2, 0))
    assert figures["ssim"] == 1 and figures["perceptual"] == 0 < figures["moving"]["repeat_perceptual"]
    assert figures["psnr"] == figures["ceiling_psnr"] == 100 > figures["blend_psnr"] > figures["repeat_psnr"]
    assert figures["jitter"] == figures["truth_jitter"]
    assert figures["moving"]["psnr"] == 100 and figures["moving"]["repeat_psnr"] < figures["repeat_psnr"]
