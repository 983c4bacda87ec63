"""What the verbs of a world give: a `Video`, whole and in memory, or a `Stream` of its frames."""

import base64
import contextlib
import html
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tokvid.api.arguments import typed
from tokvid.errors import UserError
from tokvid.io.files import SHEET_SUFFIXES, VIDEO_SUFFIXES, check_suffix, write_text
from tokvid.io.media import write_image
from tokvid.io.tracks import Cue, add_audio, add_subtitles, check_audio
from tokvid.io.urls import local, text_of
from tokvid.sampling.film import enlarged, with_bar, with_sheet, write
from tokvid.sampling.story import STORY_SUFFIXES, Story, story_text

Parts = Iterator[UInt8[np.ndarray, "t h w 3"]]
OnProgress = Callable[[int, int], object]
MOST_INLINE = 1 << 25  # bytes of a video that a notebook keeps in its page


class Video:
    """Frames and their rate; shows itself in a notebook.

    Attributes:
        frames: uint8 (T, H, W, 3), RGB.
        fps: frames per second.
        story: the story that it tells, if it tells one: prompts, durations, seeds.
        known: how many of the first frames are those of the video that was continued.
        figures: measurements, where there are any (see `World.reconstruct`).
    """

    @typed
    def __init__(
        self,
        frames: UInt8[np.ndarray, "t h w 3"],
        fps: float,
        *,
        story: Story | None = None,
        known: int = 0,
        figures: dict[str, Any] | None = None,
    ):
        self.frames = checked_frames(frames, "the frames of a video", ("T", "H", "W", "3"))
        if story is not None and story.frames > len(self.frames):
            few = f"the story has {story.frames} frames, the video {len(self.frames)}"
            raise UserError(f"{few}; give the story that it tells, or none")
        check_fps(fps)
        self.fps, self.story, self.known, self.figures = float(fps), story, known, figures or {}

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        return iter(self.frames)

    def __repr__(self) -> str:
        height, width = self.frames.shape[1:3]
        return f"Video({len(self)} frames of {height}x{width} at {self.fps:g} fps, {self.seconds:g} s)"

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self) / self.fps

    @typed
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        scale: int = 0,
        audio: str | os.PathLike[str] | None = None,
        captions: bool = False,
    ) -> Path:
        """Writes the video to a file, by its suffix; returns the path.

        - `.mp4` or `.gif`: the video, every pixel enlarged `scale` times (0: until the shorter side has 256 or more);
        - `.png`: a contact sheet, with a row for each prompt; of a single frame, the picture itself, enlarged, too;
        - `.yaml`: the story, as `tokvid story` reads it.

        The sound of a file, `audio`, is joined to an .mp4, cut off or repeated to the video's length; `captions` adds
        the prompts as a track of subtitles. UserError for another suffix, a path that cannot be written, or a sound
        that cannot be read or joined.
        """
        path = Path(text_of(path))
        check_suffix(path, *VIDEO_SUFFIXES, *SHEET_SUFFIXES, *STORY_SUFFIXES)
        suffix = path.suffix.lower()
        if scale and suffix not in VIDEO_SUFFIXES and (suffix not in SHEET_SUFFIXES or len(self) > 1):
            raise UserError(f"scale is for videos and single pictures, {path} is neither; leave it out")
        with _tracks([path], audio, _cues(self.story, len(self)) if captions else None):
            if suffix in STORY_SUFFIXES:
                if self.story is None:
                    raise UserError(f"cannot write {path}: this video tells no story; write .mp4, .gif or .png")
                write_text(path, story_text(self.story))
            elif suffix in VIDEO_SUFFIXES:
                height, width = self.frames.shape[1:3]
                write([self.frames], [path], self.fps, len(self), (height, width), scale=scale)
            elif len(self) == 1:
                write_image(path, enlarged(self.frames[0], scale or 1))
            else:
                for _ in with_sheet([self.frames], path, len(self), self.story):
                    pass
        return path

    def _repr_html_(self) -> str:
        """The video within the page: no file, no server."""
        with tempfile.TemporaryDirectory() as folder:
            data = self.save(Path(folder, "video.png" if len(self) == 1 else "video.mp4")).read_bytes()
        if len(data) > MOST_INLINE:
            return f"{html.escape(repr(self))}: too large for a page; write it with <code>save</code>"
        source = base64.b64encode(data).decode()
        caption = "<br>".join(html.escape(segment.prompt) for segment in self.story.segments) if self.story else ""
        if len(self) == 1:
            shown = f'<img src="data:image/png;base64,{source}" width="256">'
        else:
            shown = f'<video controls autoplay loop muted playsinline src="data:video/mp4;base64,{source}"></video>'
        return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


