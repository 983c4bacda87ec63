"""Measures model quality on Moving Shapes: `tokvid evaluate shapes`."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tokvid.errors import UserError
from tokvid.evaluate.batches import BATCH, EVALUATION_SEED, Settings, generate_batch, mean, through
from tokvid.io.progress import progress
from tokvid.metrics.video import seam_ratio
from tokvid.sampling.story import Segment, Story, joins
from tokvid.sampling.stream import Models, frames_of, latent_frames_for
from tokvid.shapes.drawing import LANGUAGES, ShapesDataset, ShapesStory, language_of, render
from tokvid.shapes.reading import ShapeReading, read_attributes, score
from tokvid.shapes.words import STILL

ATTRIBUTES = ("color", "shape", "size", "direction", "speed", "joint")


def read_segments(story: Story, frames: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """For each segment its prompt, duration and the attributes read from its frames, uint8 (H, W, 3)."""
    fields = ("size", "color", "shape", "direction", "speed", "pixels_per_second")
    segments = []
    for segment, (first, end) in zip(story.segments, story.spans, strict=True):
        reading = read_attributes(np.stack(frames[first:end]), story.fps)
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
    with progress("evaluate shapes", samples + 2 * fewer, "videos") as advance:
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
    patch, window = models.tokenizer.config.temporal_patch, models.transformer.config.latent[0]
    return frames_of(max(window, latent_frames_for(round(2 * fps) + 1, patch)), patch)


def batches(
    stories: Sequence[ShapesStory], batch: int, *stream: int
) -> Iterator[tuple[list[ShapesStory], int, np.ndarray]]:
    """Batches of stories, padded so that the last one isn't compiled anew; the number of unpadded stories; a seed for
    each story, from a random `stream`."""
    for start in range(0, len(stories), batch):
        now = list(stories[start : start + batch])
        seeds_B = np.random.SeedSequence([EVALUATION_SEED, *stream, start]).generate_state(batch)
        yield now + now[-1:] * (batch - len(now)), len(now), seeds_B


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
    scores: dict[str, list[dict[str, bool]]] = {
        name: [] for name in ("attributes", "ceiling_real", "ceiling_reconstruction", "held_out")
    }
    errors: dict[str, float | None] = {}
    joint: dict[str, list[bool]] = {language: [] for language in LANGUAGES}
    for number, fps in enumerate(rates):
        frames = frames_at(models, fps)
        plain = stories_of((samples + number) // len(rates), stream_of(seed, number), frames / fps)
        unseen = stories_of(
            (held_out_samples + number) // len(rates), stream_of(seed, number), frames / fps, held_out=True
        )
        relative: list[float] = []
        done = 0
        for now, count, seeds_B in batches(plain + unseen, min(BATCH, samples), seed, number):
            prompts = [story.segments[0].caption for story in now]
            generated = generate_batch(models, fps, [(frames / fps, prompts)], seeds_B, settings)
            real = np.stack([render(story, fps=fps, frames=frames, size=models.size[0]) for story in now])
            again = through(models.tokenizer, real)[0] if done < len(plain) else real
            for index in range(count):
                wanted = now[index].segments[0].attributes
                reading = read_attributes(generated[index], fps)
                if done + index >= len(plain):
                    scores["held_out"].append(score(reading, wanted))
                    continue
                scores["attributes"].append(score(reading, wanted))
                joint[language_of(now[index].segments[0].caption)].append(scores["attributes"][-1]["joint"])
                scores["ceiling_real"].append(score(read_attributes(real[index], fps), wanted))
                scores["ceiling_reconstruction"].append(score(read_attributes(again[index], fps), wanted))
                if reading is not None and wanted.direction != STILL:
                    relative.append(abs((reading.units_per_second or 0.0) / math.hypot(*wanted.velocity) - 1))
            done += count
            advance(count)
        errors[f"{fps:g}"] = mean(relative)
    shares = {name: {key: mean([s[key] for s in values]) for key in ATTRIBUTES} for name, values in scores.items()}
    held_out_joint = {"joint": shares.pop("held_out")["joint"], "samples": held_out_samples}
    by_language = {language: {"joint": mean(values), "samples": len(values)} for language, values in joint.items()}
    return {**shares, "held_out": held_out_joint, "by_language": by_language, "speed_error_by_fps": errors}


def _stories(
    models: Models, samples: int, fps: float, seed: int, settings: Settings, advance: Callable[..., None]
) -> dict[str, Any]:
    """Two-segment videos: whether the motion follows the second prompt within a second, whether the object stays the
    same, and the seam ratio of windows, with that of real video through the tokenizer."""
    dataset = ShapesDataset(samples, stream_of(seed, 50), segments=(2, 2), segment_seconds=(3.0, 3.0))
    plan = Story((Segment("", 3.0), Segment("", 3.0)), fps, keep=settings.keep)
    starts = joins(plan, models)
    before, after = round(3 * fps), round(4 * fps)  # frames until the switch; a second later
    follows: list[bool] = []
    keeps: list[bool] = []
    ratios: dict[str, list[float]] = {"seam_ratio": [], "seam_ratio_reconstruction": []}
    stories = [dataset[index].story for index in range(samples)]
    for now, count, seeds_B in batches(stories, min(BATCH, samples), seed, 50):
        parts = [(3.0, [story.segments[part].caption for story in now]) for part in (0, 1)]
        generated = generate_batch(models, fps, parts, seeds_B, settings)
        real = np.stack([render(story, fps=fps, frames=plan.frames, size=models.size[0]) for story in now])
        again = through(models.tokenizer, real)[0]
        for index in range(count):
            first, second = (segment.attributes for segment in now[index].segments)
            was, became = (
                read_attributes(generated[index, :before], fps),
                read_attributes(generated[index, after:], fps),
            )
            right = score(became, second)
            follows.append(right["direction"] and right["speed"])
            keeps.append(_same_object(was, became, same_color=first.color == second.color))
            for name, video in zip(ratios, (generated[index], again[index]), strict=True):
                if starts and math.isfinite(ratio := seam_ratio(video, starts)):  # NaN if nothing moves
                    ratios[name].append(ratio)
        advance(count)
    switch = {"follows_within_a_second": mean(follows), "keeps_identity": mean(keeps), "samples": samples}
    return {"prompt_switch": switch, **{name: mean(values) for name, values in ratios.items()}}


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
