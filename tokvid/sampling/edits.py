"""Edits of videos: made from conditions or from some of the tokens, interpolated, or closed to a loop."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from tokvid.errors import UserError
from tokvid.sampling.codec import StreamDecoder, frames_of, latent_frames_for
from tokvid.sampling.given import compared, detailed, followed, hidden, pasted, reduced, resized, restored_alone
from tokvid.sampling.levels import check_rows, interpolated, levels_between, refinement, videos
from tokvid.sampling.models import Models
from tokvid.sampling.story import Opening, Story, encode_opening, encode_picture, first_frames, levels_of, prompts_of
from tokvid.sampling.window import Around, RollingWindow, Source
from tokvid.tasks.conditions import CONDITIONS, draw_points, salient_points
from tokvid.tasks.tasks import TASKS


def edit(
    models: Models,
    story: Story,
    task: str,
    frames: Iterator[UInt8[np.ndarray, "h w 3"]],
    first: Opening | None = None,
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """A video made from the condition of a task: its number of frames, and the frames, a few at a time.

    `frames`, uint8 (H, W, 3), are the condition's, at the rate and size of `source_of`, or where `keeps_pixels`, a
    multiple of the size; `story` has one segment, whose prompt describes the new video. It begins with the frame
    `first`, of the same multiple of the models' size, and goes on as that looks. UserError where the weights weren't
    trained for the task.
    """
    check_trained(models, task)
    (name,) = TASKS[task].conditions
    if (slower := CONDITIONS[name].slower) > 1:
        return interpolate(models, dataclasses.replace(story, fps=story.fps / slower), frames, slower)
    source = Encoded(models, looked_at(frames, name), name)
    made = _generated(models, story, source.frames, sources=[source.stream(story.fps)], first=first)
    if CONDITIONS[name].agree is None:
        return source.frames, made
    if first is not None:  # what looks the same has its colours
        seen = (frame_HWC[None] for frame_HWC in source.frames_THWC)
        made = (part[0] for part in followed((part[None] for part in made), seen, first.frames_THWC, models.size))
    return source.frames, _agreeing(made, source)


def _agreeing(
    made: Iterator[UInt8[np.ndarray, "t h w 3"]], source: "Encoded"
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """New frames, put right so that their condition is the given one."""
    agree, first = CONDITIONS[source.name].agree, 0
    for made_THWC in made:
        seen_THWC = source.frames_THWC[first : first + len(made_THWC)]
        yield made_THWC if agree is None else agree(resized(made_THWC, seen_THWC.shape[1:3]), seen_THWC)
        first += len(made_THWC)


def looked_at(frames: Iterator[UInt8[np.ndarray, "h w 3"]], name: str) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Frames of a condition's size as the condition looks."""
    return (CONDITIONS[name].look(frame_HWC[None])[0] for frame_HWC in frames)


def check_trained(models: Models, task: str) -> None:
    """UserError where the weights weren't trained for a task."""
    if task not in models.tasks:
        known = [name for name in models.tasks if name in TASKS and TASKS[name].edits >= TASKS[task].edits]
        others = f", only for {', '.join(known)}" if known else ""
        raise UserError(f"these weights were not trained for {task}{others}; train some with it in layouts.tasks")


