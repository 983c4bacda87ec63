"""Pictures and videos as people have them (files, arrays, Pillow's images), as frames of a model's size and rate."""

import functools
import itertools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import PIL.Image
from jaxtyping import UInt8

from tokvid.api.video import Video, checked_frames
from tokvid.errors import UserError
from tokvid.input_pipeline.clips import VideoInfo, count_at, probe, read_image, stream_frames
from tokvid.input_pipeline.encoded import MAX_PIXELS
from tokvid.input_pipeline.picture import Fit, Fitter, on_white
from tokvid.input_pipeline.stored import show
from tokvid.io.progress import MANY, counted
from tokvid.io.urls import local, text_of

log = logging.getLogger(__name__)

Picture = str | os.PathLike[str] | UInt8[np.ndarray, "h w 3"] | PIL.Image.Image
Clip = str | os.PathLike[str] | Video | UInt8[np.ndarray, "t h w 3"] | Sequence[PIL.Image.Image]

Frames = Iterator[UInt8[np.ndarray, "h w 3"]]


def read_picture(picture: Picture, size: tuple[int, int], fit: Fit = "crop") -> UInt8[np.ndarray, "h w 3"]:
    """A picture of this height and width. UserError for one that cannot be read, or a video."""
    if isinstance(picture, str | os.PathLike):
        path = local(text_of(picture))
        if (frames := _facts(path).frames) > 1:
            raise UserError(f"{path} is a video of {frames} frames; give a picture, or continue it as a video")
        _warn_of_crop(path, size, fit)
        return read_image(path, size, fit)
    if isinstance(picture, PIL.Image.Image):
        return Fitter(size, fit)(_upright(picture))
    image_HWC = checked_frames(picture, "a picture", ("height", "width", "3"))
    return _fitted(image_HWC[None], size, fit)[0]


def read_clip(clip: Clip, fps: float, size: tuple[int, int], fit: Fit = "crop") -> Frames:
    """The frames that a video shows at times i/fps, of this height and width.

    Frames without a rate of their own, as an array or a list of pictures, are taken one by one.
    """
    if isinstance(clip, str | os.PathLike):
        path = local(text_of(clip))
        return _of_file(path, fps, size, fit)
    if isinstance(clip, Video):
        count = max(1, math.ceil(clip.seconds * fps - 1e-6))
        parts = ((at / fps, min(64, count - at)) for at in range(0, count, 64))
        return itertools.chain.from_iterable(
            show(clip.frames, clip.fps, start=start, fps=fps, frames=frames, size=size, fit=fit)
            for start, frames in parts
        )
    if isinstance(clip, list | tuple) and clip and all(isinstance(each, PIL.Image.Image) for each in clip):
        return (read_picture(each, size, fit) for each in clip)
    video_THWC = checked_frames(clip, "a video", ("frames", "height", "width", "3"))
    return iter(_fitted(video_THWC, size, fit))


def size_of(clip: Clip) -> tuple[int, int]:
    """Height and width of a clip's own frames; UserError for one that cannot be read."""
    if isinstance(clip, str | os.PathLike):
        info = _facts(local(text_of(clip)))
        return info.height, info.width
    if isinstance(clip, list | tuple) and clip and all(isinstance(each, PIL.Image.Image) for each in clip):
        return clip[0].height, clip[0].width
    frames = clip.frames if isinstance(clip, Video) else checked_frames(clip, "a video", ("T", "H", "W", "3"))
    return frames.shape[1], frames.shape[2]


def own_rate(clip: Clip) -> float | None:
    """The rate at which `read_clip` gives all frames; None for frames without one, as an array's, or a picture."""
    if isinstance(clip, str | os.PathLike):
        return _facts(local(text_of(clip))).rate or None
    return clip.fps if isinstance(clip, Video) else None


def rate_of(clip: Clip) -> float:
    """`own_rate`, or any for a picture; UserError for frames without one."""
    rate = own_rate(clip)
    if rate is None and not isinstance(clip, str | os.PathLike):
        raise UserError("these frames have no rate; give fps, or a tokvid.Video(frames, fps)")
    return rate or 1.0


def _facts(path: Path) -> VideoInfo:
    """`probe` of a file, which reads all of it, once for each of its states."""
    try:
        status = path.stat()
    except OSError:
        return probe(path)  # which says what is wrong
    return _probed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)
def _probed(path: Path, changed: int, size: int) -> VideoInfo:
    return probe(path)


def _of_file(path: Path, fps: float, size: tuple[int, int], fit: Fit) -> Frames:
    """A generator, so that nothing is said of files that aren't read after all."""
    frames = stream_frames(path, fps=fps, size=size, fit=fit)
    _warn_of_crop(path, size, fit)
    total = count_at(_facts(path), fps)
    yield from counted(frames, f"reading {path.name}", total, "frames", quiet=total < MANY)


def _warn_of_crop(path: Path, size: tuple[int, int], fit: Fit) -> None:
    """A tenth of a picture is noticed when it is missing."""
    height, width = size_of(path)
    scale = min(height / size[0], width / size[1])
    kept = round(scale * size[1]), round(scale * size[0])
    if fit == "crop" and kept[0] * kept[1] < 0.9 * width * height:
        log.warning(
            "%s is %dx%d; only its middle, %dx%d, is used: crop it yourself for another part",
            path,
            width,
            height,
            *kept,
        )


def _fitted(video_THWC: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    if math.prod(video_THWC.shape[1:3]) > MAX_PIXELS:
        raise UserError(f"frames of {video_THWC.shape[1:3]} pixels are too large, allowed are {MAX_PIXELS} in all")
    return show(video_THWC, 1.0, start=0.0, fps=1.0, frames=len(video_THWC), size=size, fit=fit)


def _upright(image: PIL.Image.Image) -> av.VideoFrame:
    if image.width * image.height > MAX_PIXELS or not image.width * image.height:
        raise UserError(f"a picture of {image.width}x{image.height} pixels should have 1 to {MAX_PIXELS}")
    try:
        if image.mode == "F":
            raise ValueError("its numbers have no range")
        return on_white(image)
    except Exception as error:  # Pillow raises nearly anything on damaged files and rare modes
        raise UserError(f"cannot use a picture of mode {image.mode} ({error}); convert('RGB') it first") from error
