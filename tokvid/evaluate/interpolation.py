"""Measures interpolation quality: `tokvid evaluate interpolation`."""

import collections
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from tokvid.config import DataConfig
from tokvid.distributed import first
from tokvid.errors import UserError
from tokvid.evaluate.batches import BATCH, EVALUATION_SEED, Padded, Settings, mean, measured, padded_as_read, through
from tokvid.evaluate.generation import COMPARED
from tokvid.evaluate.reconstruction import SHOWN, check_clips, some_clips, split_of
from tokvid.io.progress import progress
from tokvid.sampling.codec import encode_clips, frames_of
from tokvid.sampling.given import restored
from tokvid.sampling.levels import interpolated, levels_between
from tokvid.sampling.models import Models
from tokvid.sampling.prompts import Guidance, Prompt, make_prompt
from tokvid.shapes.reading import read_attributes, wrap

JITTERS = ("jitter", "ceiling_jitter", "truth_jitter")
COARSE_LATENT_FRAMES = 5  # of each clip to interpolate


@dataclasses.dataclass(frozen=True)
class InterpolationSet:
    """The clips to interpolate: `samples` of them, from every `factor`-th frame, each as the mean of `draws`."""

    samples: int
    factor: int
    seed: int
    draws: int = 1


def evaluate_interpolation(
    models: Models,
    data: DataConfig,
    wanted: InterpolationSet,
    settings: Settings = Settings(),
    show: Callable[..., object] = lambda rows, **how: None,
) -> dict[str, Any]:
    """Interpolates clips from every `factor`-th frame and the captions, and compares the new frames with the real ones.

    PSNR (dB), SSIM and perceptual distance of the new frames, beside those of linear blending of their neighbours,
    repeating the previous frame, and the real video through the tokenizer (the ceiling). The same for the half of the
    clips that moves most, because blending is perfect where nothing moves. `jitter` is the variance of an object's
    frame-to-frame displacement, in pixels², if the object is detected in every frame (Moving Shapes). Clips have the
    data's highest rate; `show` gets the first ones as arguments for `contact_sheet`. UserError for fewer than 4 such
    clips, and for clips that are too small for SSIM.
    """
    check_clips(wanted.samples, data.size)
    models = models.for_task("interpolation")
    frames = 1 + (frames_of(COARSE_LATENT_FRAMES, models.temporal_patch) - 1) * wanted.factor
    rng = np.random.default_rng([EVALUATION_SEED, wanted.seed])
    batch, fps = min(BATCH, wanted.samples), max(data.fps)
    every = some_clips(dataclasses.replace(data, frames=frames, fps=(fps,)), split_of(data), 4 * wanted.samples, rng)
    items = itertools.islice(((clip, captions) for clip, captions in every if len(captions) < 2), wanted.samples)
    drawn = ((clips, clips.size) for clips in padded_as_read(items, batch, wanted.seed))
    with progress("evaluate interpolation", wanted.samples, "clips", quiet=not first()) as advance:
        lists = measured(drawn, lambda clips: _measure(models, clips, fps, wanted, settings), advance)
    if len(lists["psnr"]) < 4:
        raise UserError(f"only {len(lists['psnr'])} videos have {frames} frames at {fps:g} fps; 4 are needed")
    shown = lists["shown"][: 3 * SHOWN]
    titles = ["truth", f"made from every {wanted.factor}. frame", "blended"] * (len(shown) // 3)
    show(shown, captions=titles, columns=frames)
    asked = dataclasses.asdict(wanted) | {"samples": len(lists["psnr"])}
    about = {"fps": fps, "frames": frames, "settings": dataclasses.asdict(settings), "weights": models.mark}
    return _figures(lists) | asked | about


def _measure(
    models: Models, batch: Padded[Any], fps: float, wanted: InterpolationSet, settings: Settings
) -> dict[str, list[Any]]:
    """The figures of clips with their captions, and some of them for a sheet."""
    truth = np.stack([video_THWC for video_THWC, _ in batch.items])
    captions = [captions[0].text if captions else "" for _, captions in batch.items]
    factor, prompt = wanted.factor, make_prompt(models, captions, batch.seeds_B, Guidance(settings.guidance))
    clips = {
        "": _interpolated(models, truth, prompt, fps / factor, wanted, settings),
        "blend_": blend(truth, factor),
        "repeat_": truth[:, np.arange(truth.shape[1]) // factor * factor],
        "ceiling_": through(models.tokenizer, truth)[0],
    }
    lists = collections.defaultdict[str, list[Any]](list)
    for index in range(batch.size):
        _compare(lists, {name: videos[index] for name, videos in clips.items()}, truth[index], fps, factor)
        lists["shown"] += [truth[index], clips[""][index], clips["blend_"][index]]
    lists["shown"] = lists["shown"][: 3 * SHOWN]
    return lists


def _figures(scores: dict[str, list[float]]) -> dict[str, Any]:
    """Means over all clips, and over the half that moves most."""
    names = [f"{kind}{metric}" for metric in COMPARED for kind in ("", "blend_", "repeat_", "ceiling_")]
    moving = np.argsort(scores["repeat_psnr"])[: len(scores["psnr"]) // 2]
    return {
        **{name: mean(scores[name]) for name in [*names, *JITTERS]},
        "moving": {name: mean([scores[name][index] for index in moving]) for name in names},
    }


def _interpolated(
    models: Models,
    truth: np.ndarray,
    prompt: Prompt,
    slow: float,
    wanted: InterpolationSet,
    settings: Settings,
) -> np.ndarray:
    """Videos (B, T, H, W, 3) of which every `factor`-th frame, at the rate `slow`, and the captions are given."""
    given = truth[:, :: wanted.factor]
    tokens = encode_clips(models.tokenizer, given)
    how = settings.keep, settings.sampling, wanted.draws
    levels = levels_between(models, slow, wanted.factor, tokens.shape[1], *how)
    made = interpolated(models, prompt, levels, tokens)
    return np.concatenate(list(restored(made, iter(np.moveaxis(given, 1, 0)), wanted.factor)), axis=1)


def _compare(
    scores: dict[str, list[float]], clips: dict[str, np.ndarray], truth_THWC: np.ndarray, fps: float, factor: int
) -> None:
    """Adds the figures of one clip: of the frames in between, and the jitters where an object is seen in all."""
    between = np.arange(len(truth_THWC)) % factor > 0
    for name, video_THWC in clips.items():
        for metric, measure in COMPARED.items():
            scores[f"{name}{metric}"].append(measure(truth_THWC[between], video_THWC[between]))
    jitters = [jitter(video_THWC, fps) for video_THWC in (clips[""], clips["ceiling_"], truth_THWC)]
    if None not in jitters:
        for name, value in zip(JITTERS, jitters, strict=True):
            scores[name].append(float(value or 0.0))


def blend(truth_BTHWC: np.ndarray, factor: int) -> np.ndarray:
    """Every `factor`-th frame, with linear blends in between."""
    at_T = np.arange(truth_BTHWC.shape[1]) / factor
    before_T = np.minimum(at_T.astype(int), (truth_BTHWC.shape[1] - 1) // factor - 1)
    share_T = (at_T - before_T)[:, None, None, None]
    kept = truth_BTHWC[:, ::factor].astype(np.float32)
    return np.rint((1 - share_T) * kept[:, before_T] + share_T * kept[:, before_T + 1]).astype(np.uint8)


def jitter(video_THWC: np.ndarray, fps: float) -> float | None:
    """The variance of an object's frame-to-frame displacement, in pixels², or None if it isn't detected."""
    reading = read_attributes(video_THWC, fps)
    if reading is None or not np.isfinite(reading.centroid_TC).all():
        return None
    size_xy = np.array(video_THWC.shape[2:0:-1], np.float64)
    step_TC = wrap(np.diff(reading.centroid_TC, axis=0), size_xy)
    return float(step_TC.var(axis=0).sum())
