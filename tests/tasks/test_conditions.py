"""New frames put right so that they have a given condition."""

import numpy as np

from tokvid.tasks.conditions import CONDITIONS, draw_points, grey, salient_points, with_luma, with_means

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


def test_vivid_colours_are_paler_where_it_is_dark_or_bright():
    vivid = np.where(VIDEO > 128, np.uint8(255), np.uint8(0))
    for level in (10, 245):
        luma = np.full_like(VIDEO, level)
        made = with_luma(vivid, luma)
        assert np.abs(grey(made).astype(int) - luma).max() <= 1 and (made[..., 0] != made[..., 2]).any()


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


def test_points_are_drawn_where_they_are_and_found_again():
    """x is to the right, y is down; nothing is found where nothing is."""
    points = np.array([[[0.25, 0.75]], [[0.7, 0.2]], [[np.nan, np.nan]]])
    drawn = draw_points(points, (48, 96))
    assert (drawn[0, 36, 24] == 255).all() and (drawn[1, 9, 67] == 255).all() and not drawn[2].any()
    np.testing.assert_allclose(salient_points(drawn), points, atol=0.01)
    noise = np.random.default_rng(0).integers(100, 106, size=(1, 16, 16, 3), dtype=np.uint8)
    assert np.isnan(salient_points(noise)).all()
