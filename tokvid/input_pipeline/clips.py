"""Reads video and image files: their facts, clips by time stamp, streams of frames.

The rest of tokvid reads files through this; `video_file.py` opens untrusted ones safely.
"""

import dataclasses
import logging
from collections.abc import Iterator

import numpy as np

from tokvid.errors import UserError
from tokvid.input_pipeline.clock import steady_rate
from tokvid.input_pipeline.encoded import Encoded, image_kind, name_of
from tokvid.input_pipeline.picture import Fit, Fitter, is_still, open_image, shown_size
from tokvid.input_pipeline.video_file import MAX_SECONDS, Damage, DamagedVideo, VideoFile
from tokvid.input_pipeline.webp import WebP

__all__ = [
    "DamagedVideo",
    "Encoded",
    "Fit",
    "VideoInfo",
    "probe",
    "read_clip",
    "read_image",
    "stream_frames",
]

log = logging.getLogger(__name__)

MAX_CLIP_BYTES = 8 * 2**30  # of a clip from `read_clip`


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """A video's facts: size after rotation and in square pixels, mean frames a second, length in seconds.

    A still image has one frame, 0 fps and 0 seconds. `frames` is counted, not read from the header. `rate` is one at
    which `stream_frames` gives all frames, each at its time: `fps` unless the rate varies. `warnings` are problems of a
    file that can be used in part.
    """

    width: int
    height: int
    fps: float
    seconds: float
    frames: int
    warnings: tuple[str, ...] = ()
    rate: float = 0.0


def _open(source: Encoded, fps: float | None = None) -> VideoFile | WebP:
    return (WebP if image_kind(source) == "WEBP" else VideoFile)(source, fps)


def probe(source: Encoded, *, full: bool = False) -> VideoInfo:
    """The facts of a video or image file: reads every packet, but decodes only the first frame unless `full`.

    Raises:
        UserError: missing, not a video, encrypted, without frames, or its first frame cannot be decoded. A file that is
            damaged or cut off later gives the undamaged length and a warning; only `full` finds damage within packets.
    """
    if is_still(source):
        frame = open_image(source)
        return VideoInfo(frame.width, frame.height, 0.0, 0.0, 1)
    with _open(source) as video:
        look = video.look(full)
    height, width = shown_size(look.frame, video.aspect)
    count = len(look.starts)
    fps = count / look.end if look.end > 0 else look.declared
    if look.declared and abs(fps / look.declared - 1) < 0.02:  # the exact fraction, where the frames confirm it
        fps = look.declared
    rate = fps
    if count > 1 and fps > 0:
        rate = steady_rate(look.starts, video.unit or max(video.tick, 1e-3), fps, video.unit is not None)
    return VideoInfo(width, height, fps, max(look.end, 0.0), count, tuple(look.warnings), rate)


def count_at(info: VideoInfo, fps: float) -> int:
    """About how many frames `stream_frames` gives at a rate. UserError for what is none."""
    _check_rate(fps)
    return round(info.seconds * fps)


def _check_rate(fps: float) -> None:
    if not 0 < fps <= 1000:
        raise UserError(f"fps is {fps}, it should be above 0 and at most 1000")


def _check_clip(start: float, frames: int, size: tuple[int, int]) -> None:
    if frames < 1 or not 0 <= start <= MAX_SECONDS:
        raise UserError(f"asked for {frames} frames from {start} s; ask for at least 1 frame from 0 s or later")
    if frames * size[0] * size[1] * 3 > MAX_CLIP_BYTES:
        raise UserError(
            f"a clip of {frames} frames of {size[1]}x{size[0]} is over {MAX_CLIP_BYTES} bytes; ask for fewer"
        )


