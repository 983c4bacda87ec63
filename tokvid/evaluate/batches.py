"""Generates videos in batches, for evaluation."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from tokvid.config import GUIDANCE, Sampling, Scheme
from tokvid.distributed import from_all
from tokvid.errors import UserError
from tokvid.sampling.codec import decode_clips, encode_clips, latent_frames_for
from tokvid.sampling.given import restored
from tokvid.sampling.levels import Levels, rates_of, videos
from tokvid.sampling.models import Models
from tokvid.sampling.prompts import Guidance, make_prompt
from tokvid.sampling.story import defaults_of
from tokvid.weights import Loaded

BATCH = 32
MOST = 1_000_000  # seconds, or frames a second
EVALUATION_SEED = 1_000_003  # far from any training seed
Item = TypeVar("Item")
Batch = TypeVar("Batch")
Name = TypeVar("Name")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the evaluated videos are sampled."""

    guidance: float = GUIDANCE
    keep: int = 2
    scheme: Scheme | None = None
    sampling: Sampling = Sampling()

    def levels(self, models: Models, rates: Sequence[float], frames: int) -> Levels:
        """Those of videos of so many frames."""
        return Levels(rates, latent_frames_for(frames, models.temporal_patch), self.keep, self.sampling)


def usual(task: str = "text_to_video", draws: int = 1, temperature: float | None = None) -> Settings:
    """The default settings of a task, of which the mean of `draws` may be wanted, where that `temperature` is asked."""
    guidance, sampling = defaults_of(task, draws, temperature)
    return Settings(guidance, sampling=sampling)


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """The held-out clips that are measured: so many, of `seconds` at `fps`, drawn by `seed`."""

    samples: int
    seconds: float
    fps: float
    seed: int

    @property
    def frames(self) -> int:
        """Frames per clip, of which the first is at 0 s. UserError where these are no length and rate."""
        for name, value in (("seconds", self.seconds), ("fps", self.fps)):
            if not 0 < value <= MOST:
                raise UserError(f"{name} should be above 0 and at most {MOST}, got {value:g}")
        return 1 + round(self.seconds * self.fps)


class Padded(NamedTuple, Generic[Item]):
    """A batch of items, of which the first `size` are measured; the others pad it, so that the last batch isn't
    compiled anew. `first` is the place of its first one among all items."""

    items: list[Item]
    size: int
    first: int
    seeds_B: np.ndarray


def padded(items: Sequence[Item], batch: int, *stream: int) -> Iterator[Padded[Item]]:
    """Batches of items, with a seed for each item from a random `stream`."""
    for start in range(0, len(items), batch):
        now = list(items[start : start + batch])
        seeds_B = np.random.SeedSequence([EVALUATION_SEED, *stream, start]).generate_state(batch)
        yield Padded(now + now[-1:] * (batch - len(now)), len(now), start, seeds_B)


def padded_as_read(items: Iterator[Item], batch: int, *stream: int) -> Iterator[Padded[Item]]:
    """As `padded`, of items that are read one by one."""
    for number in itertools.count():
        if not (now := list(itertools.islice(items, batch))):
            return
        seeds_B = np.random.SeedSequence([EVALUATION_SEED, *stream, number]).generate_state(batch)
        yield Padded(now + now[-1:] * (batch - len(now)), len(now), number * batch, seeds_B)


def measured(
    batches: Iterable[tuple[Batch, int]],
    measure: Callable[[Batch], Mapping[Name, list[Any]]],
    advance: Callable[[int], object],
) -> dict[Name, list[Any]]:
    """The lists that `measure` makes of batches, joined in their order; a name that no batch has is an empty list.

    Each batch comes with the number of its videos. Several processes share the batches out, and all get all lists. Each
    draws every batch, so that what is random in them doesn't depend on the number of processes.
    """
    process, processes = jax.process_index(), jax.process_count()
    mine: list[Mapping[Name, list[Any]]] = []
    for number, (batch, count) in enumerate(batches):
        if number % processes == process:
            mine.append(measure(batch))
        advance(count)
    every, joined = from_all(mine), collections.defaultdict[Name, list[Any]](list)
    for number in range(sum(map(len, every))):
        for name, values in every[number % processes][number // processes].items():
            joined[name] += values
    return joined


def generate_batch(
    models: Models,
    fps: float,
    parts: Sequence[tuple[float, Sequence[str]]],
    seeds_B: np.ndarray,
    settings: Settings,
    given_BTHWC: np.ndarray | None = None,
) -> np.ndarray:
    """Generates videos with equal rate and lengths. Each part has its seconds, and a prompt per video.

    Returns uint8 (B, T, H, W, 3), which begin with `given_BTHWC`, the frames of other videos, or with none.
    """
    prompts, start, opening = [], 0.0, models.no_tokens(len(seeds_B))
    for seconds, texts in parts:
        prompts.append(make_prompt(models, texts, seeds_B, Guidance(settings.guidance), start))
        start += seconds
    frames = round(start * fps)
    if given_BTHWC is not None:
        opening = encode_clips(models.tokenizer, given_BTHWC)
    rates = rates_of(models, fps, settings.scheme) if opening.shape[1] < 2 else [fps]
    made = videos(models, prompts, settings.levels(models, rates, frames), opening)
    if given_BTHWC is not None:
        made = restored(made, iter(np.moveaxis(given_BTHWC, 1, 0)))
    return np.concatenate(list(made), axis=1)[:, :frames]


def through(tokenizer: Loaded, video_BTHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips encoded and decoded, and their tokens. The last frame is repeated to fill the last latent frame."""
    ids = encode_clips(tokenizer, video_BTHWC)
    return decode_clips(tokenizer, ids)[:, : video_BTHWC.shape[1]], ids


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None for no values, since JSON has no NaN."""
    return float(np.mean(values)) if values else None
