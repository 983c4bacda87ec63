"""Given videos, changed: more frames between theirs, or a way from their end back to their beginning."""

from collections.abc import Iterator

import numpy as np

from tokvid.errors import UserError
from tokvid.sampling.levels import check_rows, rates_between, videos, was_trained
from tokvid.sampling.story import Story, encode_opening, first_frames, prompts_of
from tokvid.sampling.stream import Models, RollingWindow, StreamDecoder, frames_of


def interpolate(
    models: Models, told: Story, frames: Iterator[np.ndarray], factor: int
) -> tuple[int, Iterator[np.ndarray]]:
    """A video at `told.fps` → how many frames it has at a rate `factor` times as high, and those, a few at a time.

    `frames` uint8 (H, W, 3) of the models' size; `told` has one segment, whose prompt says what they show. Each level
    multiplies the rate by what the weights were trained for; UserError where `factor` is no power of that.
    """
    rates = rates_between(models, told.fps, factor)
    count = 0

    def whole() -> Iterator[np.ndarray]:
        """The frames, the last one again until its latent frame is full."""
        nonlocal count
        for frame_HWC in frames:
            count += 1
            yield frame_HWC
        for _ in range(-(count - 1) % models.tokenizer.config.temporal_patch):
            yield frame_HWC

    tokens_THWQ = encode_opening(models, whole())
    made = videos(
        models,
        prompts_of(told, models),
        rates,
        1 + (len(tokens_THWQ) - 1) * factor,
        keep=told.keep,
        method=told.sampling,
        given_BTHWQ=tokens_THWQ[None, :1],
        coarse=(told.fps, (tokens_THWQ[None, i : i + 1] for i in range(len(tokens_THWQ)))),
    )
    total = 1 + (count - 1) * factor
    return total, first_frames(total, made)


def loop(models: Models, told: Story, tokens_THWQ: np.ndarray) -> tuple[np.ndarray, int]:
    """A video's tokens → its frames, uint8 (T, H, W, 3), then new ones that lead back to its beginning; how many those.

    The window knows the video's end and, behind what is generated, its beginning. The first frame, whose latent frame
    is a single picture and fits no mid-video, is left out. UserError for a video of too few latent frames.
    """
    check_rows(models, told.sampling)
    if not was_trained(models, "infilling"):
        raise UserError("these weights were not trained to lead to something given; train some with layouts.infilling")
    window, patch = models.transformer.config.latent[0], models.tokenizer.config.temporal_patch
    known = min(told.keep, (window - 1) // 2)
    if len(tokens_THWQ) < 1 + known or window - 2 * known < 1:
        raise UserError(
            f"a loop needs a video of {frames_of(1 + known, patch)} frames or more and a window of 3 latent frames, "
            f"got {frames_of(len(tokens_THWQ), patch)} frames and {window}"
        )
    beginning_THWQ = tokens_THWQ[1 : 1 + known]
    rolling = RollingWindow(models, 1, told.fps, keep=known, method=told.sampling)
    rolling.given(tokens_THWQ[None])
    (prompt,) = prompts_of(told, models)
    new = window - 2 * known
    along_T = np.linspace(prompt.guidance_B[0], prompt.last_guidance_B[0], new)
    made_THWQ = rolling.extend(prompt, along_T[None], until_BTHWQ=beginning_THWQ[None])[0]
    decoder = StreamDecoder(models.tokenizer, 1, *tokens_THWQ.shape[1:3])
    video_THWC = decoder.feed(np.concatenate([tokens_THWQ, made_THWQ])[None])[0]
    return video_THWC[1:], new * patch
