"""Measures models on captioned Moving MNIST, by a reader of digits and motion: `tokvid evaluate mnist`."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tokvid.config import DataConfig
from tokvid.distributed import first
from tokvid.errors import UserError
from tokvid.evaluate.batches import (
    BATCH,
    EVALUATION_SEED,
    Padded,
    Settings,
    generate_batch,
    mean,
    measured,
    padded,
    through,
)
from tokvid.evaluate.shapes import stream_of
from tokvid.input_pipeline.mnist import FPS, FRAMES, SIZE, MnistItem, MovingMnist, read_digits
from tokvid.input_pipeline.mnist import VIDEOS as SPLITS
from tokvid.io.progress import progress
from tokvid.metrics.digits import DigitReader
from tokvid.sampling.codec import frames_of
from tokvid.sampling.edits import check_trained
from tokvid.sampling.models import Models

AXES = {"trained_axis": "train", "held_out_axis": "test"}  # splits of the data; all videos are new ones
VIDEOS = ("made", "ceiling_real", "ceiling_reconstruction")
READ = ("digit", "digit_at_end", "motion", "joint")
READER_DIGITS = 20_000  # that the reader is fitted to, at most
SHOWN = 8  # videos of each axis on a sheet


def evaluate_mnist(
    models: Models,
    data: DataConfig,
    samples: int,
    seed: int,
    settings: Settings = Settings(),
    show: Callable[..., object] = lambda rows, **how: None,
    via_image: bool = False,
) -> dict[str, Any]:
    """Generates `samples` videos of digits along the axis that they were trained on, and of as many along the other.

    `via_image`: each from a picture that is generated before, of what is said of the digit, but not of its motion.

    The shares of videos in which the digit, the digit in the last quarter, the motion (where to first and after the
    turn), and digit and motion are as the caption says. The same reader measures real videos and reconstructed ones; it
    is fitted to digits that none of them has. `show` gets the first videos as arguments for `contact_sheet`. UserError
    for data that isn't Moving MNIST, models of another size, and fewer than 4 samples.
    """
    if data.source != "mnist":
        raise UserError(f"these weights were trained on {data.source}; evaluate mnist is for weights of Moving MNIST")
    if samples < 4 or models.size != (SIZE, SIZE):
        raise UserError(
            f"evaluate mnist needs 4 or more samples of {SIZE}x{SIZE} pixels, got {samples} of "
            f"{models.size[1]}x{models.size[0]}"
        )
    if via_image:
        check_trained(models, "image_to_video")
    samples = min(samples, *SPLITS.values())
    sets: dict[str, list[MnistItem]] = {}
    for number, (axis, split) in enumerate(AXES.items()):
        dataset = MovingMnist(data.path, split, stream_of(seed, number))
        sets[axis] = [dataset[index] for index in range(samples)]
    reader = _reader(data.path, [item for items in sets.values() for item in items])
    fps = float(max(models.transformer.about["fps"]))
    figures: dict[str, Any] = {}
    shown: list[np.ndarray] = []
    captions: list[str] = []
    with progress("evaluate mnist", 2 * samples, "videos", quiet=not first()) as advance:
        for number, (axis, items) in enumerate(sets.items()):
            drawn = ((batch, batch.size) for batch in padded(items, min(BATCH, samples), seed, number))
            lists = measured(drawn, lambda batch: _read(models, reader, fps, batch, settings, via_image), advance)
            shown += lists["shown"][:SHOWN]
            captions += [item.caption for item in items[:SHOWN]]
            figures[axis] = {kind: {name: mean(lists[f"{kind} {name}"]) for name in READ} for kind in VIDEOS}
    show(shown, captions=captions)
    return {
        **figures,
        "via_image": via_image,
        "samples": samples,
        "fps": fps,
        "seed": seed,
        "settings": dataclasses.asdict(settings),
        "weights": models.mark,
    }


def _reader(path: str, items: Sequence[MnistItem]) -> DigitReader:
    """A reader of the digits of a file without those of the items."""
    images_NHW, labels_N = read_digits(path)
    measured_ones = {item.image.tobytes() for item in items}
    order_N = np.random.default_rng(EVALUATION_SEED).permutation(len(images_NHW))
    others = (index for index in order_N if images_NHW[index].tobytes() not in measured_ones)
    chosen = list(itertools.islice(others, READER_DIGITS))
    if len(missing := set(range(10)) - {int(label) for label in labels_N[chosen]}) > 0:
        raise UserError(f"{path} has too few digits to tell them apart: none is left of {sorted(missing)}; use MNIST's")
    return DigitReader(images_NHW[chosen], labels_N[chosen])


def _read(
    models: Models, reader: DigitReader, fps: float, batch: Padded[MnistItem], settings: Settings, via_image: bool
) -> dict[str, list[Any]]:
    """What is read of videos made from captions, of the real ones, and of reconstructions of these."""
    patch = models.temporal_patch
    most = int(FRAMES * fps / FPS)
    frames = frames_of(1 + (most - 1) // patch, patch)  # whole latent frames
    real = np.stack([item.read(0.0, fps, frames, models.size) for item in batch.items])
    still = [(1 / fps, [item.still_caption for item in batch.items])]
    pictures = generate_batch(models, fps, still, batch.seeds_B, settings) if via_image else None
    told = [(frames / fps, [item.caption for item in batch.items])]
    made = generate_batch(models, fps, told, batch.seeds_B, settings, pictures)
    lists = collections.defaultdict[str, list[Any]](list)
    lists["shown"] = list(made[: min(batch.size, SHOWN)])
    for kind, videos in zip(VIDEOS, (made, real, through(models.tokenizer, real)[0]), strict=True):
        for item, video_THWC in zip(batch.items[: batch.size], videos, strict=False):
            for name, right in _score(reader, video_THWC, item).items():
                lists[f"{kind} {name}"].append(right)
    return lists


def _score(reader: DigitReader, video_THWC: np.ndarray, item: MnistItem) -> Mapping[str, bool]:
    if (reading := reader(video_THWC)) is None:
        return dict.fromkeys(READ, False)
    digit, motion = reading.digit == item.label, (reading.first, reading.then) == item.directions
    at_end = reading.digit_at_end == item.label
    return {"digit": digit, "digit_at_end": at_end, "motion": motion, "joint": digit and motion}
