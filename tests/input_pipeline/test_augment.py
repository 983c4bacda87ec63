"""Augmented clips: what may change, and when."""

import dataclasses

import numpy as np
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.input_pipeline.augment import augment, check, magnified
from tokvid.input_pipeline.loader import clip_batches

PLAIN = DataConfig(size=(8, 8), frames=3)


def clip(height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)


def change(captions, video=None, seed=0, **settings):
    config = dataclasses.replace(PLAIN, **settings)
    return augment(clip() if video is None else video, captions, config, np.random.default_rng(seed))


@pytest.mark.parametrize(
    "caption", ["a cat jumps", "the bright sun", "一只猫跳起来", "it was leftover rice", "downright good"]
)
def test_a_mirror_where_nothing_says_which_side(caption):
    np.testing.assert_array_equal(change([caption], flip=1.0), clip()[:, :, ::-1])


@pytest.mark.parametrize(
    "caption",
    [
        "moves LEFT",
        "to the right.",
        "turning counter-clockwise",
        "向左移动",
        "顺时针旋转",
        "the digit 3 is moving up",
        "a sign",
        "the left-hand door",
        "a lefthand glove",
        "drives westward",
        "northeast",
        "handwritten notes",
        "車向東行駛",
        "逆時針旋轉",
        "ｍｏｖｅｓ　ｌｅｆｔ",
    ],
)
def test_no_mirror_where_it_would_make_the_caption_false(caption):
    np.testing.assert_array_equal(change(["a cat", caption], flip=1.0), clip())


def test_mirrors_come_as_often_as_asked_for_and_turn_whole_clips():
    mirrored = [np.array_equal(change(["a cat"], seed=seed, flip=0.25), clip()[:, :, ::-1]) for seed in range(400)]
    assert 0.18 < np.mean(mirrored) < 0.32


def test_light_changes_all_frames_alike_and_not_where_the_caption_speaks_of_it():
    lit = change(["a red ball"], light=0.3)
    assert not np.array_equal(lit, clip())
    table = {int(old): int(new) for old, new in zip(clip().ravel(), lit.ravel(), strict=True)}
    assert all(table[int(old)] == int(new) for old, new in zip(clip().ravel(), lit.ravel(), strict=True))
    assert all(table[a] <= table[b] for a, b in zip(sorted(table), sorted(table)[1:], strict=False))
    for caption in ("a white ball", "it gets darker", "一个白色的球", "nighttime", "陽光"):
        np.testing.assert_array_equal(change([caption], light=0.3), clip())


def test_a_crop_is_a_part_of_the_clip_the_same_in_all_frames():
    large, places = clip(11, 9), set()
    for seed in range(60):
        part = change(["left"], large, seed)
        found = [(i, j) for i in range(4) for j in range(2) if np.array_equal(large[:, i : i + 8, j : j + 8], part)]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) == 8


def test_clips_are_magnified_up_to_the_zoom():
    config, rng = dataclasses.replace(PLAIN, size=(40, 60), zoom=1.5), np.random.default_rng(0)
    sizes = np.array([magnified(config, rng) for _ in range(200)])
    assert sizes.min(0).tolist() == [40, 60] and sizes.max(0).tolist() == [60, 90]
    assert magnified(PLAIN, rng) == (8, 8)


def test_training_clips_are_augmented_and_repeat_with_their_seed():
    config = DataConfig(source="shapes", size=(16, 16), frames=3, videos=20, zoom=2.0)
    first, again, plain = (
        next(clip_batches(c, 4, 0)).video for c in (config, config, dataclasses.replace(config, zoom=1.0))
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == plain.shape and not np.array_equal(first, plain)


@pytest.mark.parametrize("settings", [{"flip": 1.5}, {"conditions": 1.5}, {"zoom": 0.5}, {"light": 1.0}, {"zoom": 9.0}])
def test_settings_that_cannot_be(settings):
    with pytest.raises(UserError, match=rf"data.{next(iter(settings))} .*should be|data.flip .*should be"):
        check(dataclasses.replace(PLAIN, **settings))
