"""The common parts of all sources of videos: their facts, the held-out split, the limit of unreadable videos."""

import dataclasses
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.types import VideoItem, VideoSource

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
FEWEST_READS = 50  # reads of an endless stream before a share of them means anything


def all_files(path: Path) -> Iterable[Path]:
    """The file at `path`, or everything below the folder."""
    return [path] if path.is_file() else path.rglob("*")


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of dataset. Its module defines one as `SOURCE`, and `sources.SOURCES` names the module.

    `open` gives the videos to train on. Without `held_out`, the last `data.held_out` of them are held out. A source
    that defines its own split has `held_out`, which opens the videos never trained on, and `holds_out`, which says
    whether there are any.

    `files` lists the files at `data.path` that the videos depend on; on resuming, a change is noticed. `parts` are the
    stretches of such a file, (first byte, bytes), that are checked as if they were files.

    `read` opens other people's data with the user's choices (`foreign.Choices`), for `tokvid data import`.
    """

    open: Callable[[DataConfig], VideoSource]
    held_out: Callable[[DataConfig], VideoSource] | None = None
    holds_out: Callable[[DataConfig], bool] = lambda config: True
    files: Callable[[Path], Iterable[Path]] = all_files
    parts: Callable[[Path], Iterable[tuple[int, int]]] = lambda file: ()
    read: Callable[[Path, Any], VideoSource] | None = None


class _Part:
    """The videos `first` up to `end` of a source."""

    def __init__(self, source: VideoSource, first: int, end: int):
        self.source, self.first, self.end = source, first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __getitem__(self, index: int) -> VideoItem:
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        return self.source[self.first + index]


def part_of(source: VideoSource, config: DataConfig, split: Split) -> VideoSource:
    """The videos of `split`, where the last `config.held_out` are held out; UserError where there are none."""
    if not 0 <= config.held_out < len(source):
        raise UserError(
            f"data.held_out {config.held_out} leaves none of the {len(source)} videos in {config.path} to train "
            f"on; hold out 0 to {max(0, len(source) - 1)}"
        )
    if split == "held_out" and not config.held_out:
        raise UserError(f"none of the {len(source)} videos in {config.path} are held out; set held_out above 0")
    border = len(source) - config.held_out
    return _Part(source, 0, border) if split == "train" else _Part(source, border, len(source))


class Unreadable:
    """Counts videos that cannot be used and raises a UserError when there are too many. Threads may share one.

    The rule: at most the share `most` (data.max_unreadable) of `sample` videos may be unusable, and never all of them.
    `sample` is the number of videos where that is known. In an endless stream, it is the number of reads before which a
    share means nothing; beyond it, the share is of all reads. The error names `where` the videos are, and `advice`.
    """

    def __init__(self, most: float, sample: int = FEWEST_READS, where: str | Path = "", advice: str = ""):
        self.most, self.sample, self.where, self.advice = most, sample, where, advice
        self.read = self.count = 0
        self.first = ""  # the reason why the first of them cannot be used
        self._lock = threading.Lock()

    def good(self, videos: int = 1) -> None:
        """Counts videos that were read."""
        with self._lock:
            self.read += videos

    def add(self, *errors: object) -> None:
        """Counts videos that cannot be used, one for each error. UserError where there are too many."""
        with self._lock:
            self.first = self.first or str(next(iter(errors), ""))
            self.read, self.count = self.read + len(errors), self.count + len(errors)
            read, count = self.read, self.count
        videos = f"videos in {self.where}" if self.where else "videos read"
        if count > self.most * max(read, self.sample):
            of_all = f" of {self.sample}" if read < self.sample else ""
            share = f"{100 * self.most:g}%{of_all}"
            problem = f"{count} of the {read} {videos} cannot be used, at most {share} may (max_unreadable)"
        elif self.sample <= read == count:
            problem = f"none of the {read} {videos} can be used"
        else:
            return
        raise UserError("; ".join(filter(None, (problem, f"the first: {self.first}", self.advice))))
