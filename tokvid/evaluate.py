"""What the weights are worth, as numbers: `tokvid evaluate shapes` and `tokvid evaluate reconstruction`."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.input_pipeline.datasets import open_source, usable_rates
from tokvid.input_pipeline.shapes import ShapesDataset, ShapesStory, render
from tokvid.media import contact_sheet
from tokvid.metrics.attributes import ShapeReading, read_attributes, score
from tokvid.metrics.features import Features
from tokvid.metrics.video import (
    detail,
    frechet_distance,
    kernel_distance,
    psnr,
    seam_ratio,
    ssim,
    temporal_error,
)
from tokvid.progress import progress
from tokvid.sampling.levels import Scheme, rates_of, videos
from tokvid.sampling.methods import GUIDANCE, Sampling
from tokvid.sampling.story import Segment, Story, joins
from tokvid.sampling.stream import Models, Prompt, StreamDecoder, StreamEncoder, frames_of, latent_frames_for
from tokvid.shape_vocabulary import STILL
from tokvid.types import VideoSource
from tokvid.weights import Loaded

BATCH = 32
EVALUATION_SEED = 1_000_003  # far from any training seed
LEAST_FOR_SSIM = 11  # pixels
SHOWN = 6  # clips on a sheet
ATTRIBUTES = ("color", "shape", "size", "direction", "speed", "joint")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the evaluated videos are sampled."""

    guidance: float = GUIDANCE
    keep: int = 2
    scheme: Scheme | None = None
    sampling: Sampling = Sampling()


def evaluate_shapes(
    models: Models, samples: int, seed: int, settings: Settings = Settings(), rates: Sequence[float] = ()
) -> dict[str, Any]:
    """Generates `samples` clips (and a quarter as many of held-out compositions, and as many stories) and reads them.

    Every figure is measured by the same reader: on generated video, on the truth (`ceiling_real`), and on the truth
    through the tokenizer (`ceiling_reconstruction`). Speed errors are relative, of those that were to move. `rates` are
    frames per second, trained on or not (default: those trained on).
    """
    height, width = models.size
    if samples < 4 or height != width:
        raise UserError(f"Moving Shapes need 4 or more samples of square videos, got {samples} of {height}x{width}")
    rates = [float(rate) for rate in rates or models.transformer.about["fps"]]
    if not all(1 <= rate <= 240 for rate in rates):
        raise UserError(f"rates should be 1 to 240 fps, got {rates}")
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


