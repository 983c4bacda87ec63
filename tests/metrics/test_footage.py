"""Measures of footage, on frames whose truth is known."""

import itertools

import numpy as np
import pytest

from tokvid.metrics.footage import bars, brightest, change, cuts, look, motion, sharpness, velocity
from tokvid.shapes.drawing import render, story_from
from tokvid.shapes.words import ShapeAttributes


def clip(direction="right", speed="quick", color="red", frames=9, size=64):
    story = story_from([ShapeAttributes("large", color, "circle", direction, speed)], [2.0], 0)
    return render(story, fps=8.0, frames=frames, size=size)


@pytest.mark.parametrize("size", [64, 200])
@pytest.mark.parametrize(
    "direction, speed, wanted", [("right", "quick", (3, 0)), ("up", "slow", (0, -1)), ("still", "none", (0, 0))]
)
def test_velocity_is_that_of_what_moves(size, direction, speed, wanted):
    looks = [look(image_HWC) for image_HWC in clip(direction, speed, size=size)]
    steps = [velocity(*pair) for pair in itertools.pairwise(looks)]
    np.testing.assert_allclose(np.median(steps, axis=0), 1.25 * np.array(wanted) / 64, rtol=0.2, atol=0.001)
    moves = [motion(*pair) for pair in itertools.pairwise(looks)]
    assert max(moves) == 0 if speed == "none" else min(moves) > 3


def test_cuts_are_where_all_changes():
    rng = np.random.default_rng(0)
    shots = [rng.integers(256, size=3) + clip(direction)[:, :, :, :] // 4 for direction in ("left", "right", "up")]
    looks = [look(image_HWC) for image_HWC in np.concatenate(shots).clip(0, 255).astype(np.uint8)]
    changes = [0.0, *(change(*pair) for pair in itertools.pairwise(looks))]
    assert cuts(np.array(changes)) == [9, 18] and cuts(np.array([0.0, 0.9])) == [1]
    assert cuts(np.array([0.0, *[0.5] * 20])) == []  # all frames differ
    assert cuts(np.array([0.0, *[0.02, 0.02, 0.9] * 9])) == list(range(3, 28, 3))  # shots of three frames


def test_a_blur_is_less_sharp():
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(256, size=(64, 64, 3), dtype=np.uint8)
    wide_HWC = image_HWC.astype(np.float32)
    for _ in range(30):
        wide_HWC = sum(np.roll(wide_HWC, shift, axis) for shift in (-1, 0, 1) for axis in (0, 1)) / 6
    assert sharpness(image_HWC) > 0.8 > 0.5 > sharpness(wide_HWC.astype(np.uint8))
    assert sharpness(np.zeros((9, 9, 3), np.uint8)) == 0


def test_motion_blur_in_one_direction_is_a_blur():
    image_HWC = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    for axis in (0, 1):
        smeared_HWC = image_HWC.astype(np.float32)
        for _ in range(30):
            smeared_HWC = sum(np.roll(smeared_HWC, shift, axis) for shift in (-1, 0, 1)) / 3
        assert sharpness(smeared_HWC.astype(np.uint8)) < 0.5


def test_bars_are_on_two_sides_of_all_frames():
    """A dark floor is none, nor what is dark for a while."""
    image_HWC = np.full((100, 60, 3), 120, np.uint8)
    boxed_HWC, dark_below_HWC = image_HWC.copy(), image_HWC.copy()
    boxed_HWC[:10] = boxed_HWC[-10:] = dark_below_HWC[-30:] = 5
    boxed, below, plain = map(brightest, (boxed_HWC, dark_below_HWC, image_HWC))
    sideways = brightest(boxed_HWC.swapaxes(0, 1))
    assert bars([boxed, boxed]) == bars([sideways]) == pytest.approx(0.2)
    assert bars([boxed, plain]) == bars([plain, boxed]) == bars([below]) == 0
