"""Many stories side by side: those of the same length and settings run through the models as one batch."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tokvid.errors import UserError
from tokvid.sampling.levels import Levels, check_rows, rates_of, videos
from tokvid.sampling.story import Story, prompts_of
from tokvid.sampling.stream import Models, Prompt, latent_frames_for

MOST_BYTES = 1 << 31  # of a batch's frames, which are kept in memory


def tell_many(
    models: Models, stories: Sequence[Story], batch: int, advance: Callable[[int], object] = lambda frames: None
) -> Iterator[tuple[list[int], list[UInt8[np.ndarray, "t h w 3"]]]]:
    """The videos of many stories, at most `batch` at a time: their numbers, and their frames, uint8 (T, H, W, 3).

    Prompts, seeds and guidance may differ within a batch. Each video is the same as by `tell`, but for rounding.
    `advance` is called with the number of new frames, of all videos, as they are made. UserError as by `batches_of`.
    """
    for part in batches_of(models, stories, batch):
        numbers = part[: len(set(part))]
        yield numbers, _told(models, [stories[number] for number in part], len(numbers), advance)


def batches_of(models: Models, stories: Sequence[Story], batch: int) -> list[list[int]]:
    """The numbers of the stories of each batch: those of one rate, of the same segments' lengths and sampling.

    UserError where the weights don't allow a story, or a batch needs too much memory.
    """
    if batch < 1:
        raise UserError(f"batch should be 1 or more, got {batch}")
    groups: dict[Any, list[int]] = {}
    for number, story in enumerate(stories):
        alike = (tuple(story.starts), story.fps, story.scheme, story.keep, story.sampling)
        groups.setdefault(alike, []).append(number)
    for first, *others in groups.values():
        story, together = stories[first], min(batch, 1 + len(others))
        check_rows(models, story.sampling)
        rates_of(models, story.fps, story.scheme)
        if together * story.frames * math.prod(models.size) * 3 > MOST_BYTES:
            raise UserError(f"{together} videos of {story.frames} frames are too many at once; use a smaller batch")
    return [part for group in groups.values() for part in _parts(group, batch)]


def _parts(numbers: list[int], batch: int) -> Iterator[list[int]]:
    """As few parts of at most `batch` as will do, all of one size, for which programs are compiled once: the last one
    repeats its last number."""
    size = math.ceil(len(numbers) / math.ceil(len(numbers) / batch))
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        yield part + part[-1:] * (size - len(part))


def _told(
    models: Models, stories: Sequence[Story], wanted: int, advance: Callable[[int], object]
) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """The frames of the first `wanted` stories; the others fill the batch."""
    story, patch = stories[0], models.tokenizer.config.temporal_patch
    rates = rates_of(models, story.fps, story.scheme)
    levels = Levels(rates, latent_frames_for(story.frames, patch), story.keep, story.sampling)
    every = (prompts_of(each, models) for each in stories)
    prompts = [_side_by_side(prompts) for prompts in zip(*every, strict=True)]
    parts, made = [], 0
    for part_BTHWC in videos(models, prompts, levels, models.no_tokens(len(stories))):
        parts.append(part_BTHWC[:, : story.frames - made])
        made += parts[-1].shape[1]
        advance(wanted * parts[-1].shape[1])
    return [np.concatenate([part_BTHWC[i] for part_BTHWC in parts]) for i in range(wanted)]


def _side_by_side(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts of one video each as one prompt of all."""
    start, *_ = prompts[0]
    return Prompt(start, *(np.concatenate(arrays) for arrays in zip(*(each[1:] for each in prompts), strict=True)))
