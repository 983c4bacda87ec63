"""Evaluation on Moving MNIST: a perfect model gets full marks, one that doesn't listen gets none, on each axis."""

import json
import re
import types

import numpy as np
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.evaluate import mnist
from tokvid.evaluate.mnist import AXES, READ, VIDEOS, evaluate_mnist
from tokvid.input_pipeline.mnist import TRAINED_AXIS, WORDS, MnistItem, read_digits
from tokvid.metrics import digits as reading
from tokvid.metrics.digits import DigitReader, directions

# Segments of a seven-segment display: rows and columns of a line from one corner to the next, and who has it.
CORNERS = {"a": (0, 0, 0, 1), "b": (0, 1, 1, 1), "c": (1, 1, 2, 1), "d": (2, 0, 2, 1), "e": (1, 0, 2, 0)}
CORNERS |= {"f": (0, 0, 1, 0), "g": (1, 0, 1, 1)}
SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")


def drawn(label, rng):
    """A digit of a random size and thickness, (28, 28), as a seven-segment display has it."""
    image_HW = np.zeros((28, 28), np.uint8)
    side, thick = int(rng.integers(7, 9)), int(rng.integers(2, 4))
    top, left = 13 - side, 13 - side // 2
    for segment in SEGMENTS[label]:
        row, column, to_row, to_column = np.array(CORNERS[segment]) * side
        image_HW[top + row : top + to_row + thick, left + column : left + to_column + thick] = rng.integers(200, 256)
    return image_HW


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=1000)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    noise = rng.integers(0, 20, size=(1000, 28, 28), dtype=np.uint8)  # no two are alike
    np.savez(path, images=np.stack([drawn(label, rng) for label in labels]) | noise, labels=labels)
    return path


@pytest.fixture
def data(digits):
    return DataConfig(source="mnist", path=str(digits))


def items(prompts, fps, frames):
    """Videos of what the prompts say, uint8 (B, T, H, W, 3)."""
    rng, made = np.random.default_rng(1), []
    for prompt in prompts:
        label, first = re.fullmatch(r"the digit (\d)(?: is moving (\w+) then \w+)? \.", prompt).groups("up")
        axis = next(axis for axis, words in WORDS.items() if first in words)
        image = drawn(int(label), rng)
        item = MnistItem("", image, int(label), axis, first == WORDS[axis][1], 0.4, rng.uniform())
        made.append(item.read(0.0, fps, frames, (64, 64)))
    return np.stack(made)


def perfect(models, fps, parts, seeds_B, settings, given=None):
    ((seconds, prompts),) = parts
    assert len(prompts) == len(seeds_B) == len(set(seeds_B.tolist()))
    return items(prompts, fps, round(seconds * fps))


@pytest.fixture
def models(monkeypatch):
    """What evaluation asks of models; the tokenizer loses nothing."""
    monkeypatch.setattr(reading, "FILTERS", 48)  # enough for these digits
    monkeypatch.setattr(mnist, "generate_batch", perfect)
    monkeypatch.setattr(mnist, "through", lambda tokenizer, video_BTHWC: (video_BTHWC, None))
    transformer = types.SimpleNamespace(about={"fps": (8.0,)})
    return types.SimpleNamespace(size=(64, 64), mark="mark", tokenizer=None, temporal_patch=2, transformer=transformer)


def test_a_perfect_model_gets_full_marks(models, data, by_two, monkeypatch):
    sheets = []
    figures = evaluate_mnist(models, data, 40, 0, show=lambda rows, captions: sheets.append((rows, captions)))
    for axis in AXES:
        assert figures[axis].keys() == set(VIDEOS)
        for kind, shares in figures[axis].items():
            assert shares.keys() == set(READ) and min(shares.values()) >= 0.95, (axis, kind, shares)
    assert (figures["samples"], figures["fps"], figures["weights"]) == (40, 8.0, "mark")
    json.dumps(figures, allow_nan=False)
    ((rows, captions),) = sheets
    assert len(rows) == len(captions) == 16 and all(row.shape == (19, 64, 64, 3) for row in rows)
    for place, caption in enumerate(captions):
        label, first = re.fullmatch(r"the digit (\d) is moving (\w+) .*", caption).groups()
        assert (first in WORDS[TRAINED_AXIS[int(label)]]) == (place < 8), "the other axis is held out"
    monkeypatch.setattr(mnist, "BATCH", 8)
    in_parts = evaluate_mnist(models, data, 12, 0)
    assert by_two(lambda: evaluate_mnist(models, data, 12, 0)) == [in_parts, in_parts]


