"""Videos made in batches, for measuring them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tokvid.config import GUIDANCE, Sampling, Scheme
from tokvid.sampling.levels import rates_of, videos
from tokvid.sampling.stream import Models, Prompt, StreamDecoder, StreamEncoder, latent_frames_for
from tokvid.weights import Loaded

BATCH = 32
EVALUATION_SEED = 1_000_003  # far from any training seed


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the evaluated videos are sampled."""

    guidance: float = GUIDANCE
    keep: int = 2
    scheme: Scheme | None = None
    sampling: Sampling = Sampling()


def generate_batch(
    models: Models, fps: float, parts: Sequence[tuple[float, Sequence[str]]], seeds_B: np.ndarray, settings: Settings
) -> np.ndarray:
    """Many videos at once, alike in rate and lengths. Each part: its seconds, and a prompt for each video.

    Returns uint8 (B, T, H, W, 3).
    """
    batch, length = len(seeds_B), models.transformer.config.text_length
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
        given_BTHWQ=models.no_tokens(batch),
    )
    return np.concatenate(list(made), axis=1)[:, :frames]


def through(tokenizer: Loaded, video_BTHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips encoded and decoded, and their tokens. The last latent frame is filled up with the last frame."""
    B, T, height, width, _ = video_BTHWC.shape
    spare = -(T - 1) % tokenizer.config.temporal_patch
    padded = np.concatenate([video_BTHWC, np.repeat(video_BTHWC[:, -1:], spare, axis=1)], axis=1)
    ids = StreamEncoder(tokenizer, B, (height, width)).feed(padded)
    return StreamDecoder(tokenizer, B, ids.shape[2], ids.shape[3]).feed(ids)[:, :T], ids


def mean(values: Sequence[float]) -> float | None:
    """JSON has no NaN: of nothing, there is no mean."""
    return float(np.mean(values)) if values else None
