"""What the weights are worth, as numbers: `tokvid evaluate shapes` and `tokvid evaluate reconstruction`."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.input_pipeline.datasets import open_source, usable_rates
from tokvid.input_pipeline.shapes import ShapesDataset, ShapesStory, render
from tokvid.input_pipeline.windows import captions_in_force
from tokvid.metrics.attributes import ShapeReading, read_attributes, score
from tokvid.metrics.video import psnr, seam_ratio, ssim
from tokvid.progress import progress
from tokvid.sampling.methods import Sampling
from tokvid.sampling.story import Segment, Story, frames_of, joins
from tokvid.sampling.stream import Models, RollingWindow, StreamDecoder, StreamEncoder, latent_frames_for
from tokvid.shape_vocabulary import STILL
from tokvid.weights import Loaded

BATCH = 32
EVALUATION_SEED = 1_000_003  # far from any training seed
ATTRIBUTES = ("color", "shape", "size", "direction", "speed", "joint")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the evaluated videos are sampled."""

    guidance: float = 2.0
    keep: int = 2
    sampling: Sampling = Sampling()


def evaluate_shapes(models: Models, samples: int, seed: int, settings: Settings = Settings()) -> dict[str, Any]:
    """Generates `samples` clips (and a quarter as many of held-out compositions, and as many stories) and reads them.

    Every figure is measured by the same reader: on generated video, on the truth (`ceiling_real`), and on the truth
    through the tokenizer (`ceiling_reconstruction`). Speed errors are relative, of those that were to move.
    """
    if samples < 4:
        raise UserError(f"samples should be at least 4, got {samples}")
    rates = [float(rate) for rate in models.transformer.about["fps"]]
    fewer = max(4, samples // 4)
    total = samples + 2 * fewer
    with progress("evaluate shapes", total, "videos") as advance:
        plain = _clips(models, samples, rates, seed, held_out=False, settings=settings, advance=advance)
        held_out = _clips(models, fewer, rates, seed, held_out=True, settings=settings, advance=advance)
        switch = _stories(models, fewer, max(rates), seed, settings, advance)
    return {
        "attributes": plain["generated"],
        "ceiling_real": plain["real"],
        "ceiling_reconstruction": plain["reconstruction"],
        "held_out": {"joint": held_out["generated"]["joint"], "samples": fewer},
        "speed_error_by_fps": plain["speed_error_by_fps"],
        **switch,
        "samples": samples,
        "seed": seed,
        "settings": dataclasses.asdict(settings),
        "weights": models.mark,
    }


def evaluate_reconstruction(tokenizer: Loaded, data: DataConfig, samples: int, seed: int) -> dict[str, Any]:
    """Held-out clips through the tokenizer, beside repeating their first frame: PSNR (dB), SSIM, bits per pixel.

    Where the data holds nothing out (and is not procedural), training videos are used and `split` says so.
    """
    split = "held_out" if data.held_out or data.source in ("shapes", "mnist") else "train"
    source, rng = open_source(data, split), np.random.default_rng([EVALUATION_SEED, seed])
    scores: dict[str, list[float]] = {name: [] for name in ("psnr", "ssim", "repeat_psnr", "repeat_ssim")}
    tokens = pixels = 0
    used: set[int] = set()
    order = rng.permutation(min(len(source), 10 * samples + 1000))
    with progress("evaluate reconstruction", samples, "clips") as advance:
        for index in order:
            item = source[int(index)]
            rates = usable_rates(item.seconds, data.frames, data.fps)
            if not rates:
                continue
            fps = float(rng.choice(rates))
            start = float(rng.uniform(0, max(0.0, item.seconds - data.frames / fps)))
            try:
                truth_THWC = item.read(start, fps, data.frames, data.size)
            except UserError:
                continue  # damaged where it was to be read
            made_THWC, ids_THW = through(tokenizer, truth_THWC)
            repeated = np.repeat(truth_THWC[:1], len(truth_THWC), axis=0)
            for prefix, video in (("", made_THWC), ("repeat_", repeated)):
                scores[prefix + "psnr"].append(min(psnr(truth_THWC, video), 100.0))
                scores[prefix + "ssim"].append(ssim(truth_THWC, video))
            tokens, pixels = tokens + ids_THW.size, pixels + truth_THWC[..., 0].size
            used.update(np.unique(ids_THW).tolist())
            advance()
            if len(scores["psnr"]) == samples:
                break
    if not scores["psnr"]:
        raise UserError(f"no {split} video has {data.frames} frames at any of {data.fps} fps")
    vocabulary = tokenizer.model.quantizer.vocabulary
    return {
        **{name: float(np.mean(values)) for name, values in scores.items()},
        "bits_per_pixel": tokens * math.log2(vocabulary) / pixels,
        "codes_used": len(used) / vocabulary,
        "split": split,
        "samples": len(scores["psnr"]),
        "seed": seed,
        "size": list(data.size),
        "frames": data.frames,
        "weights": tokenizer.about["fingerprint"],
    }


def through(tokenizer: Loaded, video_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A clip encoded and decoded, cut to its whole latent frames and filled with its last: same shape, and its tokens."""
    made, ids = through_batch(tokenizer, video_THWC[None])
    return made[0], ids[0]


def through_batch(tokenizer: Loaded, video_BTHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `through`, for clips of one shape."""
    B, T, height, width, _ = video_BTHWC.shape
    spare = -(T - 1) % tokenizer.config.temporal_patch
    padded = np.concatenate([video_BTHWC, np.repeat(video_BTHWC[:, -1:], spare, axis=1)], axis=1)
    ids = StreamEncoder(tokenizer, B, (height, width)).feed(padded)
    return StreamDecoder(tokenizer, B, ids.shape[2], ids.shape[3]).feed(ids)[:, :T], ids


def generate_batch(
    models: Models, fps: float, parts: Sequence[tuple[int, Sequence[str]]], seeds_B: np.ndarray, settings: Settings
) -> np.ndarray:
    """Many videos at once, alike in rate and lengths. Each part: its latent frames, and a prompt for each video.

    Returns uint8 (B, T, H, W, 3).
    """
    batch, length = len(seeds_B), models.transformer.config.text_length
    window = RollingWindow(models, batch, fps, keep=settings.keep, method=settings.sampling)
    _, rows, columns = models.transformer.config.latent
    decoder = StreamDecoder(models.tokenizer, batch, rows, columns)
    guidance_B = np.full(batch, settings.guidance, np.float32)
    out = []
    for latent_frames, prompts in parts:
        text_BL = np.stack([models.text.encode(prompt, length) for prompt in prompts])
        out += [decoder.feed(made) for made in window.extend(latent_frames, text_BL, seeds_B, guidance_B)]
    return np.concatenate(out, axis=1)


def _batches(stories: list[ShapesStory], first_seed: int) -> Iterator[tuple[list[ShapesStory], np.ndarray]]:
    """Stories with a seed each, BATCH at a time; the last batch is filled up, so that nothing is compiled for it."""
    for start in range(0, len(stories), BATCH):
        now = stories[start : start + BATCH]
        yield now + now[-1:] * (BATCH - len(now)), np.arange(first_seed + start, first_seed + start + BATCH)


def _clips(
    models: Models, samples: int, rates: list[float], seed: int, *, held_out: bool, settings: Settings, advance: Any
) -> dict[str, Any]:
    """One-segment videos, shared out among the rates: each at least two seconds and one window long."""
    patch, window = models.tokenizer.config.temporal_patch, models.transformer.config.latent[0]
    found: dict[str, list[dict[str, bool]]] = {"generated": [], "real": [], "reconstruction": []}
    errors: dict[str, float] = {}
    for number, fps in enumerate(rates):
        count = samples // len(rates) + (number < samples % len(rates))
        latent_frames = max(window, latent_frames_for(round(2 * fps) + 1, patch))
        frames = frames_of(latent_frames, patch)
        seconds = math.ceil(frames / fps)
        stream = EVALUATION_SEED + 97 * seed + number
        dataset = ShapesDataset(count, stream, held_out, segments=(1, 1), segment_seconds=(seconds, seconds))
        stories = [dataset[index].story for index in range(count)]
        relative: list[float] = []
        left = count
        for now, seeds_B in _batches(stories, seed * 1_000_000 + number * 100_000):
            real = np.stack([render(story, fps=fps, frames=frames, size=models.size[0]) for story in now])
            prompts = [story.segments[0].caption for story in now]
            generated = generate_batch(models, fps, [(latent_frames, prompts)], seeds_B, settings)
            videos = {"generated": generated, "real": real, "reconstruction": through_batch(models.tokenizer, real)[0]}
            for index in range(min(BATCH, left)):
                wanted = now[index].segments[0].attributes
                for name, video in videos.items():
                    reading = read_attributes(video[index], fps)
                    found[name].append(score(reading, wanted))
                    if name == "generated" and reading is not None and wanted.direction != STILL:
                        relative.append(abs((reading.units_per_second or 0.0) / float(np.hypot(*wanted.velocity)) - 1))
            advance(min(BATCH, left))
            left -= BATCH
        errors[f"{fps:g}"] = float(np.mean(relative)) if relative else math.nan
    return {
        **{name: {key: float(np.mean([s[key] for s in scores])) for key in ATTRIBUTES} for name, scores in found.items()},
        "speed_error_by_fps": errors,
    }


def _stories(models: Models, samples: int, fps: float, seed: int, settings: Settings, advance: Any) -> dict[str, Any]:
    """Two-segment videos: does the motion follow the second prompt within a second, is it still the same object, and are
    the joins of the windows seamless?"""
    patch, window = models.tokenizer.config.temporal_patch, models.transformer.config.latent[0]
    dataset = ShapesDataset(samples, EVALUATION_SEED + 97 * seed + 50, segments=(2, 2), segment_seconds=(3.0, 3.0))
    stories = [dataset[index].story for index in range(samples)]
    plan = Story((Segment("", 3.0), Segment("", 3.0)), fps, keep=settings.keep)
    starts, latent_frames = joins(plan, patch, window), latent_frames_for(plan.frames, patch)
    shown_T = captions_in_force(plan.captions, latent_frames, fps, patch)
    counts = [int(np.sum(shown_T == part)) for part in (0, 1)]
    before, after = round(3 * fps), round(4 * fps)  # frames until the switch; a second later
    follows, keeps, ratios = [], [], []
    left = samples
    for now, seeds_B in _batches(stories, seed * 1_000_000 + 900_000):
        parts = [(count, [story.segments[i].caption for story in now]) for i, count in enumerate(counts)]
        videos = generate_batch(models, fps, parts, seeds_B, settings)[:, : plan.frames]
        for index in range(min(BATCH, left)):
            first, second = (segment.attributes for segment in now[index].segments)
            was, became = read_attributes(videos[index, :before], fps), read_attributes(videos[index, after:], fps)
            right = score(became, second)
            follows.append(right["direction"] and right["speed"])
            keeps.append(_same_object(was, became, same_color=first.color == second.color))
            ratios.append(seam_ratio(videos[index], starts))
        advance(min(BATCH, left))
        left -= BATCH
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    return {
        "prompt_switch": {
            "follows_within_a_second": float(np.mean(follows)),
            "keeps_identity": float(np.mean(keeps)),
            "samples": samples,
        },
        "seam_ratio": float(np.mean(finite)) if finite else math.nan,
    }


def _same_object(was: ShapeReading | None, became: ShapeReading | None, same_color: bool) -> bool:
    if was is None or became is None:
        return False
    return was.shape == became.shape and was.size == became.size and (not same_color or was.color == became.color)