def test_by_way_of_a_picture(models, data, monkeypatch):
    asked = []

    def noted(models, fps, parts, seeds_B, settings, given=None):
        made = perfect(models, fps, parts, seeds_B, settings)
        asked.append((parts[0][1][0], made, given))
        return made

    monkeypatch.setattr(mnist, "generate_batch", noted)
    models.tasks = ("text_to_video",)
    with pytest.raises(UserError, match="not trained for image_to_video"):
        evaluate_mnist(models, data, 4, 0, via_image=True)
    models.tasks = ("text_to_video", "image_to_video")
    figures = evaluate_mnist(models, data, 4, 0, via_image=True)
    assert figures["via_image"] and figures["held_out_axis"]["made"]["joint"] == 1 and len(asked) == 4
    for (still, pictures, nothing), (told, videos, given) in zip(asked[::2], asked[1::2], strict=True):
        assert re.fullmatch(r"the digit \d \.", still) and told.startswith(still[:-1]) and "moving" in told
        assert pictures.shape == (4, 1, 64, 64, 3) and videos.shape[1] == 19
        assert nothing is None and given is pictures


def test_a_model_that_does_not_listen_gets_no_marks(models, data, monkeypatch):
    def deaf(models, fps, parts, seeds_B, settings, given):
        ((seconds, prompts),) = parts
        return items(["the digit 3 is moving up then down ."] * len(prompts), fps, round(seconds * fps))

    monkeypatch.setattr(mnist, "generate_batch", deaf)
    figures = evaluate_mnist(models, data, 40, 0)
    for axis in AXES:
        assert figures[axis]["made"]["digit"] < 0.3 and figures[axis]["made"]["joint"] < 0.15
        assert figures[axis]["made"]["motion"] < 0.5 and figures[axis]["ceiling_real"]["joint"] >= 0.95


def test_a_digit_that_changes_is_seen(models, data, monkeypatch):
    def changing(models, fps, parts, seeds_B, settings, given):
        ((seconds, prompts),) = parts
        whole = perfect(models, fps, parts, seeds_B, settings)
        other = [re.sub(r"\d", lambda found: str((int(found[0]) + 1) % 10), prompt) for prompt in prompts]
        whole[:, -4:] = items(other, fps, round(seconds * fps))[:, -4:]
        return whole

    monkeypatch.setattr(mnist, "generate_batch", changing)
    made = evaluate_mnist(models, data, 40, 0)["held_out_axis"]["made"]
    assert made["digit"] >= 0.95 and made["digit_at_end"] <= 0.05


def test_a_dark_video_shows_nothing(models, data, monkeypatch):
    monkeypatch.setattr(mnist, "generate_batch", lambda *asked: perfect(*asked) // 50)
    figures = evaluate_mnist(models, data, 4, 0)
    assert figures["trained_axis"]["made"] == dict.fromkeys(READ, 0.0)


def test_no_digit_that_is_measured_was_fitted(models, data, monkeypatch):
    seen = []
    monkeypatch.setattr(mnist, "DigitReader", lambda images, labels: seen.append(images) or DigitReader(images, labels))
    shown = []
    monkeypatch.setattr(mnist, "_score", lambda reader, video, item: shown.append(item.image) or {})
    evaluate_mnist(models, data, 10, 0)
    fitted = {image.tobytes() for image in seen[0]}
    assert len(fitted) >= 950 and not fitted & {image.tobytes() for image in shown}


def test_no_more_videos_are_counted_than_there_are(models, data, monkeypatch):
    monkeypatch.setattr(mnist, "SPLITS", {"train": 10, "test": 5})
    assert evaluate_mnist(models, data, 7, 0)["samples"] == 5


def test_a_file_of_few_digits_is_refused(models, digits, tmp_path):
    images, labels = read_digits(digits)
    np.savez(tmp_path / "few.npz", images=images[:30][labels[:30] < 5], labels=labels[:30][labels[:30] < 5])
    with pytest.raises(UserError, match=r"too few digits to tell them apart: none is left of \[.*5, 6, 7, 8, 9\]"):
        evaluate_mnist(models, DataConfig(source="mnist", path=str(tmp_path / "few.npz")), 4, 0)


@pytest.mark.parametrize(
    "centres, seen",
    [
        ([(30, 14), (23, 14), (16, 14), (23, 14)], ("up", "down")),
        ([(30, 14), (37, 15), (44, 14), (37, 14)], ("down", "up")),
        ([(30, 14), (30, 21), (30, 28), (30, 35)], ("right", None)),
        ([(30, 50), (30, 49), (30, 43), (30, 47)], ("left", "right")),
        ([(30, 14), (30, 15), (30, 14), (30, 15)], (None, None)),
        ([(30, 14), (37, 21), (44, 28), (51, 35)], (None, None)),
    ],
)
def test_directions(centres, seen):
    assert directions(np.array(centres, float)) == seen


def test_other_weights_are_refused(models, data):
    with pytest.raises(UserError, match="trained on shapes"):
        evaluate_mnist(models, DataConfig(), 8, 0)
    with pytest.raises(UserError, match="4 or more samples"):
        evaluate_mnist(models, data, 3, 0)
    models.size = (32, 32)
    with pytest.raises(UserError, match="64x64"):
        evaluate_mnist(models, data, 8, 0)
