"""Videos, level by level: keyframes at the lowest rate, then each level refines the one below it (CogVideo).

Every level is a rolling window over tokens. A level pulls from the one below no more than its next window sees, so
frames leave in order, as they are made, in memory that doesn't grow with length.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from tokvid.config import Sampling, Scheme
from tokvid.errors import UserError
from tokvid.sampling.stream import (
    Models,
    Prompt,
    RollingWindow,
    Source,
    StreamDecoder,
    window_ends,
)
from tokvid.tasks.conditions import Condition
from tokvid.tasks.tasks import trained_refinement
from tokvid.types import Caption, captions_in_force, stride_of


class Kept(Protocol):
    """Where a level keeps its tokens as they are made, to go on from after an interruption."""

    latent_frames: int

    def read(self, latent_frames: int) -> Iterator[Int[np.ndarray, "t h w q"]]: ...

    def add(self, tokens_THWQ: Int[np.ndarray, "t h w q"]) -> None: ...


class Span(NamedTuple):
    """One window's work: the latent frames `first` up to `end`, under the prompt of segment number `segment`."""

    segment: int
    first: int
    end: int


def rates_of(models: Models, fps: float, scheme: Scheme | None) -> list[float]:
    """The rates of all levels, the lowest first and `fps` last. No scheme: hierarchical where the weights can.

    UserError where they can't, but it is asked for.
    """
    about, rates = models.transformer.about, [fps]
    if scheme == "one-level" or (scheme is None and trained_refinement(about) is None):
        return rates
    slower = refinement(models)[1].slower
    while rates[0] / slower > 0.999 * min(about["fps"]):
        rates.insert(0, rates[0] / slower)
    return rates


def rates_between(models: Models, fps: float, factor: int) -> list[float]:
    """The rates of the levels that make `factor` frames of each one at `fps`; UserError where the weights can't."""
    by, rates = refinement(models)[1].slower, [fps]
    while round(rates[-1] / fps) < factor:
        rates.append(rates[-1] * by)
    if len(rates) == 1 or round(rates[-1] / fps) != factor:
        raise UserError(f"these weights can't make {factor} frames of one; factors should be powers of {by}")
    return rates[1:]


def refinement(models: Models) -> tuple[str, Condition]:
    """The condition from which the weights make a video of a higher rate, after its name; UserError without one."""
    if (found := trained_refinement(models.transformer.about)) is None:
        raise UserError(
            "these weights were not trained to interpolate; train some with the task interpolation in layouts.tasks, "
            "or make stories with --scheme one-level"
        )
    return found


def check_rows(models: Models, sampling: Sampling) -> None:
    """UserError where the weights weren't trained to draw so many rows at once."""
    stride_of(sampling.rows, models.transformer.config.latent)
    trained = sorted(set(models.transformer.about.get("layouts", {}).get("rows", [0])))
    if sampling.rows not in trained:
        raise UserError(
            f"these weights draw {trained} rows at once (0 is token by token), not {sampling.rows}; "
            "use one of these, or train with layouts.rows"
        )


def spans_of(
    models: Models, starts: Sequence[float], fps: float, latent_frames: int, *, keep: int, given: int = 0
) -> list[Span]:
    """The windows in which latent frames up to `latent_frames` are made at one rate, behind so many `given` ones.

    `starts` are the seconds at which segments begin; a window has one prompt, so a new segment begins a new window.
    """
    patch, window = models.tokenizer.config.temporal_patch, models.transformer.config.latent[0]
    segment_T = captions_in_force(tuple(Caption(start, "") for start in starts), latent_frames, fps, patch)
    spans: list[Span] = []
    first = given
    while first < latent_frames:
        segment = int(segment_T[first])
        last = int(np.searchsorted(segment_T, segment, side="right"))
        for end in window_ends(first, last, window, keep):
            spans.append(Span(segment, first, end))
            first = end
    return spans


