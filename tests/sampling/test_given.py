"""Given frames in videos: where they are, and where new frames have their detail."""

import numpy as np
import pytest

from tokvid.sampling.given import compared, detailed, followed, hidden, pasted, reduced, resized, restored

RNG = np.random.default_rng(0)
GIVEN = RNG.integers(100, 156, size=(2, 3, 16, 16, 3), dtype=np.uint8)  # two videos of three frames
LOST = RNG.integers(-9, 10, size=GIVEN.shape)
DECODED = (GIVEN - LOST).astype(np.uint8)  # the given frames, through a tokenizer


def whole(made, given=GIVEN, every=1, cuts=()):
    """The result of videos that come in parts."""
    parts = restored(iter(np.split(made, cuts, axis=1)), iter(np.moveaxis(given, 1, 0)), every)
    return np.concatenate(list(parts), axis=1)


def test_what_stands_still_keeps_its_detail():
    """Two frames after the given ones look as the last of them, but for the right half of the second."""
    after = DECODED[:, [2, 2]].copy()
    after[:, 1, :, 8:] = 255 - after[:, 1, :, 8:] // 4  # brighter by about 100
    made = whole(np.concatenate([DECODED, after], axis=1))
    np.testing.assert_array_equal(made[:, :3], GIVEN)
    np.testing.assert_array_equal(made[:, 3], GIVEN[:, 2])
    np.testing.assert_array_equal(made[:, 4, :, :4], GIVEN[:, 2, :, :4])  # four pixels away from the change
    np.testing.assert_array_equal(made[:, 4, :, 12:], after[:, 1, :, 12:])


@pytest.mark.parametrize("down, right", [(3, 0), (-2, 3), (0, -4)])
def test_what_moves_takes_its_detail_along(down, right):
    """Up to a few pixels; beyond, nothing looks the same."""
    given = RNG.integers(0, 256, size=(1, 1, 32, 32, 3), dtype=np.uint8)
    decoded = (given // 16 * 16).astype(np.uint8)
    inside = np.s_[:, 1, 12:20, 12:20]
    for far, found in ((1, 0.9), (3, 0.0)):
        moved, moved_given = (np.roll(each, (far * down, far * right), (2, 3)) for each in (decoded, given))
        made = whole(np.concatenate([decoded, moved], axis=1), given)
        assert (made[inside] == moved_given[:, 0, 12:20, 12:20]).mean() >= found
        assert found or (made[inside] == moved[:, 0, 12:20, 12:20]).mean() > 0.5


def test_between_two_given_frames_detail_goes_over_from_one_to_the_other():
    before, after = compared(GIVEN[:, 0], DECODED[:, 0]), compared(GIVEN[:, 0], DECODED[:, 0] - 4)
    for at, lost in ((0, LOST[:, 0]), (0.25, LOST[:, 0] + 1), (1, LOST[:, 0] + 4)):
        made = detailed(DECODED[:, 0], before, after, at).astype(int) - DECODED[:, 0]
        assert np.abs(made - lost).max() <= 1, at
    bright = 255 - DECODED[:, 0] // 4  # looks like nothing of it
    far = compared((bright + LOST[:, 1]).astype(np.uint8), bright)
    for pair, at in (((before, far), 0.9), ((far, before), 0.1)):
        assert np.abs(detailed(DECODED[:, 0], *pair, at).astype(int) - GIVEN[:, 0]).max() <= 1


def test_frames_between_have_the_detail_of_their_place():
    """Of the fourth frame, 4 grey levels more are lost than of the first: a quarter of it for each frame."""
    made = DECODED[:, [0]].repeat(5, axis=1)
    made[:, 4] -= 4
    found = whole(made, GIVEN[:, [0, 0]], 4).astype(int)
    for place in (1, 2, 3):
        assert np.abs(found[:, place] - GIVEN[:, 0] - place).mean() < 0.2, place


@pytest.mark.parametrize("cuts", [(), (1, 2, 3, 4, 5, 6), (2, 5)])
@pytest.mark.parametrize("every, frames", [(1, 3), (1, 7), (2, 5), (2, 4), (2, 7), (3, 7), (5, 4)])
def test_every_given_frame_is_in_its_place_however_parts_are_cut(every, frames, cuts):
    made = RNG.integers(256, size=(2, frames, 16, 16, 3), dtype=np.uint8)
    found = whole(made, every=every, cuts=[cut for cut in cuts if cut < frames])
    assert found.shape == made.shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found, whole(made, every=every))
    places = list(range(0, frames, every))[:3]
    np.testing.assert_array_equal(found[:, places], GIVEN[:, : len(places)])
    others = [place for place in range(frames) if place not in places]
    assert not others or (found[:, others] != GIVEN[:, [0]]).any()


