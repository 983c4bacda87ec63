"""A story as files: videos, written frame by frame as they are generated, and a contact sheet."""

import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tokvid.errors import UserError
from tokvid.io.files import SHEET_SUFFIXES, check_output
from tokvid.io.media import VideoWriter, contact_sheet
from tokvid.io.progress import progress
from tokvid.sampling.given import restored_alone
from tokvid.sampling.kept import KeptWindows
from tokvid.sampling.models import Models
from tokvid.sampling.story import Opening, Story, tell
from tokvid.sampling.window import Windows

WATCHABLE = 256  # pixels: smaller videos are enlarged by a whole factor
MOST_GIF_BYTES = 1 << 28  # a GIF's frames are kept in memory until its end
ROWS, COLUMNS = 32, 8  # of a contact sheet at most
LONGEST_NAME = 240  # bytes, with which a longer one beside it has at most 255
LONGEST_CAPTION = 500  # characters that fit above a row


def film(
    models: Models,
    story: Story,
    outs: Sequence[Path],
    *,
    sheet: Path | None = None,
    scale: int = 0,
    opening: Opening | None = None,
    watch: Callable[[UInt8[np.ndarray, "h w 3"]], object] = lambda frame_HWC: None,
) -> int:
    """Writes a story to all of `outs` as it is generated, and a `sheet` of it; returns the number of frames.

    `opening` comes before the story, or is its first frame. `watch` is called with every frame, uint8 (H, W, 3), before
    it is enlarged `scale` times (0: to at least WATCHABLE pixels). Windows are kept in a hidden file beside the first
    of `outs`: after an interruption, the same call resumes from it. UserError where a file cannot be written;
    KeyboardInterrupt says how to resume.
    """
    total, done = frames_before(opening) + story.frames, 0
    partial = outs[0].parent / _hidden_beside(outs[0].name)  # with_name would raise for an empty name

    def watched() -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        nonlocal done
        told = False
        with KeptWindows(partial, models) as windows:
            for video_THWC in show(models, story, opening, windows):
                if windows.asked and not told:  # an opening is no window
                    told = True
                    if windows.found:
                        print(f"{outs[0]}: resumed, from {partial}", file=sys.stderr)
                    elif windows.others:
                        begins = "begins anew, because what was kept of it is of other settings, prompts or weights"
                        print(f"{outs[0]}: {begins}", file=sys.stderr)
                for frame_HWC in video_THWC:
                    watch(frame_HWC)
                    done += 1
                yield video_THWC

    try:
        shown = with_sheet(with_bar(watched(), outs[0].name, total), sheet, total, story)
        write(shown, outs, story.fps, total, size_of(models, opening), scale=scale)
    except KeyboardInterrupt as error:
        so_far = f"interrupted after {done / story.fps:.1f} of {total / story.fps:.1f} s"
        if not partial.exists():
            raise type(error)(f"{so_far}; nothing is kept") from None
        again = f"run the same command again to resume (the generated part is kept in {partial})"
        raise type(error)(f"{so_far}; {again}") from None
    partial.unlink(missing_ok=True)
    return total


