"""Tasks on Moving Shapes: what is made perfectly gets full marks, and every task is measured."""

import dataclasses
import json
import math
import types

import numpy as np
import pytest

from tokvid.config import TokenizerConfig
from tokvid.errors import UserError
from tokvid.evaluate import clips, story_clips, tasks
from tokvid.evaluate.batches import Settings
from tokvid.evaluate.shapes import stories_of
from tokvid.evaluate.story_clips import Batch
from tokvid.evaluate.tasks import MEASURES, evaluate_tasks
from tokvid.sampling import window
from tokvid.sampling.models import Models
from tokvid.shapes.words import is_held_out
from tokvid.tasks.tasks import TASKS, conditions_of

SIDE, PATCH = 4, 2  # pixels and frames of a token
EDITED = Batch.edited


def packed(tokenizer, video_BTHWC):
    """Tokens that hold all their pixels."""
    video_BTHWC = np.concatenate([video_BTHWC[:, :1].repeat(PATCH - 1, axis=1), video_BTHWC], axis=1)
    B, T, H, W, C = video_BTHWC.shape
    blocks = video_BTHWC.reshape(B, T // PATCH, PATCH, H // SIDE, SIDE, W // SIDE, SIDE, C)
    return blocks.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, T // PATCH, H // SIDE, W // SIDE, -1).astype(np.int32)


def unpacked(tokenizer, tokens_BTHWQ):
    B, T, H, W, _ = tokens_BTHWQ.shape
    blocks = tokens_BTHWQ.reshape(B, T, H, W, PATCH, SIDE, SIDE, 3).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return blocks.reshape(B, T * PATCH, H * SIDE, W * SIDE, 3)[:, PATCH - 1 :].astype(np.uint8)


@pytest.fixture
def batch(monkeypatch):
    """Six clips of 32x32 pixels, and models that draw whatever is asked for."""
    for module in (tasks, clips):
        monkeypatch.setattr(module, "encode_clips", packed)
    monkeypatch.setattr(tasks, "decode_clips", unpacked)
    monkeypatch.setattr(tasks, "through", lambda tokenizer, video_BTHWC: (video_BTHWC, None))
    monkeypatch.setattr(clips, "make_prompt", lambda *of: None)
    monkeypatch.setattr(Batch, "edited", lambda batch, wanted, *given, **how: batch.drawn(wanted))
    monkeypatch.setattr(
        Batch, "told", lambda batch, opening=None, frames=0: batch.drawn(batch.stories)[:, : frames or batch.frames]
    )
    tokenizer = types.SimpleNamespace(config=TokenizerConfig(temporal_patch=PATCH, patch=SIDE, fold=1))
    transformer = types.SimpleNamespace(config=types.SimpleNamespace(latent=(4, 8, 8)), about={"fps": (8.0,)})
    models = Models(tokenizer, transformer, None)
    return Batch(models, 8.0, 17, np.arange(6), Settings(), stories_of(6, 0, 3.0))


@pytest.mark.parametrize("name", sorted({*MEASURES} - {"outpaint", "upscale"}))
def test_what_is_made_perfectly_gets_full_marks(batch, name):
    outcome = MEASURES[name].measure(batch)
    assert outcome.made.shape == batch.truth.shape and len(outcome.source) == 6
    for figure, values in outcome.figures.items():
        best = 100.0 if "psnr" in figure else 1.0
        if figure.endswith("track_error"):
            assert max(values) < 0.2
        else:
            assert min(values) == best, figure


def test_a_canvas_shows_the_world_again_and_again(batch, monkeypatch):
    """To the left of the middle, too: what is true of every part as wide as the world."""
    stories = [story_clips.in_the_middle(story, batch.seconds) for story in batch.stories]
    world, right = batch.drawn(stories), True

    def paint(models, prompts, levels, canvas, places):
        known, column_W = canvas.known_BTHW[0, 0, 0], np.arange(56) - 20 + 8
        assert (known == [5 <= token < 9 for token in range(14)]).all()
        video = world[:, :, :, column_W % 32] if right else np.full_like(world, 30)[:, :, :, column_W % 32]
        return np.where(canvas.known_BTHW[..., None], canvas.tokens_BTHWQ, packed(None, video))

    monkeypatch.setattr(tasks, "paint", paint)
    figures = MEASURES["outpaint"].measure(batch).figures
    assert min(figures["joint"]) == 1 and max(figures["track_error"]) < 0.2
    assert min(figures["psnr_of_sides"]) == 100 > max(figures["psnr_of_sides_repeated"])
    assert figures["seams"] == figures["seams_of_truth"]
    right = False
    figures = MEASURES["outpaint"].measure(batch).figures
    assert np.mean(figures["joint"]) < 1 and np.mean(figures["psnr_of_sides"]) < 40


def test_an_upscaled_clip_is_compared_with_bicubic_interpolation(batch, monkeypatch):
    def doubled(models, prompts, levels, video_BTHWC):
        return batch.drawn(batch.stories, 2 * video_BTHWC.shape[2])

    monkeypatch.setattr(tasks, "doubled", doubled)
    figures = MEASURES["upscale"].measure(batch).figures
    for times in ("2x", "4x"):
        assert min(figures[f"psnr_{times}"]) == 100 and 15 < min(figures[f"bicubic_psnr_{times}"]) < 40
    assert min(figures["joint"]) == 1


def test_what_is_asked_for_differs_from_what_is_given(batch):
    for wanted, story in zip(story_clips.others(batch, "color", "shape"), batch.stories, strict=True):
        new, old = wanted.segments[0].attributes, story.segments[0].attributes
        assert new.color != old.color and new.shape != old.shape and not is_held_out(new)
        assert (new.size, new.direction, new.speed) == (old.size, old.direction, old.speed)
        assert wanted.segments[0].caption != story.segments[0].caption


def test_the_box_of_inpainting_hides_the_object_and_little_else(batch, monkeypatch):
    hidden = []

    def edited(batch, wanted, *, around):
        hidden.append((batch, around))
        return batch.drawn(wanted)

    monkeypatch.setattr(Batch, "edited", edited)
    outcome = MEASURES["inpaint"].measure(batch)
    ((here, around),) = hidden
    assert (around.known_BTHW.sum(axis=(2, 3)) == 8 * 8 - 6 * 6).all()
    given = unpacked(None, np.where(around.known_BTHW[..., None], around.tokens_BTHWQ, 0))
    grey = np.array([story.background for story in here.stories])[:, None, None, None, None]
    assert ((given == grey) | (given == 0)).all() and outcome.source.shape == given.shape


def test_a_picture_follows_a_path_with_a_prompt_and_without(batch, monkeypatch):
    texts = []

    def sampled(batch, of_clips, sources, around, first_BHWC):
        texts.append(of_clips)
        return batch.drawn(wanted) if any(of_clips) else np.zeros_like(batch.truth)

    pictured = [*batch.stories[1:], batch.stories[0]]
    wanted = [
        dataclasses.replace(story_clips.dressed(story, other), position=other.position)
        for story, other in zip(batch.stories, pictured, strict=True)
    ]
    monkeypatch.setattr(Batch, "edited", EDITED)
    monkeypatch.setattr(Batch, "sampled", sampled)
    outcome = MEASURES["animate"].measure(batch)
    assert texts == [[""] * 6, [story.segments[0].caption for story in wanted]]
    assert max(outcome.figures["joint"]) == 0 and min(outcome.figures["prompted_joint"]) == 1


def test_every_task_is_measured():
    needed = {task for measure in MEASURES.values() for task in measure.needs}
    assert needed == set(TASKS) - {"interpolation", "recall"}  # by `evaluate interpolation` and scripts/drift.py


def test_real_models_are_measured(tiny_models, monkeypatch, by_two):
    """With an answer of ones for every token: nothing is right, and all of it is JSON."""
    monkeypatch.setattr(
        window, "generate", lambda *of, **how: np.where(of[2].batch.known[..., None], of[2].batch.tokens, 1)
    )
    shares = {task: 1.0 for task in TASKS if task != "interpolation"}
    config = dataclasses.replace(tiny_models.transformer.config, conditions=tuple(conditions_of(shares)))
    about = tiny_models.transformer.about | {"layouts": {"tasks": shares, "rows": [0]}}
    models = tiny_models._replace(
        transformer=types.SimpleNamespace(**tiny_models.transformer._asdict() | {"about": about, "config": config})
    )
    sheets = []
    figures = evaluate_tasks(models, "all", 5, 0, show=lambda rows, **how: sheets.append((rows, how["captions"])))
    assert {*MEASURES} < {*figures} and figures["samples"] == 5 and figures["frames"] == 17
    assert figures["animate"]["identity"] == 0 and figures["upscale"]["bicubic_psnr_4x"] > 10
    json.dumps(figures, allow_nan=False)
    ((rows, captions),) = sheets
    assert len(rows) == len(captions) == 2 * len(MEASURES)
    assert all(row.dtype == np.uint8 and row.ndim == 4 for row in rows)
    assert math.isfinite(figures["inpaint"]["psnr_outside"])
    one = evaluate_tasks(models, "colourise", 5, 0)
    assert one["colourise"] == figures["colourise"]
    monkeypatch.setattr(tasks, "BATCH", 3)
    in_parts = evaluate_tasks(models, "colourise", 5, 0)
    assert by_two(lambda: evaluate_tasks(models, "colourise", 5, 0)) == [in_parts, in_parts]
    del about["layouts"]["tasks"]["colourise"]
    with pytest.raises(UserError, match="not trained for colourise"):
        evaluate_tasks(models, "colourise", 5, 0)


@pytest.mark.parametrize("name", MEASURES)
def test_a_task_is_measured_with_its_own_lora(tiny_models, name):
    about = tiny_models.transformer.about | {"layouts": {"tasks": dict.fromkeys(TASKS, 1.0), "rows": [0]}}
    models = tiny_models._replace(transformer=tiny_models.transformer._replace(about=about))

    def load():
        raise LookupError(name)

    with pytest.raises(LookupError, match=name):
        evaluate_tasks(models._replace(tuned={MEASURES[name].needs[0]: load}), name, 4, 0)
