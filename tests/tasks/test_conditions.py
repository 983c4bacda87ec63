"""New frames put right so that they have a given condition."""

import numpy as np

from tokvid.tasks.conditions import CONDITIONS, grey, with_luma, with_means

RNG = np.random.default_rng(0)
VIDEO = RNG.integers(60, 196, size=(3, 16, 24, 3), dtype=np.uint8)


def test_colours_take_the_luma_of_a_grey_video():
    """And keep the differences between their channels."""
    other = RNG.integers(90, 166, size=VIDEO.shape, dtype=np.uint8)
    made = with_luma(other, grey(VIDEO))
    assert np.abs(grey(made).astype(int) - grey(VIDEO)).max() <= 1
    apart = np.diff(made.astype(int), axis=-1) - np.diff(other.astype(int), axis=-1)
    assert np.abs(apart).max() <= 1
    assert (with_luma(np.zeros_like(VIDEO), np.full_like(VIDEO, 255)) == 255).all()


def test_blocks_take_the_means_of_a_smaller_video():
    """Nearly; and a video that has them already stays as it is."""
    low = CONDITIONS["low"]
    np.testing.assert_array_less(np.abs(with_means(VIDEO, low.apply(VIDEO)).astype(int) - VIDEO), 2)
    other = RNG.integers(90, 166, size=VIDEO.shape, dtype=np.uint8)
    was, now = (
        np.abs(low.apply(each).astype(int) - low.apply(VIDEO)).mean()
        for each in (other, with_means(other, low.apply(VIDEO)))
    )
    assert now < 0.15 * was


def test_only_conditions_that_fix_pixels_put_them_right():
    assert {name for name, each in CONDITIONS.items() if each.agree is not None} == {"grey"}
