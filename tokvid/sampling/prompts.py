"""Prompts as what a window reads: text ids, guidance scales and the seeds of its noise."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Num

from tokvid.config import GUIDANCE
from tokvid.sampling.models import Models

OWN_NOISE = 15_485_863  # between the seeds of levels, and of places


class Prompt(NamedTuple):
    """The prompts of a batch of videos, in force from `start` seconds on.

    Prompts and negative prompts (B, L), padded with -1, or (B, L, E), as in `TokenBatch`; seeds (B,), and the guidance
    scales (B,) of the first and the last latent frame.
    """

    start: float
    text_BL: Num[np.ndarray, "b l *e"]
    negative_BL: Num[np.ndarray, "b l *e"]
    seeds_B: Integer[np.ndarray, " b"]
    guidance_B: Float[np.ndarray, " b"]
    last_guidance_B: Float[np.ndarray, " b"]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """The guidance scale at the beginning and at the end (None: the same), and the negative prompt."""

    scale: float = GUIDANCE
    last: float | None = None
    negative: str = ""


def make_prompt(
    models: Models,
    texts: Sequence[str],
    seeds_B: Integer[np.ndarray, " b"],
    guidance: Guidance,
    start: float = 0.0,
) -> Prompt:
    """A prompt for a video of each text."""
    encode, batch = models.text.encoder(models.transformer.config.text_length), len(texts)
    last = guidance.scale if guidance.last is None else guidance.last
    return Prompt(
        start,
        np.stack([encode(text) for text in texts]),
        np.stack([encode(guidance.negative)] * batch),
        seeds_B,
        np.full(batch, guidance.scale, np.float32),
        np.full(batch, last, np.float32),
    )


def next_seeds(seeds_B: Integer[np.ndarray, " b"], by: int | Integer[np.ndarray, " b"]) -> Integer[np.ndarray, " b"]:
    """The seeds that come `by` after these."""
    return (np.asarray(seeds_B, np.int64) + by) % 2**32


def with_noise_of(number: int, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts with other seeds, for a further level, or place on a canvas: noise that it shared with another
    one would have been chosen by what that one drew."""
    return [prompt._replace(seeds_B=next_seeds(prompt.seeds_B, OWN_NOISE * number)) for prompt in prompts]
