"""Edits of clips whose truth is known: a perfect one reaches the ceiling, and nothing that is compared is given."""

import dataclasses
import json
import types

import numpy as np
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.evaluate import edits
from tokvid.evaluate.batches import EvaluationSet, Settings
from tokvid.evaluate.edits import MEASURES, RealClips, evaluate_edits
from tokvid.tasks.tasks import TASKS, conditions_of

DATA = DataConfig(size=(16, 16), fps=(4.0, 8.0), videos=100)
FIVE = EvaluationSet(5, 1.0, 8.0, 0)


@pytest.fixture
def models(tiny_models):
    """As if trained for all that is measured."""
    shares = dict.fromkeys([row.task for row in MEASURES.values()], 1.0)
    config = dataclasses.replace(tiny_models.transformer.config, conditions=tuple(conditions_of(shares)))
    about = tiny_models.transformer.about | {"layouts": {"tasks": shares, "rows": [0]}}
    named = types.SimpleNamespace(**tiny_models.transformer._asdict() | {"about": about, "config": config})
    return tiny_models._replace(transformer=named)


def test_all_tasks_are_measured(models, asked, by_two, monkeypatch):
    sheets = []
    figures = evaluate_edits(models, DATA, "all", FIVE, show=lambda rows, **how: sheets.append((rows, how["captions"])))
    assert {*MEASURES} < {*figures} and figures["samples"] == 5 and figures["fps"] == 8
    for name in MEASURES:
        row = figures[name]
        assert 0 < row["psnr"] <= 100 and 0 < row["ceiling_psnr"] <= 100 and 5 < row["simple_psnr"] <= 100, name
        assert 0 < row["moving"]["psnr"] <= 100 and row["moving"]["psnr"] != row["psnr"], name
        chosen, certain = figures["settings"][name], TASKS[MEASURES[name].task].certain
        assert certain == (name == "upscale")
        guidance = 1.0 if certain else 3.0 if name == "inpaint" else 1.5  # low where places are given
        assert (chosen["guidance"], chosen["sampling"]["temperature"]) == (guidance, 0.0 if certain else 0.9), name
    json.dumps(figures, allow_nan=False)
    ((rows, captions),) = sheets
    assert captions[:3] == ["restyle: given", "made", "truth"] and len(rows) == len(captions) == 6 * len(MEASURES)
    assert all(row.dtype == np.uint8 and row.ndim == 4 for row in rows)
    assert evaluate_edits(models, DATA, "colourise", FIVE)["colourise"] == figures["colourise"]
    monkeypatch.setattr(edits, "BATCH", 3)
    in_parts = evaluate_edits(models, DATA, "colourise", FIVE)
    assert by_two(lambda: evaluate_edits(models, DATA, "colourise", FIVE)) == [in_parts, in_parts]