def evaluate_reconstruction(
    tokenizer: Loaded, data: DataConfig, samples: int, seed: int, features: Features, sheet: Path | None = None
) -> dict[str, Any]:
    """Held-out clips through the tokenizer, beside repeating their first frame.

    PSNR (dB), SSIM, L1 and error of the changes between frames (grey levels), share of the truth's fine detail, bits
    per pixel, codes used. Distances of the sets of clips by `features`; to compare with, those of one half of the truth
    from the other, and of the truth from itself with its frames out of order. `sheet` is a picture of the first clips.
    Where the data holds nothing out (and is not procedural), training videos are used and `split` says so.
    """
    if samples < 4 or min(data.size) < LEAST_FOR_SSIM:
        raise UserError(f"need 4 or more samples of {LEAST_FOR_SSIM} pixels or more, got {samples} of {data.size}")
    split = "held_out" if data.held_out or data.source in ("shapes", "mnist") else "train"
    rng = np.random.default_rng([EVALUATION_SEED, seed])
    clips = _some_clips(open_source(data, split), data, samples, rng)
    scores: dict[str, list[float]] = collections.defaultdict(list)
    seen: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    shown: list[np.ndarray] = []
    counts_V = np.zeros(tokenizer.model.quantizer.vocabulary, np.int64)
    batch = min(BATCH, samples)
    with progress("evaluate reconstruction", samples, "clips") as advance:
        while truths := list(itertools.islice(clips, batch)):
            filled = np.stack(truths + truths[-1:] * (batch - len(truths)))  # nothing is compiled for the last ones
            made, ids = through(tokenizer, filled)
            shuffled = filled[:, rng.permutation(data.frames)]
            for name, videos in (("real", filled), ("made", made), ("shuffled", shuffled)):
                seen[name].append(features.extract(videos)[: len(truths)])
            for truth_THWC, made_THWC, ids_THW in zip(truths, made, ids, strict=False):
                for name, value in _compare(truth_THWC, made_THWC).items():
                    scores[name].append(value)
                counts_V += np.bincount(ids_THW.ravel(), minlength=len(counts_V))
                if len(shown) < 2 * SHOWN:
                    shown += [truth_THWC, made_THWC]
            advance(len(truths))
    found = len(scores["psnr"])
    if found < 4:
        raise UserError(f"only {found} {split} videos have {data.frames} frames at any of {data.fps} fps; need 4")
    if sheet is not None:
        contact_sheet(sheet, shown, captions=["truth", "made"] * (len(shown) // 2))
    share_V = counts_V[counts_V > 0] / counts_V.sum()
    return {
        **{name: float(np.mean(values)) for name, values in scores.items() if name != "detail_of_truth"},
        "detail": float(np.sum(scores["detail"]) / max(np.sum(scores["detail_of_truth"]), 1e-9)),
        **_distances({name: np.concatenate(parts) for name, parts in seen.items()}),
        "features": f"{features.name} {features.mark}",
        "bits_per_pixel": counts_V.sum() * math.log2(len(counts_V)) / (found * data.frames * math.prod(data.size)),
        "codes_used": float(np.mean(counts_V > 0)),
        "perplexity": float(np.exp(-np.sum(share_V * np.log(share_V)))),
        "split": split,
        "samples": found,
        "seed": seed,
        "size": list(data.size),
        "frames": data.frames,
        "weights": tokenizer.about["fingerprint"],
    }


def _compare(truth_THWC: np.ndarray, made_THWC: np.ndarray) -> dict[str, float]:
    """Figures of one clip, and those of repeating its first frame."""
    repeated_THWC = np.repeat(truth_THWC[:1], len(truth_THWC), axis=0)
    figures = {}
    for prefix, video_THWC in (("", made_THWC), ("repeat_", repeated_THWC)):
        figures[prefix + "psnr"] = min(psnr(truth_THWC, video_THWC), 100.0)
        figures[prefix + "ssim"] = ssim(truth_THWC, video_THWC)
        figures[prefix + "temporal_error"] = temporal_error(truth_THWC, video_THWC)
    difference = truth_THWC.astype(np.float32) - made_THWC
    return figures | {
        "l1": float(np.abs(difference).mean()),
        "detail": detail(made_THWC),
        "detail_of_truth": detail(truth_THWC),
    }


def _distances(seen: dict[str, np.ndarray]) -> dict[str, float]:
    real_ND, half = seen["real"], len(seen["real"]) // 2
    figures = {}
    for name, distance in (("frechet", frechet_distance), ("kernel", kernel_distance)):
        figures[name] = distance(real_ND, seen["made"])
        figures[f"{name}_real_halves"] = distance(real_ND[:half], real_ND[half:])
        figures[f"{name}_shuffled"] = distance(real_ND, seen["shuffled"])
    return figures


def _some_clips(source: VideoSource, data: DataConfig, samples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """At most `samples` clips of different videos, at random times and rates; damaged ones are left out."""
    found = 0
    for index in rng.permutation(min(len(source), 10 * samples + 1000)):
        item = source[int(index)]
        if found == samples or not (rates := usable_rates(item.seconds, data.frames, data.fps)):
            continue
        fps = float(rng.choice(rates))
        start = float(rng.uniform(0, max(0.0, item.seconds - data.frames / fps)))
        try:
            clip_THWC = item.read(start, fps, data.frames, data.size)
        except UserError:
            continue
        found += 1
        yield clip_THWC


def through(tokenizer: Loaded, video_BTHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips encoded and decoded, and their tokens. The last latent frame is filled up with the last frame."""
    B, T, height, width, _ = video_BTHWC.shape
    spare = -(T - 1) % tokenizer.config.temporal_patch
    padded = np.concatenate([video_BTHWC, np.repeat(video_BTHWC[:, -1:], spare, axis=1)], axis=1)
    ids = StreamEncoder(tokenizer, B, (height, width)).feed(padded)
    return StreamDecoder(tokenizer, B, ids.shape[2], ids.shape[3]).feed(ids)[:, :T], ids


def generate_batch(
    models: Models, fps: float, parts: Sequence[tuple[float, Sequence[str]]], seeds_B: np.ndarray, settings: Settings
) -> np.ndarray:
    """Many videos at once, alike in rate and lengths. Each part: its seconds, and a prompt for each video.

    Returns uint8 (B, T, H, W, 3).
    """
    batch, length = len(seeds_B), models.transformer.config.text_length
    _, rows, columns = models.transformer.config.latent
    guidance_B = np.full(batch, settings.guidance, np.float32)
    prompts, start = [], 0.0
    for seconds, texts in parts:
        text_BL = np.stack([models.text.encode(text, length) for text in texts])
        prompts.append(Prompt(start, text_BL, np.full_like(text_BL, -1), seeds_B, guidance_B, guidance_B))
        start += seconds
    frames = round(start * fps)
    made = videos(
        models,
        prompts,
        rates_of(models, fps, settings.scheme),
        latent_frames_for(frames, models.tokenizer.config.temporal_patch),
        keep=settings.keep,
        method=settings.sampling,
        given_BTHW=np.zeros((batch, 0, rows, columns), np.int32),
        reencode=settings.scheme == "re-encoding",
    )
    return np.concatenate(list(made), axis=1)[:, :frames]


def _batches(
    stories: Sequence[ShapesStory], batch: int, *stream: int
) -> Iterator[tuple[list[ShapesStory], int, np.ndarray]]:
    """Stories, `batch` at a time; how many of them count (the last ones are filled up, so that nothing is compiled for
    them); a seed each, of a random `stream`."""
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
    """One-segment videos, shared out among the rates: each at least two seconds and one window long."""
    patch, window = models.tokenizer.config.temporal_patch, models.transformer.config.latent[0]
    scores: dict[str, list[dict[str, bool]]] = {
        name: [] for name in ("attributes", "ceiling_real", "ceiling_reconstruction", "held_out")
    }
    errors: dict[str, float | None] = {}
    for number, fps in enumerate(rates):
        latent_frames = max(window, latent_frames_for(round(2 * fps) + 1, patch))
        frames = frames_of(latent_frames, patch)
        plain = _stories_of((samples + number) // len(rates), _stream(seed, number), frames / fps)
        unseen = _stories_of(
            (held_out_samples + number) // len(rates), _stream(seed, number), frames / fps, held_out=True
        )
        relative: list[float] = []
        done = 0
        for now, count, seeds_B in _batches(plain + unseen, min(BATCH, samples), seed, number):
            prompts = [story.segments[0].caption for story in now]
            made = generate_batch(models, fps, [(frames / fps, prompts)], seeds_B, settings)
            real = np.stack([render(story, fps=fps, frames=frames, size=models.size[0]) for story in now])
            again = through(models.tokenizer, real)[0] if done < len(plain) else real
            for index in range(count):
                wanted = now[index].segments[0].attributes
                reading = read_attributes(made[index], fps)
                if done + index >= len(plain):
                    scores["held_out"].append(score(reading, wanted))
                    continue
                scores["attributes"].append(score(reading, wanted))
                scores["ceiling_real"].append(score(read_attributes(real[index], fps), wanted))
                scores["ceiling_reconstruction"].append(score(read_attributes(again[index], fps), wanted))
                if reading is not None and wanted.direction != STILL:
                    relative.append(abs((reading.units_per_second or 0.0) / math.hypot(*wanted.velocity) - 1))
            done += count
            advance(count)
        errors[f"{fps:g}"] = _mean(relative)
    shares = {name: {key: _mean([s[key] for s in found]) for key in ATTRIBUTES} for name, found in scores.items()}
    held_out_joint = {"joint": shares.pop("held_out")["joint"], "samples": held_out_samples}
    return {**shares, "held_out": held_out_joint, "speed_error_by_fps": errors}


def _stories(
    models: Models, samples: int, fps: float, seed: int, settings: Settings, advance: Callable[..., None]
) -> dict[str, Any]:
    """Two-segment videos: does the motion follow the second prompt within a second, is it still the same object, and
    are the joins of the windows seamless (and how seamless is the truth there, through the tokenizer)?"""
    dataset = ShapesDataset(samples, _stream(seed, 50), segments=(2, 2), segment_seconds=(3.0, 3.0))
    plan = Story((Segment("", 3.0), Segment("", 3.0)), fps, keep=settings.keep)
    starts = joins(plan, models)
    before, after = round(3 * fps), round(4 * fps)  # frames until the switch; a second later
    follows: list[bool] = []
    keeps: list[bool] = []
    ratios: dict[str, list[float]] = {"seam_ratio": [], "seam_ratio_reconstruction": []}
    stories = [dataset[index].story for index in range(samples)]
    for now, count, seeds_B in _batches(stories, min(BATCH, samples), seed, 50):
        parts = [(3.0, [story.segments[part].caption for story in now]) for part in (0, 1)]
        made = generate_batch(models, fps, parts, seeds_B, settings)
        real = np.stack([render(story, fps=fps, frames=plan.frames, size=models.size[0]) for story in now])
        again = through(models.tokenizer, real)[0]
        for index in range(count):
            first, second = (segment.attributes for segment in now[index].segments)
            was, became = read_attributes(made[index, :before], fps), read_attributes(made[index, after:], fps)
            right = score(became, second)
            follows.append(right["direction"] and right["speed"])
            keeps.append(_same_object(was, became, same_color=first.color == second.color))
            for name, video in zip(ratios, (made[index], again[index]), strict=True):
                if starts and math.isfinite(ratio := seam_ratio(video, starts)):  # nan where nothing moves
                    ratios[name].append(ratio)
        advance(count)
    switch = {"follows_within_a_second": _mean(follows), "keeps_identity": _mean(keeps), "samples": samples}
    return {"prompt_switch": switch, **{name: _mean(found) for name, found in ratios.items()}}


def _stories_of(count: int, seed: int, seconds: float, held_out: bool = False) -> list[ShapesStory]:
    """Stories of one segment that is at least so long."""
    length = (math.ceil(seconds),) * 2
    dataset = ShapesDataset(max(1, count), seed, held_out, segments=(1, 1), segment_seconds=length)
    return [dataset[index].story for index in range(count)]


def _same_object(was: ShapeReading | None, became: ShapeReading | None, same_color: bool) -> bool:
    if was is None or became is None:
        return False
    return was.shape == became.shape and was.size == became.size and (not same_color or was.color == became.color)


def _stream(seed: int, number: int) -> int:
    """A dataset's seed for each part of an evaluation."""
    return int(np.random.SeedSequence([EVALUATION_SEED, seed, number]).generate_state(1)[0])


def _mean(values: Sequence[float]) -> float | None:
    """JSON has no NaN: of nothing, there is no mean."""
    return float(np.mean(values)) if values else None
