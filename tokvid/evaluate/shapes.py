"""Measures model quality on Moving Shapes: `tokvid evaluate shapes`."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

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
from tokvid.io.progress import progress
from tokvid.metrics.video import seam_ratio
from tokvid.sampling.codec import frames_of, latent_frames_for
from tokvid.sampling.models import Models
from tokvid.sampling.story import Segment, Story, joins
from tokvid.shapes.drawing import LANGUAGES, ShapesDataset, ShapesStory, language_of, render
from tokvid.shapes.reading import ShapeReading, read_attributes, score
from tokvid.shapes.words import SHAPES, SIZES, STILL

ATTRIBUTES = ("color", "shape", "size", "direction", "speed", "joint")
OBJECTS = tuple(f"{size} {shape}" for size in SIZES for shape in SHAPES)  # a mean hides what fails for one of them
SEAMS = ("seam_ratio", "seam_ratio_reconstruction")


def read_segments(story: Story, frames: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """For each segment its prompt, duration and the attributes read from its frames, uint8 (H, W, 3)."""
    fields = ("size", "color", "shape", "direction", "speed", "pixels_per_second")
    segments = []
    for segment, (start, end) in zip(story.segments, story.spans, strict=True):
        reading = read_attributes(np.stack(frames[start:end]), story.fps)
        read = None if reading is None else {name: getattr(reading, name) for name in fields}
        segments.append({"prompt": segment.prompt, "seconds": segment.seconds, "read_from_the_pixels": read})
    return segments


def evaluate_shapes(
    models: Models, samples: int, seed: int, settings: Settings = Settings(), rates: Sequence[float] = ()
) -> dict[str, Any]:
    """Generates `samples` clips, a quarter as many of held-out compositions and as many stories, and measures them.

    The same attribute reader measures generated videos, real ones (`ceiling_real`) and reconstructed real ones
    (`ceiling_reconstruction`). Speed errors are relative, over prompts with motion. `rates` are frames per second, in
    the training range or not (default: the training rates).
    """
    rates = [float(rate) for rate in rates or models.transformer.about["fps"]]
    check(models, samples, rates)
    fewer = max(4, samples // 4)
    with progress("evaluate shapes", samples + 2 * fewer, "videos", quiet=not first()) as advance:
        clips = _clips(models, samples, fewer, rates, seed, settings, advance)
        switch = _stories(models, fewer, max(rates), seed, settings, advance)
    return {
        **clips,
        **switch,
        "samples": samples,
        "seed": seed,
        "settings": dataclasses.asdict(settings),
        "weights": models.mark,
    }


def check(models: Models, samples: int, rates: Sequence[float]) -> None:
    """UserError for too few samples, videos that are not square, and rates that cannot be."""
    height, width = models.size
    if samples < 4 or height != width:
        raise UserError(f"Moving Shapes need 4 or more samples of square videos, got {samples} of {height}x{width}")
    if not all(1 <= rate <= 240 for rate in rates):
        raise UserError(f"rates should be 1 to 240 fps, got {list(rates)}")


def frames_at(models: Models, fps: float) -> int:
    """The frames of a clip at this rate: at least two seconds, and a window."""
    patch, window = models.temporal_patch, models.transformer.config.latent_frames
    return frames_of(max(window, latent_frames_for(round(2 * fps) + 1, patch)), patch)


def _clips(
    models: Models,
    samples: int,
    held_out_samples: int,
    rates: list[float],
    seed: int,
    settings: Settings,
    advance: Callable[..., None],
) -> dict[str, Any]:
    """One-segment videos, divided among the rates, each at least two seconds and one window long."""

    def drawn() -> Iterator[tuple[tuple[float, Padded[ShapesStory], int], int]]:
        """Batches with their rates, and the number of plain stories at each rate, before those that are held out."""
        for number, fps in enumerate(rates):
            seconds, stream = frames_at(models, fps) / fps, stream_of(seed, number)
            plain = stories_of((samples + number) // len(rates), stream, seconds)
            unseen = stories_of((held_out_samples + number) // len(rates), stream, seconds, held_out=True)
            for batch in padded(plain + unseen, min(BATCH, samples), seed, number):
                yield (fps, batch, len(plain)), batch.size

    lists = measured(drawn(), lambda batch: _read_clips(models, *batch, settings), advance)
    names = ("attributes", "ceiling_real", "ceiling_reconstruction", "held_out")
    shares = {name: {key: mean([s[key] for s in lists[name]]) for key in ATTRIBUTES} for name in names}
    held_out_joint = {"joint": shares.pop("held_out")["joint"], "samples": held_out_samples}
    joint = {language: lists[f"joint {language}"] for language in LANGUAGES}
    by_language = {language: {"joint": mean(values), "samples": len(values)} for language, values in joint.items()}
    errors = {f"{fps:g}": mean(lists[f"speed error at {fps:g}"]) for fps in rates}
    return {
        **shares,
        "held_out": held_out_joint,
        "by_language": by_language,
        "joint_by_object": {name: mean(values) for name, values in sorted(lists.items()) if name in OBJECTS},
        "speed_error_by_fps": errors,
    }


def _read_clips(
    models: Models, fps: float, batch: Padded[ShapesStory], plain: int, settings: Settings
) -> dict[str, list[Any]]:
    """What is read of a batch of videos, and of real ones, which of the first `plain` stories are measured, too."""
    frames, lists = frames_at(models, fps), collections.defaultdict[str, list[Any]](list)
    prompts = [story.segments[0].caption for story in batch.items]
    generated = generate_batch(models, fps, [(frames / fps, prompts)], batch.seeds_B, settings)
    real = np.stack([render(story, fps=fps, frames=frames, size=models.size[0]) for story in batch.items])
    again = through(models.tokenizer, real)[0] if batch.first < plain else real
    for index in range(batch.size):
        wanted = batch.items[index].segments[0].attributes
        reading = read_attributes(generated[index], fps)
        right = score(reading, wanted)
        if batch.first + index >= plain:
            lists["held_out"].append(right)
            continue
        lists["attributes"].append(right)
        lists[f"joint {language_of(prompts[index])}"].append(right["joint"])
        lists[f"{wanted.size} {wanted.shape}"].append(right["joint"])
        lists["ceiling_real"].append(score(read_attributes(real[index], fps), wanted))
        lists["ceiling_reconstruction"].append(score(read_attributes(again[index], fps), wanted))
        if reading is not None and wanted.direction != STILL:
            relative = abs((reading.units_per_second or 0.0) / math.hypot(*wanted.velocity) - 1)
            lists[f"speed error at {fps:g}"].append(relative)
    return lists


def _stories(
    models: Models, samples: int, fps: float, seed: int, settings: Settings, advance: Callable[..., None]
) -> dict[str, Any]:
    """Two-segment videos: whether the motion follows the second prompt within a second, whether the object stays the
    same, and the seam ratio of windows, with that of real video through the tokenizer."""
    dataset = ShapesDataset(samples, stream_of(seed, 50), segments=(2, 2), segment_seconds=(3.0, 3.0))
    stories = [dataset[index].story for index in range(samples)]
    drawn = ((batch, batch.size) for batch in padded(stories, min(BATCH, samples), seed, 50))
    lists = measured(drawn, lambda batch: _read_stories(models, fps, batch, settings), advance)
    switch = {name: mean(lists[name]) for name in ("follows_within_a_second", "keeps_identity")}
    return {"prompt_switch": {**switch, "samples": samples}, **{name: mean(lists[name]) for name in SEAMS}}


def _read_stories(models: Models, fps: float, batch: Padded[ShapesStory], settings: Settings) -> dict[str, list[Any]]:
    plan = Story((Segment("", 3.0), Segment("", 3.0)), fps, keep=settings.keep)
    starts = joins(plan, models)
    before, after = round(3 * fps), round(4 * fps)  # frames until the switch; a second later
    lists = collections.defaultdict[str, list[Any]](list)
    parts = [(3.0, [story.segments[part].caption for story in batch.items]) for part in (0, 1)]
    generated = generate_batch(models, fps, parts, batch.seeds_B, settings)
    real = np.stack([render(story, fps=fps, frames=plan.frames, size=models.size[0]) for story in batch.items])
    again = through(models.tokenizer, real)[0]
    for index in range(batch.size):
        was_wanted, wanted = (segment.attributes for segment in batch.items[index].segments)
        was, became = (read_attributes(generated[index, part], fps) for part in (slice(before), slice(after, None)))
        right = score(became, wanted)
        lists["follows_within_a_second"].append(right["direction"] and right["speed"])
        lists["keeps_identity"].append(_same_object(was, became, same_color=was_wanted.color == wanted.color))
        for name, video in zip(SEAMS, (generated[index], again[index]), strict=True):
            if starts and math.isfinite(ratio := seam_ratio(video, starts)):  # NaN if nothing moves
                lists[name].append(ratio)
    return lists


def stories_of(count: int, seed: int, seconds: float, held_out: bool = False) -> list[ShapesStory]:
    """Stories with one segment of at least `seconds`."""
    length = (math.ceil(seconds),) * 2
    dataset = ShapesDataset(max(1, count), seed, held_out, segments=(1, 1), segment_seconds=length)
    return [dataset[index].story for index in range(count)]


def _same_object(was: ShapeReading | None, became: ShapeReading | None, same_color: bool) -> bool:
    if was is None or became is None:
        return False
    return was.shape == became.shape and was.size == became.size and (not same_color or was.color == became.color)


def stream_of(seed: int, number: int) -> int:
    """The dataset seed of one part of an evaluation."""
    return int(np.random.SeedSequence([EVALUATION_SEED, seed, number]).generate_state(1)[0])