@dataclasses.dataclass(frozen=True)
class Levels:
    """How the levels of a video are made: their rates, the lowest first, and what windows keep and draw by."""

    rates: Sequence[float]
    latent_frames: int  # at the last rate
    keep: int = 2
    sampling: Sampling = Sampling()


def videos(
    models: Models,
    prompts: Sequence[Prompt],
    levels: Levels,
    given_BTHWQ: Int[np.ndarray, "b t h w q"],
    *,
    kept: Callable[[float], Kept | None] = lambda fps: None,
    source: Source | None = None,
) -> Iterator[UInt8[np.ndarray, "b t h w 3"]]:
    """The frames of a batch of videos, uint8 (B, T, H, W, 3), a few at a time.

    What is `given` of them begins every level, so it is nothing, one picture, or at the only rate; without it, the
    first level's first latent frame begins the others. `source` is the condition that the first level is made from.
    `kept(fps)` says where a level keeps its tokens.
    """
    check_rows(models, levels.sampling)
    rates, counts = levels.rates, [levels.latent_frames]
    tokens: Iterator[np.ndarray] = iter(())
    for slow, fast in zip(reversed(rates[:-1]), reversed(rates[1:]), strict=True):
        counts.insert(0, 1 + -(-(counts[0] - 1) // round(fast / slow)))
    for number, (fps, count) in enumerate(zip(rates, counts, strict=True)):
        if number:
            source = Source(refinement(models)[0], rates[number - 1], tokens)
        window = RollingWindow(models, len(given_BTHWQ), fps, keep=levels.keep, sampling=levels.sampling, source=source)
        if source is not None and source.fps < fps and not given_BTHWQ.shape[1]:
            given_BTHWQ = source.take(0, 1)  # the first latent frame is one frame, the same at every rate
        tokens = _level(window, prompts, count, levels.keep, given_BTHWQ, kept(fps))
    _, rows, columns = models.transformer.config.latent
    decoder = StreamDecoder(models.tokenizer, len(given_BTHWQ), rows, columns)
    for tokens_BTHWQ in tokens:
        yield decoder.feed(tokens_BTHWQ)


def _level(
    window: RollingWindow,
    prompts: Sequence[Prompt],
    latent_frames: int,
    keep: int,
    given_BTHWQ: Int[np.ndarray, "b t h w q"],
    kept: Kept | None,
) -> Iterator[Int[np.ndarray, "b t h w q"]]:
    """Latent frames (B, T, H, W, Q) at one rate: those given, those kept, and then window after window new ones."""
    given = given_BTHWQ.shape[1]
    starts = [prompt.start for prompt in prompts]
    spans = spans_of(window.models, starts, window.fps, latent_frames, keep=keep, given=given)
    window.given(given_BTHWQ)
    for index in range(given):
        yield given_BTHWQ[:, index : index + 1]
    # Only whole windows, so that those that follow fall as they would have.
    there = given + (kept.latent_frames if kept else 0)
    done = [span for span in spans if span.end <= there]
    if kept:
        reading = kept.read(done[-1].end - given if done else 0)
        for span in done:
            tokens_BTHWQ = np.concatenate([next(reading) for _ in range(span.end - span.first)])[None]
            window.given(tokens_BTHWQ)
            yield tokens_BTHWQ
        for _ in reading:  # what comes after them is dropped
            pass
    firsts, ends = {span.segment: span.first for span in reversed(spans)}, {span.segment: span.end for span in spans}
    for span in spans[len(done) :]:
        prompt, first, end = prompts[span.segment], firsts[span.segment], ends[span.segment]
        # From one guidance to the other over the segment.
        along_T = (np.arange(span.first, span.end) - first) / max(1, end - 1 - first)
        scales = np.stack([prompt.guidance_B, prompt.last_guidance_B])
        guidance_BT = scales[0][:, None] + np.outer(scales[1] - scales[0], along_T)
        made_BTHWQ = window.extend(prompt, guidance_BT)
        if kept:
            kept.add(made_BTHWQ[0])
        yield made_BTHWQ