def test_without_given_frames_nothing_changes():
    made = RNG.integers(256, size=(2, 5, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(whole(made, GIVEN[:, :0]), made)


def test_frames_come_as_soon_as_the_next_given_one_is_known():
    made = (DECODED[:, [0]] for _ in range(5))
    lengths = [part.shape[1] for part in restored(made, iter(np.moveaxis(GIVEN[:, :2], 1, 0)), 2)]
    assert lengths == [1, 2, 1, 1]


def test_what_still_looks_the_same_has_the_first_frames_pixels():
    """Colours of a first frame, where the grey video is as it was, and a few pixels away from there."""
    rng = np.random.default_rng(0)
    grey_HWC = np.repeat(rng.integers(60, 200, size=(32, 32, 1)), 3, axis=2).astype(np.uint8)
    first_HWC = (grey_HWC * np.array([1.2, 1.0, 0.6])).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    moved_HWC, changed_HWC = np.roll(grey_HWC, 3, axis=1), grey_HWC.copy()
    changed_HWC[:, 16:] = 255 - changed_HWC[:, 16:] // 2
    made = np.full((1, 3, 64, 64, 3), 7, np.uint8)
    seen = (frame_HWC.repeat(2, axis=0).repeat(2, axis=1)[None] for frame_HWC in (grey_HWC, moved_HWC, changed_HWC))
    (found,) = followed(iter([made]), seen, first_HWC[None], (32, 32))
    same, moved, changed = found[0].astype(int)
    np.testing.assert_array_equal(same, first_HWC)
    wanted_HWC = np.roll(first_HWC, 6, axis=1).astype(int)
    apart, before = np.abs(moved - wanted_HWC)[16:-16, 24:-24], np.abs(7 - wanted_HWC)[16:-16, 24:-24]
    assert apart.mean() < 0.1 * before.mean()
    np.testing.assert_array_equal(changed[:, :20], first_HWC[:, :20])
    assert np.abs(changed - 7)[:, 48:].mean() < 0.3 * np.abs(first_HWC.astype(int) - 7)[:, 48:].mean()


def test_larger_frames_keep_their_detail_as_well():
    """Of twice the size: what stands still is given to the pixel, what has changed is enlarged."""
    large = RNG.integers(90, 166, size=(2, 1, 32, 32, 3), dtype=np.uint8)
    small = np.stack([reduced(frame, (16, 16)) for frame in large[:, 0]])[:, None]
    assert np.abs(small.astype(int) - large.reshape(2, 1, 16, 2, 16, 2, 3).mean(axis=(3, 5))).max() <= 0.5
    after = small.copy()
    after[:, 0, :, 8:] = 255 - after[:, 0, :, 8:] // 4
    made = whole(np.concatenate([small, small, after], axis=1), large)
    assert made.shape == (2, 3, 32, 32, 3)
    np.testing.assert_array_equal(made[:, :2], large[:, [0, 0]])
    np.testing.assert_array_equal(made[:, 2, :, :6], large[:, 0, :, :6])
    np.testing.assert_array_equal(made[:, 2, :, 26:], resized(after[:, 0], (32, 32))[:, :, 26:])


def test_pasted_pixels_fade_into_what_is_new():
    """Inside as given; right beside it most of what the tokens lose is added, far from it nothing."""
    made, inside = np.full((3, 16, 16, 3), 100, np.uint8), np.zeros((3, 16, 16), bool)
    inside[:2, :, :4] = True
    given = np.where(inside[..., None], np.uint8(150), np.uint8(0))
    found = np.concatenate(list(pasted(iter(np.split(made, 3)), given, inside)))
    np.testing.assert_array_equal(found[:2, :, :4], 150)
    assert (found[:2, :, 4] == 130).all() and (found[:2, :, 12:] <= 101).all()
    assert (np.diff(found[:2, :, 4:].astype(int), axis=2) <= 0).all()
    np.testing.assert_array_equal(found[2], made[2])


def test_pasted_pixels_beside_white_ones_stay_white():
    """What is lost of a given pixel can be more than there is room for."""
    inside = np.zeros((1, 16, 16), bool)
    inside[:, :, :4] = True
    made = np.where(inside[..., None], np.uint8(200), np.uint8(250)).repeat(3, axis=-1)
    (found,) = pasted(iter([made]), np.full((1, 16, 16, 3), 255, np.uint8), inside)
    assert (found[:, :, :5] == 255).all() and found.min() >= 250


def test_hidden_pixels_are_the_nearest_of_those_that_are_kept():
    """In each frame by itself; where none is kept, there is nothing to take."""
    video, inside = RNG.integers(256, size=(3, 8, 8, 3), dtype=np.uint8), np.zeros((3, 8, 8), bool)
    inside[0, :, :3] = inside[2] = True
    found = hidden(video, inside)
    np.testing.assert_array_equal(found[0, :, 3:], video[0, :, 2:3].repeat(5, axis=1))
    np.testing.assert_array_equal(found[1:], video[1:])