def read_clip(
    source: Encoded, *, start: float, fps: float, frames: int, size: tuple[int, int], fit: Fit = "crop"
) -> np.ndarray:
    """The frames shown at times start + i/fps: uint8 (frames, height, width, 3).

    Times are seconds since the first frame's time stamp; a frame is shown until the next one's, the last for
    its own duration. `source` is a path or an encoded file's bytes; a still image is a video of one frame at
    time 0.

    Raises:
        UserError: unreadable, or the video is too short (says how long it is).
        DamagedVideo: the frames asked for are damaged; earlier ones may be fine.
    """
    _check_rate(fps)
    _check_clip(start, frames, size)
    if is_still(source):
        if start > 0 or frames > 1:
            raise UserError(
                f"{name_of(source)} is a still image, asked for {frames} frames from {start:.2f} s; ask for 1 at 0 s"
            )
        return Fitter(size, fit)(open_image(source))[None]
    times = [start + i / fps for i in range(frames)]
    clip_THWC = np.empty((frames, *size, 3), np.uint8)
    with _open(source, fps) as video:
        fitter = Fitter(size, fit, video.aspect)
        shown, done = None, 0

        def show_until(time: float) -> int:
            """Fills in the frames due before `time`; returns the number filled so far."""
            until = done
            while until < frames and times[until] + video.epsilon < time:
                until += 1
            if until > done:
                clip_THWC[done:until] = fitter(shown)
            return until

        end = 0.0
        try:
            for following in video.from_time(start):
                if shown is not None:
                    done = show_until(following.begin)
                if done == frames:
                    return clip_THWC
                shown, end = following.frame, following.end
        except Damage as damage:
            done = show_until(damage.time) if shown is not None else done
            if done < frames:
                raise video.damaged(damage) from damage
            return clip_THWC
        done = show_until(end + 2 * video.epsilon) if shown is not None else done
        if done < frames:
            raise UserError(
                f"{video.name} has {end:.2f} s, asked for {frames} frames at {fps:g} fps from {start:.2f} s "
                f"(to {times[-1]:.2f} s); ask for fewer, earlier or at a higher rate"
            )
    return clip_THWC


def stream_frames(
    source: Encoded, *, fps: float | None = None, size: tuple[int, int] | None = None, fit: Fit = "crop"
) -> Iterator[np.ndarray]:
    """All frames in order, as uint8 (height, width, 3), in flat memory for any length.

    With `fps`, the frames shown at times i/fps, else each of the file's own frames once (their rate is
    `probe(source).fps`). Without `size`, frames keep their own. Damage ends the stream, after the frames before it,
    with a logged warning.

    Raises:
        UserError: unreadable, or not even the first frame can be decoded.
    """
    if fps is not None:
        _check_rate(fps)
    if is_still(source):
        yield Fitter(size, fit)(open_image(source))
        return
    with _open(source, fps) as video:
        fitter = Fitter(size, fit, video.aspect)
        shown, end, done = None, 0.0, 0

        def until(time: float) -> Iterator[np.ndarray]:
            """The current frame, once for each time due before `time`."""
            nonlocal done
            if shown is None:
                return
            image_HWC = None
            while fps is not None and done / fps + video.epsilon < time:
                image_HWC = fitter(shown) if image_HWC is None else image_HWC.copy()
                done += 1
                yield image_HWC

        try:
            for following in video.from_start():
                if fps is None:
                    yield fitter(following.frame)
                else:
                    yield from until(following.begin)
                shown, end = following.frame, following.end
            for fault in video.faults():
                log.warning("%s: %s", video.name, fault)
        except Damage as damage:
            end = damage.time
            log.warning("%s", video.damaged(damage))
        yield from until(max(end, 2 * video.epsilon) if done == 0 else end)


def read_image(source: Encoded, size: tuple[int, int] | None = None, fit: Fit = "crop") -> np.ndarray:
    """An image, or a video's first frame: uint8 (height, width, 3). UserError when it cannot be read."""
    frames = stream_frames(source, size=size, fit=fit)
    try:
        return next(frames)
    finally:
        frames.close()  # type: ignore[attr-defined]
