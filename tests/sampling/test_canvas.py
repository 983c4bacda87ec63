"""Canvases larger than the trained size: where windows stand, and what each sees."""

import dataclasses
import itertools
import types

import jax
import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.sampling import window
from tokvid.sampling.canvas import canvas_sizes, outpaint, outward, tiled, upscale
from tokvid.sampling.codec import encode_clips
from tokvid.sampling.story import Segment, Story, encode_opening
from tokvid.tasks.tasks import TASKS

STORY = Story((Segment("up"),), fps=4.0)


def trained_for(models, task):
    about = models.transformer.about | {"layouts": {"tasks": {task: 1.0}, "rows": [0]}}
    config = dataclasses.replace(models.transformer.config, conditions=())
    return models._replace(
        transformer=types.SimpleNamespace(**models.transformer._asdict() | {"about": about, "config": config})
    )


def video(frames, height=16, width=16):
    return np.random.default_rng(0).integers(256, size=(frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("length, first, end", [(14, 3, 11), (14, 5, 9), (8, 2, 6), (30, 11, 19), (9, 0, 8), (9, 8, 9)])
def test_windows_go_outward_until_all_is_known(length, first, end):
    known = np.zeros(length, bool)
    known[first:end] = True
    for start in outward(length, 8, first, end):
        part = known[start : start + 8]
        assert len(part) == 8 and part.any() and not part.all()
        known[start : start + 8] = True
    assert known.all()


def test_tiles_share_a_half():
    assert tiled(8, 8) == [0] and tiled(16, 8) == [0, 4, 8] and tiled(10, 8) == [0, 2]


def test_a_canvas_is_a_multiple_of_tokens_and_wider_or_higher_than_the_video(tiny_models):
    """Tokens have 8 pixels, the models' videos 16."""
    assert canvas_sizes(tiny_models, 16 / 9, 90, 90) == ((16, 16), (16, 32))
    assert canvas_sizes(tiny_models, 9 / 16, 90, 90) == ((16, 16), (32, 16))
    assert canvas_sizes(tiny_models, 1.0, 160, 90) == ((16, 8), (16, 16))
    with pytest.raises(UserError, match="90x90 pixels is as wide as that canvas"):
        canvas_sizes(tiny_models, 1.0, 90, 90)
    with pytest.raises(UserError, match="should be 1:4 to 4:1, got 10:1"):
        canvas_sizes(tiny_models, 10.0, 90, 90)


def test_a_wider_video_keeps_its_middle_token_for_token(tiny_models, asked):
    models = trained_for(tiny_models, "outpaint")
    count, parts = outpaint(models, STORY, iter(video(4)), ((16, 16), (16, 32)))
    made_THWC = np.concatenate(list(parts))
    assert count == 4 and made_THWC.shape == (4, 16, 32, 3)
    np.testing.assert_array_equal(made_THWC[:, :, 8:24], video(4))
    tokens_THWQ = encode_opening(models, iter(np.concatenate([video(4), video(4)[-1:]])))
    right, left = asked
    np.testing.assert_array_equal(right.tokens[0, :3, :, 0], tokens_THWQ[:, :, 1])
    np.testing.assert_array_equal(left.tokens[0, :3, :, 1], tokens_THWQ[:, :, 0])
    for batch, known in ((right, [True, False]), (left, [False, True])):
        assert (batch.known[0, :3] == known).all()


def test_a_larger_canvas_keeps_the_pixels_of_its_middle(tiny_models, asked):
    """The weights see the video at their size."""
    models, small_THWC = trained_for(tiny_models, "outpaint"), video(4)
    large_THWC = small_THWC.repeat(3, axis=1).repeat(3, axis=2)
    large_THWC[:, ::3, ::3] ^= 1  # detail
    _, parts = outpaint(models, STORY, iter(large_THWC), ((16, 16), (16, 32)))
    made_THWC = np.concatenate(list(parts))
    assert made_THWC.shape == (4, 48, 96, 3)
    np.testing.assert_array_equal(made_THWC[:, :, 24:72], large_THWC)
    large = [batch.tokens for batch in asked]
    asked.clear()
    _, parts = outpaint(models, STORY, iter(small_THWC), ((16, 16), (16, 32)))
    list(parts)
    assert all((found == batch.tokens).all() for found, batch in zip(large, asked, strict=True))


def test_each_place_and_each_doubling_has_noise_of_its_own(tiny_models, asked, monkeypatch):
    keys, answer = [], window.generate

    def generate(graph, params, request, **how):
        keys.append(jax.random.key_data(request.keys_B).tobytes())
        return answer(graph, params, request, **how)

    monkeypatch.setattr(window, "generate", generate)
    upscale(trained_for(tiny_models, "upscale"), STORY, video(3, 8, 8), 4)
    assert len(set(keys)) == len(keys) == 10


def test_a_video_is_doubled_and_doubled_again_by_tiles(tiny_models, asked):
    """Each tile reads its part of the smaller video, and shares halves with those before it."""
    models = trained_for(tiny_models, "upscale")
    assert TASKS["upscale"].conditions == ("low",)
    assert upscale(models, STORY, video(3, 8, 8), 4).shape == (3, 32, 32, 3)
    first, *tiles = asked
    assert len(tiles) == 9 and not first.known.any()
    shares = [batch.known[0, :2].mean() for batch in tiles]
    assert shares == [0.0, 0.5, 0.5, 0.5, 0.75, 0.75, 0.5, 0.75, 0.75]
    half_THWC = upscale(models, STORY, video(3, 8, 8), 2)
    for batch, (top, left) in zip(tiles, itertools.product((0, 4, 8), repeat=2), strict=True):
        part_THWC = half_THWC[:, top : top + 8, left : left + 8]
        wanted_BTHWQ = encode_clips(models.tokenizer, part_THWC[None])
        np.testing.assert_array_equal(batch.conditions[0].tokens[:, : wanted_BTHWQ.shape[1]], wanted_BTHWQ)
    for times in (3, 2**20):
        with pytest.raises(UserError, match=f"2, 4, 8, … times as large, not {times}; 64 is the most"):
            upscale(models, STORY, video(3, 8, 8), times)
