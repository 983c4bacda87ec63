"""Measures interpolation quality: `tokvid evaluate interpolation`."""

import collections
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.evaluate.batches import BATCH, EVALUATION_SEED, Settings, mean, through
from tokvid.evaluate.reconstruction import SHOWN, some_clips, split_of
from tokvid.io.progress import progress
from tokvid.metrics.video import psnr
from tokvid.sampling.levels import rates_between, videos
from tokvid.sampling.stream import Models, Prompt, StreamEncoder
from tokvid.shapes.reading import read_attributes, wrap

JITTERS = ("jitter", "ceiling_jitter", "truth_jitter")
COARSE_LATENT_FRAMES = 5  # of each clip to interpolate


def evaluate_interpolation(
    models: Models,
    data: DataConfig,
    samples: int,
    factor: int,
    seed: int,
    settings: Settings = Settings(),
    show: Callable[..., object] = lambda rows, **how: None,
) -> dict[str, Any]:
    """Interpolates clips from every `factor`-th frame and the captions, and compares the new frames with the real ones.

    PSNR (dB) of the new frames, compared with linear blending of their neighbours, repeating the previous frame, and
    the real video through the tokenizer (the ceiling). The same for the half of the clips that moves most, because
    blending is perfect where nothing moves. `jitter` is the variance of an object's frame-to-frame displacement, in
    pixels², if the object is detected in every frame (Moving Shapes). Clips have the data's highest rate; `show` gets
    the first ones as arguments for `contact_sheet`. UserError for fewer than 4 such clips.
    """
    if samples < 4:
        raise UserError(f"need 4 or more samples, got {samples}")
    patch = models.tokenizer.config.temporal_patch
    coarse_frames = 1 + (COARSE_LATENT_FRAMES - 1) * patch
    frames = 1 + (coarse_frames - 1) * factor
    rng = np.random.default_rng([EVALUATION_SEED, seed])
    scores: dict[str, list[float]] = collections.defaultdict(list)
    shown: list[np.ndarray] = []
    batch, length = min(BATCH, samples), models.transformer.config.text_length
    clip = dataclasses.replace(data, frames=frames, fps=(max(data.fps),))
    every = some_clips(clip, split_of(data), 4 * samples, rng)
    single_caption = ((clip_THWC, captions) for clip_THWC, captions in every if len(captions) < 2)
    items = itertools.islice(single_caption, samples)
    with progress("evaluate interpolation", samples, "clips") as advance:
        for number in itertools.count():
            chosen = list(itertools.islice(items, batch))
            if not chosen:
                break
            filled = chosen + chosen[-1:] * (batch - len(chosen))  # so that the last batch isn't compiled anew
            truth = np.stack([video_THWC for video_THWC, _ in filled])
            texts = [captions[0].text if captions else "" for _, captions in filled]
            text_BL = np.stack([models.text.encode(text, length) for text in texts])
            seeds_B = np.random.SeedSequence([EVALUATION_SEED, seed, number]).generate_state(batch)
            scale_B = np.full(batch, settings.guidance, np.float32)
            prompt = Prompt(0.0, text_BL, np.full_like(text_BL, -1), seeds_B, scale_B, scale_B)
            tokens = StreamEncoder(models.tokenizer, batch, data.size).feed(truth[:, ::factor])
            slow = max(data.fps) / factor
            generated = videos(
                models,
                [prompt],
                rates_between(models, slow, factor),
                1 + (tokens.shape[1] - 1) * factor,
                keep=settings.keep,
                method=settings.sampling,
                given_BTHWQ=tokens[:, :1],
                coarse=(slow, (tokens[:, i : i + 1] for i in range(tokens.shape[1]))),
            )
            clips = {
                "": np.concatenate(list(generated), axis=1),
                "blend_": blend(truth, factor),
                "repeat_": truth[:, np.arange(frames) // factor * factor],
                "ceiling_": through(models.tokenizer, truth)[0],
            }
            between = np.arange(frames) % factor > 0
            for index in range(len(chosen)):
                for name, videos_BTHWC in clips.items():
                    scores[f"{name}psnr"].append(min(100.0, psnr(truth[index, between], videos_BTHWC[index, between])))
                jitters = [jitter(clip[index], max(data.fps)) for clip in (clips[""], clips["ceiling_"], truth)]
                if None not in jitters:
                    for name, value in zip(JITTERS, jitters, strict=True):
                        scores[name].append(float(value or 0.0))
                if len(shown) < 3 * SHOWN:
                    shown += [truth[index], clips[""][index], clips["blend_"][index]]
            advance(len(chosen))
    if len(scores["psnr"]) < 4:
        raise UserError(f"only {len(scores['psnr'])} videos have {frames} frames at {max(data.fps):g} fps; need 4")
    captions = ["truth", f"made from every {factor}. frame", "blended"] * (len(shown) // 3)
    show(shown, captions=captions, columns=frames)
    names = [f"{name}psnr" for name in clips]
    moving = np.argsort(scores["repeat_psnr"])[: len(scores["psnr"]) // 2]
    return {
        **{name: mean(scores[name]) for name in [*names, *JITTERS]},
        "moving": {name: mean([scores[name][index] for index in moving]) for name in names},
        "samples": len(scores["psnr"]),
        "factor": factor,
        "fps": max(data.fps),
        "frames": frames,
        "seed": seed,
        "weights": models.mark,
    }


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
    size_xy = np.array(video_THWC.shape[2:0:-1])
    step_TC = wrap(np.diff(reading.centroid_TC, axis=0), size_xy)
    return float(step_TC.var(axis=0).sum())
