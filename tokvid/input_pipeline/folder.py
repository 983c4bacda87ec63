"""A folder of clips with `captions.jsonl` or `captions.csv` as a source."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tokvid.errors import UserError, reason
from tokvid.input_pipeline.captions import captions_file, check_captioned, missing, read_captions
from tokvid.input_pipeline.checked import CheckedSource
from tokvid.input_pipeline.clips import Fit, VideoInfo, probe, read_clip
from tokvid.input_pipeline.source import Source
from tokvid.input_pipeline.workers import Map, in_threads
from tokvid.types import Caption

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".flv", ".gif")


def videos_below(folder: Path) -> list[str]:
    """The videos below a folder by their names, as seen from it, in order; hidden ones don't count."""
    return sorted(str(path) for path in _below(folder) if path.suffix.lower() in VIDEOS and (folder / path).is_file())


def linked_folders(folder: Path) -> list[Path]:
    """The links to folders below a folder, in which `videos_below` doesn't look."""
    return sorted(path for path in _below(folder) if (folder / path).is_symlink() and (folder / path).is_dir())


def _below(folder: Path) -> Iterator[Path]:
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return (path for path in paths if not any(part.startswith(".") for part in path.parts))


@functools.cache
def _probe_once(path: str, changed: int, size: int, full: bool) -> VideoInfo | str:
    """`probe` of a file, or the reason why it cannot be read; cached for all sources over a folder."""
    try:
        return probe(path, full=full)
    except UserError as error:
        return str(error)


@dataclasses.dataclass(frozen=True)
class FolderItem:
    """A captioned video file: a `tokvid.types.VideoItem`."""

    path: Path
    key: str
    captions: tuple[Caption, ...]
    fit: Fit = "crop"
    seconds: float = 0.0
    fps: float = 0.0

    @property
    def place(self) -> Path:
        """Its name in messages."""
        return self.path

    def probe(self, full: bool) -> VideoInfo | str:
        """Its facts, or the reason why it cannot be read."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return missing(self.path)
        except OSError as error:
            return f"cannot read {self.path}: {reason(error)}"
        return _probe_once(str(self.path), status.st_mtime_ns, status.st_size, full)

    def read(self, start: float, fps: float, frames: int, size: tuple[int, int]) -> np.ndarray:
        """See `read_clip`."""
        return read_clip(self.path, start=start, fps=fps, frames=frames, size=size, fit=self.fit)


class FolderSource(CheckedSource[FolderItem]):
    """A folder of videos with `captions.jsonl` or, if there is none, `captions.csv`; see `CheckedSource`.

    A line of captions.jsonl is {"file": "a.mp4", "caption": "a dog runs"}; one of captions.csv is a.mp4,a dog runs,
    below the header file,caption.

    Raises:
        UserError: no captions file, bad lines in it (each with its number), a file that is named twice or outside of
            the folder; and as `CheckedSource` does.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fit: Fit = "crop",
        max_unreadable: float = 0.1,
        mapped: Map = in_threads,
        full: bool = False,
        captioned: bool = True,
    ):
        folder = Path(path)
        lines = read_captions(folder)
        if captioned:  # before the files are probed, which takes a while
            check_captioned((line.caption for line in lines), folder)
        self._folder, self._named = folder, {os.path.realpath(folder / line.file) for line in lines}
        items = [FolderItem(folder / line.file, line.file, (Caption(0.0, line.caption),), fit) for line in lines]
        super().__init__(folder, items, max_unreadable=max_unreadable, mapped=mapped, full=full, captioned=captioned)

    def without_line(self) -> list[str]:
        """The videos in the folder that its captions file doesn't name."""
        videos = videos_below(self._folder)
        return [name for name in videos if os.path.realpath(self._folder / name) not in self._named]


def _files(folder: Path) -> Iterable[Path]:
    """The captions file, and each file named there, readable or not."""
    return [captions_file(folder), *(folder / line.file for line in read_captions(folder))]


SOURCE = Source(
    open=lambda config: FolderSource(config.path, fit=config.fit, max_unreadable=config.max_unreadable), files=_files
)
