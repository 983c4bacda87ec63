import dataclasses

import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.shapes import drawing as shapes
from tokvid.shapes import words as vocabulary
from tokvid.shapes.reading import read_attributes, score
from tokvid.shapes.words import ShapeAttributes


def clip(seed, fps=8.0, size=64):
    """One segment of a drawn story, 1 to 5 seconds, at least 3 frames: video, story and attributes."""
    rng = np.random.default_rng([seed, 7])
    story = shapes.sample_story(seed, held_out=bool(seed % 3 == 0), segment_seconds=(1.0, 5.0))
    segment = story.segments[rng.integers(len(story.segments))]
    frames = max(3, int(segment.seconds * fps))
    video = shapes.render(story, start=segment.start, fps=fps, frames=frames, size=size)
    return video, story, segment.attributes


def accuracies(scores):
    return {what: np.mean([each[what] for each in scores]) for what in scores[0]}


def blurred(video_THWC):
    """A 3x3 box blur."""
    for axis in (1, 2):
        video_THWC = sum(np.roll(video_THWC.astype(np.float64), shift, axis) for shift in (-1, 0, 1)) / 3
    return video_THWC


def test_reads_the_truth_at_every_rate():
    """At least 99.5 % on every attribute, jointly too, over 420 clips."""
    scores = []
    for fps in (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0):
        for seed in range(60):
            video, _, attributes = clip(int(fps) * 1000 + seed, fps)
            scores.append(score(read_attributes(video, fps), attributes))
    assert min(accuracies(scores).values()) >= 0.995, accuracies(scores)


@pytest.mark.parametrize("size", [32, 48, 96, 128])
def test_reads_the_truth_at_every_size(size):
    for seed in range(15):
        video, _, attributes = clip(seed, 6.0, size)
        assert score(read_attributes(video, 6.0), attributes)["joint"], (seed, attributes)


def test_reads_blurred_and_noisy_videos():
    """At least 97 % jointly after a 3x3 box blur and noise of 15 grey levels; without either it is 99.5 %."""
    rng = np.random.default_rng(0)
    scores = []
    for seed in range(100):
        video, _, attributes = clip(seed, 4.0)
        noisy = np.clip(blurred(video) + rng.normal(0, 15, video.shape), 0, 255).astype(np.uint8)
        scores.append(score(read_attributes(noisy, 4.0), attributes))
    assert accuracies(scores)["joint"] >= 0.97, accuracies(scores)


def test_measures_speed_position_size_and_color():
    """Numbers, not only names: a speed between the two that have names is measured, too."""
    story = shapes.sample_story(11, segments=(1, 1))
    video = shapes.render(story, fps=8, frames=24)
    reading = read_attributes(video, 8.0)
    positions = shapes.positions(story, np.arange(len(video)) / 8.0) % 64
    np.testing.assert_allclose(reading.centroid_TC, positions, atol=0.15)
    assert reading.radius == pytest.approx(story.radius, rel=0.01)
    np.testing.assert_allclose(reading.radius_T, story.radius, rtol=0.03)

    quick = ShapeAttributes("small", "red", "square", "down-left", "quick")
    video = shapes.render(shapes.story_from([quick], [9.0], 1), fps=8, frames=33, size=96)
    for fps in (4.0, 8.0):  # the same frames said to be played at half the rate move at half the speed
        reading = read_attributes(video, fps)
        assert reading.units_per_second == pytest.approx(24 * fps / 8, rel=0.01)
        assert reading.pixels_per_second == pytest.approx(36 * fps / 8, rel=0.01)
    story = shapes.story_from([quick], [9.0], 1)
    expected = np.array(vocabulary.rgb("red", story.hue_shift))
    np.testing.assert_allclose(reading.rgb, expected, atol=1)
    assert (reading.hue - story.hue_shift + 180) % 360 - 180 == pytest.approx(0, abs=1)


def test_a_single_frame_has_no_motion():
    video, _, attributes = clip(0)
    reading = read_attributes(video[:1], 8.0)
    assert (reading.size, reading.color, reading.shape) == (
        attributes.size,
        attributes.color,
        attributes.shape,
    )
    assert reading.direction is reading.speed is reading.pixels_per_second is None


def test_a_few_bad_frames_do_not_matter():
    for seed in range(10):
        video, story, attributes = clip(seed, 16.0)
        video = video.copy()
        video[2] = story.background  # the object is missing
        video[5] = video[0]  # a frame out of order
        reading = read_attributes(video, 16.0)
        assert score(reading, attributes)["joint"], (seed, attributes)
        assert np.isnan(reading.centroid_TC[2]).all() and np.isnan(reading.radius_T[2])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("what", ["blank", "noise", "still noise", "blobs", "specks", "bar", "gone"])
def test_says_when_there_is_no_object(what, seed):
    rng = np.random.default_rng(seed)
    video = np.full((9, 64, 64, 3), rng.integers(256, size=3), dtype=np.uint8)
    if what == "noise":
        video = rng.integers(256, size=video.shape, dtype=np.uint8)
    elif what == "still noise":
        video[:] = rng.integers(256, size=video.shape[1:], dtype=np.uint8)
    elif what == "blobs":
        coarse = rng.integers(256, size=(9, 8, 8, 3), dtype=np.uint8)
        video = blurred(coarse.repeat(8, axis=1).repeat(8, axis=2)).astype(np.uint8)
    elif what == "specks":
        video[rng.random(video.shape[:3]) < 0.05] = (220, 30, 30)
    elif what == "bar":
        video[:, :, 20:26] = 255 - video[0, 0, 0]
    elif what == "gone":
        video, story, _ = clip(seed)
        video[len(video) // 3 :] = story.background
    assert read_attributes(video, 8.0) is None


def test_score_counts_each_attribute_alone():
    video, _, attributes = clip(2)
    reading = read_attributes(video, 8.0)
    assert all(score(reading, attributes).values())
    assert not any(score(None, attributes).values())
    wrong = {"size": vocabulary.SIZES, "color": vocabulary.COLORS, "shape": vocabulary.SHAPES}
    for what, names in wrong.items():
        other = next(name for name in names if name != getattr(attributes, what))
        got = score(reading, dataclasses.replace(attributes, **{what: other}))
        assert [name for name, right in got.items() if not right] == [what, "joint"]


def test_the_speed_of_a_still_shape_is_right_when_its_direction_is():
    still = ShapeAttributes("small", "blue", "star", "still", "none")
    moving = dataclasses.replace(still, direction="up", speed="slow")
    for shown, told, right in ((still, still, True), (moving, still, False), (still, moving, False)):
        got = score(read_attributes(shapes.render(shapes.story_from([shown], [2.0], 0)), 8.0), told)
        assert got["direction"] == got["speed"] == got["joint"] == right


@pytest.mark.parametrize(
    ("video", "fps"),
    [
        (np.zeros((3, 64, 64, 3)), 8.0),
        (np.zeros((64, 64, 3), np.uint8), 8.0),
        (np.zeros((3, 64, 64, 1), np.uint8), 8.0),
        (np.zeros((0, 64, 64, 3), np.uint8), 8.0),
        (np.zeros((3, 64, 64, 3), np.uint8), 0.0),
    ],
)
def test_mistakes_are_told(video, fps, unchecked_types):
    with pytest.raises(UserError):
        read_attributes(video, fps)