class Stream:
    """A video while it is made: `for frames in stream` gives its frames in order, uint8 (T, H, W, 3), a few at a time.

    Frames are made when they are asked for, and once: `video` and `save` are for a stream of which none was taken.
    Memory doesn't grow with the length. Leaving the loop stops the work.

    Attributes:
        total, done: the number of frames, and of those made so far.
        fps, size: their rate, and their height and width.
        story, known: as those of `Video`.
        left_out: how many of a source's first frames are not in the video.
    """

    def __init__(
        self,
        parts: Parts,
        total: int,
        fps: float,
        size: tuple[int, int],
        story: Story | None = None,
        **about: Any,
    ):
        """`about`: known, left_out; on_progress; figures(), when all is made; to_files, for stories."""
        self.total, self.fps, self.size, self.story = total, fps, size, story
        self.done, self._taken = 0, False
        self._on_progress: OnProgress | None = about.get("on_progress")
        self.known: int = about.get("known", 0)
        self.left_out: int = about.get("left_out", 0)
        self._parts, self._figures, self._to_files = parts, about.get("figures", dict), about.get("to_files")

    def __iter__(self) -> Parts:
        for video_THWC in self._parts:
            self._taken = True
            self.done += len(video_THWC)
            yield video_THWC
            self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.done, self.total)

    def _check_whole(self) -> None:
        if self._taken:
            raise UserError(
                f"frames of this stream were taken already ({self.done} of {self.total}), and none is made twice; "
                "call the verb again for all of them"
            )

    def video(self, quiet: bool = False) -> Video:
        """All frames, in memory; `quiet` shows no progress. UserError where some were taken before."""
        self._check_whole()
        self._taken = True
        parts = list(with_bar(self, "video", self.total, quiet))
        return Video(np.concatenate(parts), self.fps, story=self.story, known=self.known, figures=self._figures())

    def _watch(self, frame_HWC: UInt8[np.ndarray, "h w 3"]) -> None:
        self.done += 1
        self._tell()

    @typed
    def save(
        self,
        *paths: str | os.PathLike[str],
        sheet: str | os.PathLike[str] | None = None,
        scale: int = 0,
        audio: str | os.PathLike[str] | None = None,
        captions: bool = False,
    ) -> None:
        """Writes an .mp4 or a .gif, or several, as the frames are made, and a contact `sheet`, a .png.

        An interrupted story, written to the same path again by a new stream, goes on where it was. `scale`, `audio` and
        `captions` as in `Video.save`. UserError as there, and where frames were taken before.
        """
        self._check_whole()
        outs = [Path(text_of(path)) for path in paths]
        picture = None if sheet is None else Path(text_of(sheet))
        with _tracks(outs, audio, _cues(self.story, self.total) if captions else None):
            self._taken = True
            if self._to_files is not None:
                self._to_files(outs, sheet=picture, scale=scale, watch=self._watch)
                return
            shown = with_sheet(with_bar(self, outs[0].name, self.total), picture, self.total, self.story)
            try:
                write(shown, outs, self.fps, self.total, self.size, scale=scale)
            except KeyboardInterrupt as error:
                so_far = f"interrupted after {self.done} of {self.total} frames; nothing is kept"
                raise type(error)(so_far) from None


@contextlib.contextmanager
def _tracks(outs: Sequence[Path], audio: str | os.PathLike[str] | None, cues: Sequence[Cue] | None) -> Iterator[None]:
    """Joins a sound and subtitles to those files that are .mp4, once they are written.

    UserError, before, where that can't be.
    """
    if not outs:
        raise UserError("there is no file to write the video to; give its name, .mp4 or .gif, beside the sheet's")
    mp4s, suffix = [out for out in outs if out.suffix.lower() == ".mp4"], outs[0].suffix
    if audio is not None and not mp4s:
        raise UserError(f"audio needs an .mp4, because a {suffix} has no sound; write one")
    if cues is not None and not mp4s:
        raise UserError(f"captions need an .mp4, because a {suffix} has no subtitles; write one")
    sound = None if audio is None else local(text_of(audio))
    if sound is not None:
        check_audio(sound)
    yield
    for out in mp4s:
        if sound is not None:
            add_audio(out, sound)
        if cues is not None:
            add_subtitles(out, cues)


def _cues(story: Story | None, frames: int) -> list[Cue]:
    """The prompts, each while it is shown; what the video continues comes first. UserError where there are none."""
    if story is None:
        raise UserError("captions are the prompts of a story, and this video tells none; leave them out")
    before = (frames - story.frames) / story.fps
    spans = zip(story.segments, story.starts, strict=False)
    return [Cue(before + start, before + start + each.seconds, each.prompt) for each, start in spans if each.prompt]


def check_fps(fps: float) -> None:
    """UserError where it is no rate of a video."""
    if not 0 < fps <= 1000:
        raise UserError(f"fps should be above 0 and at most 1000, got {fps}")


def checked_frames(array: Any, what: str, axes: tuple[str, ...]) -> np.ndarray:
    """uint8 RGB with these axes, as an array. UserError, which calls it `what`, for another type, shape or nothing."""
    try:
        array = np.asarray(array)
    except Exception as error:  # arrays of other libraries raise errors of their own
        raise UserError(f"{what} cannot be read as an array: {error}") from error
    wanted = f"uint8 ({', '.join(axes)}), RGB"
    if array.ndim != len(axes) or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(f"{what} should be {wanted}, got shape {array.shape}")
    if array.dtype != np.uint8:
        hint = "; convert it, for values of 0 to 1 by (255 * x).round().astype('uint8')"
        raise UserError(f"{what} should be {wanted}, got {array.dtype}{hint}")
    return array