def test_a_perfect_edit_reaches_the_ceiling(models, monkeypatch):
    def through(tokenizer, video_BTHWC):
        return video_BTHWC // 2 * 2, None  # loses something

    truth = []

    def sampled(clips, texts, *given, **how):
        truth[:] = [clips.truth]
        assert texts == clips.texts and all(texts)
        return through(None, clips.truth)[0]

    monkeypatch.setattr(edits, "through", through)
    monkeypatch.setattr(RealClips, "sampled", sampled)
    figures = evaluate_edits(models, DATA, "inpaint", FIVE)["inpaint"]
    assert 45 < figures["psnr"] == figures["ceiling_psnr"] <= 100
    for name in ("restyle", "colourise", "outpaint"):
        figures = evaluate_edits(models, DATA, name, FIVE)[name]
        assert 40 < figures["psnr"] == figures["ceiling_psnr"] > figures["simple_psnr"], name
    monkeypatch.setattr(edits, "through", lambda tokenizer, video_BTHWC: (video_BTHWC, None))
    monkeypatch.setattr(edits, "doubled", lambda *_: truth[0])
    figures = evaluate_edits(models, DATA, "upscale", FIVE)["upscale"]
    assert figures["psnr"] > 40 and figures["ceiling_psnr"] > 40 > figures["simple_psnr"] > 10


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_nothing_that_is_compared_is_given(models, asked, name):
    """Clips that differ in it alone are one and the same to the weights."""
    rng = np.random.default_rng(0)
    first = rng.integers(60, 200, size=(4, 9, 16, 16, 3), dtype=np.uint8)

    def measured(video_BTHWC):
        asked.clear()
        clips = RealClips(models, 8.0, 9, np.arange(4), Settings(guidance=1.0), video_BTHWC, ["up"] * 4)
        return MEASURES[name].measure(clips), [*asked]

    edit, wanted = measured(first)
    second = first.copy()
    new = second[:, 1:] if name.endswith("_from_first") else second  # a view
    if name in ("inpaint", "outpaint"):
        assert edit.where_BTHW.any() and not edit.where_BTHW.all()
        new[edit.where_BTHW] = rng.integers(256, size=(int(edit.where_BTHW.sum()), 3))
    elif name == "upscale":  # the same means
        new[:, :, ::2] += 40
        new[:, :, 1::2] -= 40
    elif name.startswith("colourise"):  # red for blue, at the same luma
        new[:] = np.clip(np.rint(new + np.array([1140, 0, -2990]) / 100), 0, 255)
    else:
        new += 20  # outlines are those of differences
    _, found = measured(second)
    for batches in zip(wanted, found, strict=True):
        one, other = ((batch.tokens, *(clip.tokens for clip in batch.conditions)) for batch in batches)
        alike = [np.mean(pair[0] == pair[1]) for pair in zip(one, other, strict=True)]
        assert min(alike) > (0.9 if name.startswith("colourise") else 0.999)  # a grey level of rounding


def test_what_cannot_be_measured_is_refused(models):
    for name, change, said in (
        ("colorise", {}, "colourise"),
        ("all", {"samples": 3}, "samples should be 4 or more, got 3"),
        ("all", {"seconds": 0.0}, "seconds should be above 0 and at most 1000000, got 0"),
        ("all", {"seconds": 1e6}, "only 0 videos have 1e[+]06 s at 8 fps; 4 are needed"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate_edits(models, DATA, name, dataclasses.replace(FIVE, **change))
    del models.transformer.about["layouts"]["tasks"]["restyle"]
    with pytest.raises(UserError, match="not trained for restyle"):
        evaluate_edits(models, DATA, "restyle", FIVE)
    models.transformer.about["layouts"]["tasks"] = {"text_to_video": 1.0}
    with pytest.raises(UserError, match="trained for none of the tasks"):
        evaluate_edits(models, DATA, "all", FIVE)


@pytest.mark.parametrize("name", MEASURES)
def test_a_task_is_measured_with_its_own_lora(models, name):
    def load():
        raise LookupError(name)

    with pytest.raises(LookupError, match=name):
        evaluate_edits(models._replace(tuned={MEASURES[name].task: load}), DATA, name, FIVE)


def test_figures_name_the_weights_that_each_task_was_done_with(models, asked):
    about = models.transformer.about | {"fingerprint": "with-a-lora"}
    tuned = types.SimpleNamespace(**vars(models.transformer) | {"about": about})
    models = models._replace(tuned={"colourise": lambda: tuned})
    figures = evaluate_edits(models, DATA, "all", FIVE)
    assert {name: "with-a-lora" in each["weights"] for name, each in figures["settings"].items()} == {
        name: task == "colourise" for name, task in ((name, row.task) for name, row in MEASURES.items())
    }
    assert "with-a-lora" not in figures["weights"]


def test_the_half_that_moves_most_is_measured_apart():
    found = edits._figures({"psnr": [1.0, 2.0, 3.0, 4.0, 9.0]}, [0.5, 8.0, 0.1, 7.0, 0.3])
    assert found == {"psnr": 3.8, "moving": {"psnr": 3.0}}
