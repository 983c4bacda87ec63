"""Edits of a clip, by task, from what people hand in: masks and boxes, canvases, strengths."""

import itertools
import logging
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from tokvid.api.inputs import Clip, Frames, Picture, read_clip, read_picture, size_of
from tokvid.api.stories import Settings
from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline.picture import fitted
from tokvid.sampling import canvas, edits
from tokvid.sampling.models import Models
from tokvid.sampling.story import Story, encode_picture
from tokvid.tasks.tasks import OTHER_VERBS, TASKS, keeps_pixels

log = logging.getLogger(__name__)


class EditSettings(Settings, total=False):
    """The settings of a story, and those of single tasks.

    mask: inpaint; a clip of the video's size, of one frame or of as many, white in what becomes new.
    box: inpaint; left, top, width and height of the part that becomes new, in pixels of the video. (Frames that are
        saved become larger: 256 pixels or more, where `scale` says nothing else.)
    canvas: outpaint; the form of the wider or higher video, as "16:9".
    times: upscale; the video is scaled to half the world's size, then made 2, 4, … times as large (2).
    strength: variation; the share of tokens that are drawn again, above 0 and up to 1 (0.5).
    first: restyle, reshape, colourise; a picture, the first frame as it should look, as which the others follow.
    """

    mask: Clip
    box: tuple[int, int, int, int]
    canvas: str
    times: int
    strength: float
    first: Picture


class Edited(NamedTuple):
    """Frames in all, the frames, a few at a time, and their size."""

    total: int
    parts: Iterator[UInt8[np.ndarray, "t h w 3"]]
    size: tuple[int, int]


def check_own(task: str, own: Mapping[str, Any]) -> None:
    """UserError for an unknown task, and for a setting of another one."""
    known = [name for name, each in TASKS.items() if each.edits]
    if task in OTHER_VERBS:
        raise UserError(f"{task} has a method of its own, {OTHER_VERBS[task]}; edit takes {', '.join(known)}")
    if task not in known:
        raise UserError(did_you_mean(task, known, "task"))
    for name in own:
        if name not in TASKS[task].settings:
            raise UserError(f"{name} is not for task {task}; leave it out")
    if task == "inpaint" and len(own) != 1:
        raise UserError("inpaint needs either a box, its left, top, width and height in pixels, or a mask")


def check_box(box: tuple[int, int, int, int], clip_size: tuple[int, int]) -> None:
    """UserError for a box that isn't within a clip of this height and width."""
    (x, y, width, height), (rows, columns) = box, clip_size
    if not (0 <= x < x + width <= columns and 0 <= y < y + height <= rows):
        raise UserError(
            f"the box {x} {y} {width} {height} is not within the video of {columns}x{rows} pixels; give left, top, "
            "width and height"
        )


def check_larger(task: str, larger: int) -> None:
    """UserError for a larger video of a task that keeps no pixels."""
    if larger > 1 and not keeps_pixels(task):
        instead = "give a first frame (first), or leave" if "first" in TASKS[task].settings else "leave"
        raise UserError(f"{task} keeps no pixels of its video, so a larger one would be blurred; {instead} out larger")


def edited(models: Models, story: Story, task: str, clip: Clip, own: Mapping[str, Any], larger: int = 1) -> Edited:
    """A clip edited by a task, with the task's `own` settings, `larger` times the size that the weights make."""
    edits.check_trained(models, task)
    if "first" not in own:
        check_larger(task, larger)
    if task in _EDITS:
        return _EDITS[task](models, story, clip, own, larger)
    fps, size = edits.source_of(models, task, story.fps)
    frames, whole = read_clip(clip, fps, _times(size, larger)), _times(models.size, larger)
    first = encode_picture(models, read_picture(own["first"], whole)) if "first" in own else None
    return Edited(*edits.edit(models, story, task, frames, first), whole)


def _times(size: tuple[int, int], larger: int) -> tuple[int, int]:
    return size[0] * larger, size[1] * larger


def _inpaint(models: Models, story: Story, clip: Clip, own: Mapping[str, Any], larger: int) -> Edited:
    size = _times(models.size, larger)
    if "box" in own:
        masks: Frames = itertools.repeat(_box(own["box"], size_of(clip), size))
    else:
        (height, width), (rows, columns) = size_of(clip), size_of(own["mask"])
        if (height, width) != (rows, columns):
            raise UserError(f"the mask has {columns}x{rows} pixels, the video {width}x{height}; use one size")
        masks = _held(read_clip(own["mask"], story.fps, size))
    return Edited(*edits.inpaint(models, story, read_clip(clip, story.fps, size), masks), size)


def _box(box: tuple[int, int, int, int], clip_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """A mask of this size that is white in the box."""
    try:
        x, y, width, height = (operator.index(each) for each in box)
    except (TypeError, ValueError) as error:
        raise UserError(f"a box is four whole numbers, left, top, width and height, got {box!r:.60}") from error
    check_box((x, y, width, height), clip_size)
    mask_HWC = np.zeros((*clip_size, 3), np.uint8)
    mask_HWC[y : y + height, x : x + width] = 255
    return fitted(mask_HWC, size)


def _held(masks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """A single mask without end, or as many as there are."""
    some = list(itertools.islice(masks, 2))
    return itertools.repeat(some[0]) if len(some) == 1 else itertools.chain(some, masks)


def _outpaint(models: Models, story: Story, clip: Clip, own: Mapping[str, Any], larger: int) -> Edited:
    match = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", str(own.get("canvas", "")))
    if not match:
        raise UserError(f"outpaint needs a canvas, as 16:9, got {own.get('canvas', 'none')!r:.40}")
    sizes = canvas.canvas_sizes(models, int(match[1]) / int(match[2]), *size_of(clip))
    frames = read_clip(clip, story.fps, _times(sizes[0], larger))
    return Edited(*canvas.outpaint(models, story, frames, sizes), _times(sizes[1], larger))


def _upscale(models: Models, story: Story, clip: Clip, own: Mapping[str, Any], larger: int) -> Edited:
    _, size = edits.source_of(models, "upscale", story.fps)
    times, (height, width) = own.get("times", 2), size_of(clip)
    canvas.check_times(times)
    rows, columns = _times(size, times)
    if rows * columns < height * width:
        pixels = (columns, rows, *size[::-1], width, height)
        log.warning("upscale makes %dx%d pixels of %dx%d; the video has %dx%d, which are scaled down first", *pixels)
    video_THWC = np.stack(list(read_clip(clip, story.fps, size)))
    larger_THWC = canvas.upscale(models, story, video_THWC, times)
    return Edited(len(larger_THWC), iter([larger_THWC]), (larger_THWC.shape[1], larger_THWC.shape[2]))


def _vary(models: Models, story: Story, clip: Clip, own: Mapping[str, Any], larger: int) -> Edited:
    frames = read_clip(clip, story.fps, models.size)
    return Edited(*edits.vary(models, story, frames, own.get("strength", 0.5)), models.size)


Edit = Callable[[Models, Story, Clip, Mapping[str, Any], int], Edited]
_EDITS: dict[str, Edit] = {"inpaint": _inpaint, "outpaint": _outpaint, "upscale": _upscale, "variation": _vary}