def source_of(models: Models, task: str, fps: float) -> tuple[float, tuple[int, int]]:
    """The rate and the size at which to read a task's last condition, for a new video at `fps`."""
    condition, (height, width) = CONDITIONS[TASKS[task].conditions[-1]], models.size
    return fps / condition.slower, (height // condition.smaller, width // condition.smaller)


def inpaint(
    models: Models,
    story: Story,
    frames: Iterator[UInt8[np.ndarray, "h w 3"]],
    masks: Iterator[UInt8[np.ndarray, "h w 3"]],
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """A video with the tokens generated anew that `masks`, as many frames, show white in: the other pixels are kept.

    What is under a mask leaves no trace in the tokens beside it. Frames and masks have the models' size or a multiple.
    UserError for fewer masks than frames, for none that is white anywhere, and for weights not trained for it.
    """
    check_trained(models, "inpaint")
    video_THWC, patch = np.stack(list(frames)), models.temporal_patch
    count = len(video_THWC)
    new_THW = np.stack([mask_HWC.mean(axis=-1) >= 128 for mask_HWC in itertools.islice(masks, count)])
    if len(new_THW) < count:
        raise UserError(f"the mask has {len(new_THW)} frames, the video {count}; give a mask for each frame")
    _, rows, columns = models.transformer.config.latent
    known_THW = _kept(new_THW, (latent_frames_for(count, patch), rows, columns), patch)
    if known_THW.all():
        raise UserError("the mask is black in every frame; make white what is to be new")
    latent_T = -(-np.arange(count) // patch)
    height, width = np.array(video_THWC.shape[1:3]) // (rows, columns)
    inside_THW = known_THW[latent_T].repeat(height, axis=1).repeat(width, axis=2)
    beside = Encoded(models, iter(hidden(video_THWC, inside_THW)))
    made = _generated(models, story, count, around=Around(beside.tokens_THWQ[None], known_THW[None]))
    return count, pasted(made, video_THWC, inside_THW)


def vary(
    models: Models, story: Story, frames: Iterator[UInt8[np.ndarray, "h w 3"]], strength: float
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """A video of which a share of `strength` of the tokens of each latent frame is drawn again, random ones."""
    check_trained(models, "variation")
    if not 0 < strength <= 1:
        raise UserError(f"strength should be above 0 and at most 1, got {strength}")
    video = Encoded(models, frames)
    T, H, W, _ = video.tokens_THWQ.shape
    known_THW = scattered((T, H, W), strength, np.random.default_rng(story.seed))
    around = Around(video.tokens_THWQ[None], known_THW[None])
    return video.frames, _generated(models, story, video.frames, around=around)


def scattered(shape: tuple[int, int, int], strength: float, rng: np.random.Generator) -> Bool[np.ndarray, "t h w"]:
    """True for all tokens but a share of `strength`: as many in each latent frame, for which one program serves."""
    T, H, W = shape
    rank_TL = np.argsort(rng.random((T, H * W)), axis=1)
    return (rank_TL >= max(1, round(strength * H * W))).reshape(shape)


def animate(
    models: Models,
    story: Story,
    picture_HWC: UInt8[np.ndarray, "h w 3"],
    points: Iterator[Float[np.ndarray, "n 2"]],
    at_path: bool = False,
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """What a picture shows moves as the points of each frame do; `story` has their rate.

    The video begins with the picture, and the path is moved to begin at its object. With `at_path`, the path stays, and
    the object is drawn where it begins.
    """
    check_trained(models, "animate")
    _, size = source_of(models, "animate", story.fps)
    first = None if at_path else encode_picture(models, picture_HWC)
    path = points if at_path else moved(points, salient_points(picture_HWC[None])[0, 0])
    picture = Encoded(models, iter([picture_HWC]), "picture")
    track = Encoded(models, (draw_points(points_NC[None], size)[0] for points_NC in path), "track")
    sources = [picture.stream(story.fps), track.stream(story.fps)]
    return track.frames, _generated(models, story, track.frames, sources=sources, first=first)


def moved(
    points: Iterator[Float[np.ndarray, "n 2"]], start_C: Float[np.ndarray, "2"]
) -> Iterator[Float[np.ndarray, "n 2"]]:
    """A path whose first point, where it is first seen, is moved to `start_C`, and all others with it.

    It isn't moved to NaN. What leaves the picture enters it again on the other side.
    """
    by_C = None
    for points_NC in points:
        if by_C is None and np.isfinite(points_NC[0]).all():
            by_C = np.nan_to_num(start_C - points_NC[0])
        yield points_NC if by_C is None else (points_NC + by_C) % 1


def animate_untrained(
    models: Models, story: Story, picture_HWC: UInt8[np.ndarray, "h w 3"]
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """A video that begins with a picture, of weights that may not be trained for it (AnimateZero).

    The picture's tokens are put in the place of those that are drawn.
    """
    tokens_BTHWQ = encode_opening(models, iter([picture_HWC]))[None]
    made = _generated(models, story, story.frames, around=beginning_with(tokens_BTHWQ))
    return story.frames, restored_alone(made, picture_HWC[None])


def beginning_with(tokens_BTHWQ: Int[np.ndarray, "b t h w q"]) -> Around:
    """These latent frames, to be put in the place of those that are drawn."""
    return Around(tokens_BTHWQ, np.ones(tokens_BTHWQ.shape[:-1], bool), forced=True)


def _generated(
    models: Models,
    story: Story,
    frames: int,
    sources: Sequence[Source] = (),
    around: Around | None = None,
    first: Opening | None = None,
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """The frames of one video at one rate, a few at a time; the first one may be given, and lends its detail."""
    levels = levels_of(story, models, frames)
    opening_BTHWQ = models.no_tokens(1) if first is None else first.tokens_THWQ[None]
    made = videos(models, prompts_of(story, models), levels, opening_BTHWQ, sources=sources, around=around)
    shown = first_frames(frames, made)
    return shown if first is None else restored_alone(shown, first.frames_THWC)


def _kept(
    new_THW: Bool[np.ndarray, "t h w"], shape: tuple[int, int, int], temporal_patch: int
) -> Bool[np.ndarray, "tl hl wl"]:
    """Tokens of which no pixel is new. Latent frame 0 is frame 0, and each later one the next `temporal_patch`."""
    latents, rows, columns = shape
    T, H, W = new_THW.shape
    token_THW = np.any(new_THW.reshape(T, rows, H // rows, columns, W // columns), axis=(2, 4))
    of_frame_T = -(-np.arange(T) // temporal_patch)
    return np.stack([~token_THW[of_frame_T == latent].any(axis=0) for latent in range(latents)])


def interpolate(
    models: Models, story: Story, frames: Iterator[UInt8[np.ndarray, "h w 3"]], factor: int, draws: int = 1
) -> tuple[int, Iterator[UInt8[np.ndarray, "t h w 3"]]]:
    """A video at `story.fps` interpolated to `factor` times the rate: its number of frames, and the frames in parts.

    `frames` are uint8 (H, W, 3) of the models' size or a multiple, as is the result; `story` has one segment, whose
    prompt describes them. Each level multiplies the rate by the factor that the weights were trained for; UserError
    where `factor` is no power of it. New frames are the mean of `draws`.
    """
    how = story.keep, story.sampling, draws
    levels_between(models, story.fps, factor, 1, *how)  # refuses what can't be done before the frames are read
    source = Encoded(models, frames, refinement(models)[0])
    if source.frames == 1:
        raise UserError("a single frame has no others between; give a video of two frames or more")
    levels = levels_between(models, story.fps, factor, len(source.tokens_THWQ), *how)
    (prompt,), total = prompts_of(story, models), 1 + (source.frames - 1) * factor
    made = interpolated(models, prompt, levels, source.tokens_THWQ[None])
    return total, restored_alone(first_frames(total, made), source.frames_THWC, factor)


class Encoded:
    """A user's video, or the condition `name` of it, as tokens; its last frame fills up the last latent frame."""

    def __init__(self, models: Models, frames: Iterator[UInt8[np.ndarray, "h w 3"]], name: str = ""):
        """`frames` have the size of the models or of the condition, or a multiple, and look as that does."""
        self.name, (height, width) = name, models.size
        patch, condition = models.temporal_patch, CONDITIONS.get(name)
        smaller = condition.smaller if condition else 1
        size = (height // smaller, width // smaller)

        given: list[np.ndarray] = []

        def padded() -> Iterator[UInt8[np.ndarray, "h w 3"]]:
            for frame_HWC in frames:
                given.append(frame_HWC)
                yield reduced(frame_HWC, size)
            for _ in range(-(len(given) - 1) % patch):
                yield reduced(given[-1], size)

        self.tokens_THWQ = encode_opening(models, padded(), size)
        self.frames_THWC = np.stack(given)
        self.frames = len(given)

    def stream(self, fps: float) -> Source:
        """The condition, whose rate is `fps`."""
        return Source(self.name, fps, (latent_THWQ[None, None] for latent_THWQ in self.tokens_THWQ))


def check_loop(models: Models, story: Story) -> None:
    """UserError for weights that cannot make a loop, or not with the story's settings."""
    check_rows(models, story.sampling)
    if "infilling" not in models.tasks:
        raise UserError(
            "these weights cannot generate towards a fixed ending; train with the task infilling in layouts.tasks"
        )


def loop(models: Models, story: Story, opening: Opening) -> tuple[UInt8[np.ndarray, "frames rows columns 3"], int]:
    """A video → its frames and new ones back to its beginning, uint8 (T, H, W, 3); the number of new ones.

    The window's known latent frames are the video's end and, after the generated ones, its beginning. The first frame
    is left out: its latent frame is a single image, which cannot stand in mid-video. UserError for too short a video.
    """
    check_loop(models, story)
    window, patch = models.transformer.config.latent_frames, models.temporal_patch
    tokens_THWQ, given_THWC = opening.tokens_THWQ, opening.frames_THWC[opening.before(patch) :]
    known = min(story.keep, (window - 1) // 2)
    if known < 1:
        raise UserError(f"a loop needs weights with windows of 3 latent frames or more, these have {window}")
    if len(tokens_THWQ) < 1 + known:
        few, needed = frames_of(len(tokens_THWQ), patch), frames_of(1 + known, patch)
        raise UserError(
            f"a loop needs {needed} frames or more, got {few} at {story.fps:g} fps; give a longer video or a higher fps"
        )
    rolling = RollingWindow(models, 1, story.fps, keep=known, sampling=story.sampling)
    rolling.append(tokens_THWQ[None])
    (prompt,) = prompts_of(story, models)
    count = window - 2 * known
    scale_T = np.linspace(prompt.guidance_B[0], prompt.last_guidance_B[0], count)
    around_THWQ = np.concatenate([np.zeros_like(tokens_THWQ[:1]).repeat(count, axis=0), tokens_THWQ[1 : 1 + known]])
    known_THW = np.broadcast_to((np.arange(len(around_THWQ)) >= count)[:, None, None], around_THWQ.shape[:-1])
    bridge_THWQ = rolling.extend(prompt, scale_T[None], Around(around_THWQ[None], known_THW[None]))[0]
    decoder = StreamDecoder(models.tokenizer, 1, *tokens_THWQ.shape[1:3])
    made_BTHWC, new = decoder.feed(np.concatenate([tokens_THWQ, bridge_THWQ])[None]), count * patch
    end, beginning = (compared(given_THWC[at][None], made_BTHWC[:, at]) for at in (len(given_THWC) - 1, 1))
    bridge = [detailed(made_BTHWC[:, i - new], end, beginning, (1 + i) / (1 + new))[0] for i in range(new)]
    return np.concatenate([given_THWC[1:], np.stack(bridge)]), new
