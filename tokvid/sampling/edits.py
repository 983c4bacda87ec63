"""Edits of videos: made from a condition, interpolated to a higher rate, or closed to a loop."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8

from tokvid.errors import UserError
from tokvid.sampling.levels import Levels, check_rows, rates_between, refinement, videos
from tokvid.sampling.story import Story, encode_opening, first_frames, prompts_of
from tokvid.sampling.stream import Models, RollingWindow, Source, StreamDecoder, frames_of
from tokvid.tasks.conditions import CONDITIONS
from tokvid.tasks.tasks import TASKS


def edit(
    models: Models, story: Story, task: str, frames: Iterator[UInt8[np.ndarray, "h w 3"]]
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """A video made from the condition of a task: its number of frames, and the frames, a few at a time.

    `frames`, uint8 (H, W, 3), are the condition's, at the rate and size of `source_of`; `story` has one segment, whose
    prompt describes the new video. UserError where the weights weren't trained for the task.
    """
    condition = CONDITIONS[TASKS[task].conditions[0]]
    if task not in models.tasks:
        others = f", only for {', '.join(models.tasks)}" if models.tasks else ""
        raise UserError(f"these weights were not trained for {task}{others}; train some with it in layouts.tasks")
    if condition.slower > 1:
        slower = dataclasses.replace(story, fps=story.fps / condition.slower)
        return interpolate(models, slower, frames, condition.slower)
    source = _Encoded(models, (condition.look(frame_HWC[None])[0] for frame_HWC in frames), condition.smaller)
    levels = Levels([story.fps], len(source.tokens_THWQ), story.keep, story.sampling)
    (name,), opening = TASKS[task].conditions, models.no_tokens(1)
    edited = videos(models, prompts_of(story, models), levels, opening, sources=[source.stream(name, story.fps)])
    return source.frames, first_frames(source.frames, edited)


def source_of(models: Models, task: str, fps: float) -> tuple[float, tuple[int, int]]:
    """The rate and the size at which to read a task's condition, for a new video at `fps`."""
    condition, (height, width) = CONDITIONS[TASKS[task].conditions[0]], models.size
    return fps / condition.slower, (height // condition.smaller, width // condition.smaller)


def interpolate(
    models: Models, story: Story, frames: Iterator[UInt8[np.ndarray, "h w 3"]], factor: int
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """A video at `story.fps` interpolated to `factor` times the rate: its number of frames, and the frames in parts.

    `frames` are uint8 (H, W, 3) of the models' size; `story` has one segment, whose prompt describes them. Each level
    multiplies the rate by the factor that the weights were trained for; UserError where `factor` is no power of it.
    """
    rates = rates_between(models, story.fps, factor)
    source = _Encoded(models, frames)
    levels = Levels(rates, 1 + (len(source.tokens_THWQ) - 1) * factor, story.keep, story.sampling)
    first, coarse = source.tokens_THWQ[None, :1], source.stream(refinement(models)[0], story.fps)
    interpolated = videos(models, prompts_of(story, models), levels, first, sources=[coarse])
    total = 1 + (source.frames - 1) * factor
    return total, first_frames(total, interpolated)


class _Encoded:
    """A user's video as tokens; its last frame is repeated until the last latent frame is full."""

    def __init__(self, models: Models, frames: Iterator[UInt8[np.ndarray, "h w 3"]], smaller: int = 1):
        self.frames, (height, width) = 0, models.size
        patch = models.tokenizer.config.temporal_patch

        def padded() -> Iterator[UInt8[np.ndarray, "h w 3"]]:
            for frame_HWC in frames:
                self.frames += 1
                yield frame_HWC
            for _ in range(-(self.frames - 1) % patch):
                yield frame_HWC

        self.tokens_THWQ = encode_opening(models, padded(), (height // smaller, width // smaller))

    def stream(self, name: str, fps: float) -> Source:
        """The video as the condition `name`; `fps` is its rate."""
        return Source(name, fps, (latent_THWQ[None, None] for latent_THWQ in self.tokens_THWQ))


def loop(
    models: Models, story: Story, tokens_THWQ: Int[np.ndarray, "t h w q"]
) -> tuple[UInt8[np.ndarray, "frames rows columns 3"], int]:
    """A video's tokens → its frames and new ones back to its beginning, uint8 (T, H, W, 3); the number of new ones.

    The window's known latent frames are the video's end and, after the generated ones, its beginning. The first frame
    is left out: its latent frame is a single image, which cannot stand in mid-video. UserError for too short a video.
    """
    check_rows(models, story.sampling)
    if "infilling" not in models.tasks:
        raise UserError(
            "these weights cannot generate towards a fixed ending; train with the task infilling in layouts.tasks"
        )
    window, patch = models.transformer.config.latent[0], models.tokenizer.config.temporal_patch
    known = min(story.keep, (window - 1) // 2)
    if len(tokens_THWQ) < 1 + known or window - 2 * known < 1:
        raise UserError(
            f"a loop needs a video of {frames_of(1 + known, patch)} frames or more and a window of 3 latent frames, "
            f"got {frames_of(len(tokens_THWQ), patch)} frames and {window}"
        )
    beginning_THWQ = tokens_THWQ[1 : 1 + known]
    rolling = RollingWindow(models, 1, story.fps, keep=known, sampling=story.sampling)
    rolling.append(tokens_THWQ[None])
    (prompt,) = prompts_of(story, models)
    count = window - 2 * known
    scale_T = np.linspace(prompt.guidance_B[0], prompt.last_guidance_B[0], count)
    bridge_THWQ = rolling.extend(prompt, scale_T[None], until_BTHWQ=beginning_THWQ[None])[0]
    decoder = StreamDecoder(models.tokenizer, 1, *tokens_THWQ.shape[1:3])
    video_THWC = decoder.feed(np.concatenate([tokens_THWQ, bridge_THWQ])[None])[0]
    return video_THWC[1:], count * patch
