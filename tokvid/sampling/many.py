"""Many stories side by side: those of the same length and settings run through the models as one batch.

On CPUs, each core has a share of the batch: a small model's token takes many small operations, which one core does as
fast as two.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tokvid.errors import UserError
from tokvid.io.threads import usable_cores
from tokvid.sampling.levels import check_rows, rates_of, videos
from tokvid.sampling.models import Models
from tokvid.sampling.prompts import Prompt
from tokvid.sampling.story import Story, levels_of, prompts_of
from tokvid.sharding import current_mesh, platform, settings_here

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
        shares = [[stories[number] for number in share] for share in _parts(part, math.ceil(len(part) / _at_once()))]
        yield numbers, _by_shares(models, shares, len(numbers), advance)


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


def _at_once() -> int:
    """The number of shares of a batch: of cores, where the models run on these; devices take it whole."""
    if platform() != "cpu" or current_mesh() is not None:
        return 1
    return usable_cores()


def _by_shares(
    models: Models, shares: Sequence[Sequence[Story]], wanted: int, advance: Callable[[int], object]
) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """The frames of the first `wanted` stories, each share in a thread of its own."""
    if len(shares) == 1:
        return _told(models, shares[0], wanted, advance)
    one_by_one, left, here = threading.Lock(), threading.Event(), settings_here()

    def told(share: Sequence[Story], count: int) -> list[UInt8[np.ndarray, "t h w 3"]]:
        with here():
            return _told(models, share, count, made)

    def made(frames: int) -> None:
        if left.is_set():
            raise InterruptedError
        with one_by_one:
            advance(frames)

    firsts = itertools.accumulate(map(len, shares), initial=0)
    counts = [min(len(share), wanted - first) for share, first in zip(shares, firsts, strict=False)]
    with ThreadPoolExecutor(len(shares)) as pool:
        asked = [pool.submit(told, share, count) for share, count in zip(shares, counts, strict=True) if count > 0]
        try:
            for each in as_completed(asked):
                each.result()  # raises its error
        finally:
            left.set()  # on an error, or Ctrl-C, the others end with their next frames
    return [video for each in asked for video in each.result()]


def _told(
    models: Models, stories: Sequence[Story], wanted: int, advance: Callable[[int], object]
) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """The frames of the first `wanted` stories; the others fill the batch."""
    story = stories[0]
    levels = levels_of(story, models, story.frames, rates_of(models, story.fps, story.scheme))
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