def show(
    models: Models, story: Story, opening: Opening | None, windows: Windows | None = None
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """The frames of an opening, as they were given, and of the story that begins with it or goes on; see `tell`."""
    if opening is None:
        yield from tell(models, story, windows, None)
        return
    before = opening.before(models.temporal_patch)
    if len(opening.tokens_THWQ) == 1 and not opening.is_first:  # told as the first frame of the story that follows
        first, *others = story.segments
        longer = dataclasses.replace(first, seconds=first.seconds + 1 / story.fps)
        story = dataclasses.replace(story, segments=(longer, *others))
    if before:
        yield opening.frames_THWC[:before]
    made = tell(models, story, windows, opening.tokens_THWQ)
    yield from restored_alone(made, opening.frames_THWC[before:])


def size_of(models: Models, opening: Opening | None) -> tuple[int, int]:
    """Height and width of a story: those of the given frames, if any."""
    if opening is None:
        return models.size
    return opening.frames_THWC.shape[1], opening.frames_THWC.shape[2]


def frames_before(opening: Opening | None) -> int:
    """The number of frames before a story: those of its opening, unless that is its first frame."""
    return 0 if opening is None or opening.is_first else len(opening.frames_THWC)


def _hidden_beside(name: str) -> str:
    """The name of the file of a video's windows; a hash of a long one, as a name has at most 255 bytes."""
    data = os.fsencode(name)
    return f".{name if len(data) <= LONGEST_NAME else hashlib.sha256(data).hexdigest()}.tokens"


def with_bar(
    videos: Iterable[UInt8[np.ndarray, "t h w 3"]], name: str, total: int, quiet: bool = False
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """The same frames, counted by a progress bar."""
    with progress(name, total, "frames", quiet=quiet) as advance:
        for video_THWC in videos:
            yield video_THWC
            advance(len(video_THWC))


def with_sheet(
    videos: Iterable[UInt8[np.ndarray, "t h w 3"]], sheet: Path | None, total: int, story: Story | None
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """The same frames, `total` in all; after the last, a contact sheet of some of them is written, if one is wanted.

    It has the prompts of the story that they end with, if any. UserError, before any frame is made, for a file that
    cannot be written.
    """
    if sheet is None:
        yield from videos
        return
    check_output(sheet, *SHEET_SUFFIXES)
    summary, index = _Some(total) if story is None else _Summary(story, total - story.frames), 0
    for video_THWC in videos:
        for frame_HWC in video_THWC:
            summary.see(index, frame_HWC)
            index += 1
        yield video_THWC
    contact_sheet(sheet, summary.rows, captions=summary.captions, columns=COLUMNS)


def write(
    videos: Iterable[UInt8[np.ndarray, "t h w 3"]],
    outs: Sequence[Path],
    fps: float,
    total: int,
    size: tuple[int, int],
    *,
    scale: int = 0,
) -> None:
    """Writes frames, uint8 (T, H, W, 3) at a time and `total` in all, to all of `outs` as they come.

    Frames are enlarged `scale` times (0: to at least WATCHABLE pixels).
    """
    scale = scale_for(size, scale)
    if any(out.suffix.lower() == ".gif" for out in outs) and total * math.prod(size) * scale**2 > MOST_GIF_BYTES:
        raise UserError(f"{total} frames are too many for a GIF, which is built in memory; write an .mp4")
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(VideoWriter(out, fps)) for out in outs]
        for frame_HWC in itertools.chain.from_iterable(videos):
            large_HWC = enlarged(frame_HWC, scale)
            for writer in writers:
                writer.write(large_HWC)


def scale_for(size: tuple[int, int], scale: int = 0) -> int:
    """The factor by which videos of this height and width are enlarged; 0: to at least WATCHABLE pixels."""
    if not 0 <= scale <= 64:
        raise UserError(f"scale should be 1 to 64, or 0 for a shorter side of 256 pixels or more, got {scale}")
    return scale or math.ceil(WATCHABLE / min(size))


def enlarged(frame_HWC: UInt8[np.ndarray, "h w 3"], scale: int) -> UInt8[np.ndarray, "height width 3"]:
    """Every pixel `scale` times as high and as wide."""
    return frame_HWC.repeat(scale, axis=0).repeat(scale, axis=1)


class _Some:
    """Up to four rows of evenly spaced frames."""

    captions = None

    def __init__(self, total: int):
        self._shown = set(np.linspace(0, total - 1, 4 * COLUMNS).round().astype(int).tolist())
        self._frames: list[np.ndarray] = []

    def see(self, index: int, frame_HWC: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds frame number `index` of the video where a row shows it."""
        if index in self._shown:
            self._frames.append(frame_HWC)

    @property
    def rows(self) -> list[UInt8[np.ndarray, "t h w 3"]]:
        """uint8 (T, H, W, 3) each."""
        return [np.stack(self._frames[i : i + COLUMNS]) for i in range(0, len(self._frames), COLUMNS)]


class _Summary:
    """A row of evenly spaced frames for each segment, or for ROWS of them where there are more.

    Above them, one of what the story goes on from.
    """

    def __init__(self, story: Story, before: int):
        """`before`: the number of frames before the story."""
        told = zip(story.segments, story.spans, strict=True)
        shown = [(each.prompt[:LONGEST_CAPTION], first, end) for each, (first, end) in told if end > first]
        if len(shown) > ROWS:
            shown = [shown[i] for i in np.linspace(0, len(shown) - 1, ROWS).round().astype(int)]
        if before:
            shown = [("given", -before, 0), *shown]
        self.captions = [caption for caption, _, _ in shown]
        self._frames: list[list[np.ndarray]] = [[] for _ in shown]
        self._row_of: dict[int, list[np.ndarray]] = {}
        for frames, (_, first, end) in zip(self._frames, shown, strict=True):
            for index in np.linspace(first, end - 1, COLUMNS).round().astype(int).tolist():
                self._row_of[before + index] = frames

    def see(self, index: int, frame_HWC: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds frame number `index` of the video where a row shows it."""
        if index in self._row_of:
            self._row_of[index].append(frame_HWC)

    @property
    def rows(self) -> list[UInt8[np.ndarray, "t h w 3"]]:
        """uint8 (T, H, W, 3) each."""
        return [np.stack(frames) for frames in self._frames]
