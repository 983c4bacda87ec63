"""Given videos, changed: more frames between theirs, or a way from their end back to their beginning."""

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
    """A video made from the condition of a task → how many frames it has, and those, a few at a time.

    `frames`, uint8 (H, W, 3), are those of the condition as `source_of` says; `story` has one segment, whose prompt
    says what the new video shows. UserError where the weights weren't trained for the task.
    """
    condition = CONDITIONS[TASKS[task].condition]
    if task not in models.tasks:
        raise UserError(f"these weights were not trained for {task}, only for {', '.join(models.tasks)}")
    if condition.slower > 1:
        return interpolate(models, story, frames, condition.slower)
    source = _Encoded(models, (condition.look(frame_HWC[None])[0] for frame_HWC in frames), condition.smaller)
    levels = Levels([story.fps], len(source.tokens_THWQ), story.keep, story.sampling)
    name, opening = TASKS[task].condition, models.no_tokens(1)
    made = videos(models, prompts_of(story, models), levels, opening, source=source.stream(name, story.fps))
    return source.frames, first_frames(source.frames, made)


def source_of(models: Models, task: str, fps: float) -> tuple[float, tuple[int, int]]:
    """The rate and the size in which a task's condition is to be read, for a new video at `fps`."""
    condition, (height, width) = CONDITIONS[TASKS[task].condition], models.size
    return fps / condition.slower, (height // condition.smaller, width // condition.smaller)


def interpolate(
    models: Models, story: Story, frames: Iterator[UInt8[np.ndarray, "h w 3"]], factor: int
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """A video at `story.fps` → how many frames it has at a rate `factor` times as high, and those, a few at a time.

    `frames` uint8 (H, W, 3) of the models' size; `story` has one segment, whose prompt says what they show. Each level
    multiplies the rate by what the weights were trained for; UserError where `factor` is no power of that.
    """
    rates = rates_between(models, story.fps, factor)
    source = _Encoded(models, frames)
    levels = Levels(rates, 1 + (len(source.tokens_THWQ) - 1) * factor, story.keep, story.sampling)
    first, coarse = source.tokens_THWQ[None, :1], source.stream(refinement(models)[0], story.fps)
    made = videos(models, prompts_of(story, models), levels, first, source=coarse)
    total = 1 + (source.frames - 1) * factor
    return total, first_frames(total, made)


class _Encoded:
    """A user's video as tokens; its last frame is repeated until the last latent frame is full."""

    def __init__(self, models: Models, frames: Iterator[UInt8[np.ndarray, "h w 3"]], smaller: int = 1):
        self.frames, (height, width) = 0, models.size
        patch = models.tokenizer.config.temporal_patch

        def whole() -> Iterator[UInt8[np.ndarray, "h w 3"]]:
            for frame_HWC in frames:
                self.frames += 1
                yield frame_HWC
            for _ in range(-(self.frames - 1) % patch):
                yield frame_HWC

        self.tokens_THWQ = encode_opening(models, whole(), (height // smaller, width // smaller))

    def stream(self, name: str, fps: float) -> Source:
        """It as the condition `name` at its rate."""
        return Source(name, fps, (latent_THWQ[None, None] for latent_THWQ in self.tokens_THWQ))


def loop(
    models: Models, story: Story, tokens_THWQ: Int[np.ndarray, "t h w q"]
) -> tuple[UInt8[np.ndarray, "frames rows columns 3"], int]:
    """A video's tokens → its frames, uint8 (T, H, W, 3), then new ones that lead back to its beginning; how many those.

    The window knows the video's end and, behind what is generated, its beginning. The first frame, whose latent frame
    is a single picture and fits no mid-video, is left out. UserError for a video of too few latent frames.
    """
    check_rows(models, story.sampling)
    if "infilling" not in models.tasks:
        raise UserError(
            "these weights cannot generate towards a fixed ending; train some with the task infilling in layouts.tasks"
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
    rolling.given(tokens_THWQ[None])
    (prompt,) = prompts_of(story, models)
    new = window - 2 * known
    along_T = np.linspace(prompt.guidance_B[0], prompt.last_guidance_B[0], new)
    made_THWQ = rolling.extend(prompt, along_T[None], until_BTHWQ=beginning_THWQ[None])[0]
    decoder = StreamDecoder(models.tokenizer, 1, *tokens_THWQ.shape[1:3])
    video_THWC = decoder.feed(np.concatenate([tokens_THWQ, made_THWQ])[None])[0]
    return video_THWC[1:], new * patch
