"""What the readers of other people's data share: files of many videos, what these leave open, and records of them."""

import abc
import bisect
import itertools
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tokvid.errors import UserError, did_you_mean, reason
from tokvid.input_pipeline.captions import LONGEST_CAPTION
from tokvid.input_pipeline.clips import probe
from tokvid.input_pipeline.encoded import NamedBytes
from tokvid.input_pipeline.picture import Fit
from tokvid.input_pipeline.source import Source
from tokvid.input_pipeline.stored import MOST_BYTES, MOST_FRAMES, Kind, StoredVideo
from tokvid.input_pipeline.text import checked
from tokvid.types import Caption, VideoSource

log = logging.getLogger(__name__)

# Names of fields, in lower case; the first one present is read.
VIDEO_FIELDS = ("video", "videos", "mp4", "clip", "frames", "image", "images", "gif")
CAPTION_FIELDS = ("caption", "captions", "text", "texts", "txt", "prompt", "description", "sentence", "title", "label")
SPLITS = {  # and the words that name them in files and folders
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
MOST_VIDEOS = 10_000_000  # of a file: what it says may be a lie
MOST_LISTED = 20  # fields in an error


class Choices(NamedTuple):
    """What the files leave open; "" is found by the usual names.

    `split` is the part to read; `video` and `caption` name fields; `text` is the caption of videos without one, None
    where that is an error; `fps` is the rate of frames without one.
    """

    split: str = ""
    video: str = ""
    caption: str = ""
    text: str | None = None
    fps: float = 8.0
    fit: Fit = "crop"


def foreign(read: Callable[[Path, Choices], VideoSource]) -> Source:
    """The source of a format: a recipe reads it with the usual choices, `tokvid data import` with the user's."""
    return Source(open=lambda config: read(Path(config.path), Choices(text="", fit=config.fit)), read=read)


class Files(Sequence[StoredVideo]):
    """The videos of one file, or of all files of a format in a folder.

    A format defines `files`, `look` and `video`. UserError for a file that is damaged or holds no videos; and for a
    video, with its number in the file, when it is read. Numbers count from 0.
    """

    kind: ClassVar[Kind]
    unit: ClassVar[str] = "video"
    damage: ClassVar[tuple[type[Exception], ...]] = (OSError, RuntimeError, LookupError, ValueError, TypeError)

    def __init__(self, path: Path, choices: Choices):
        self.path, self.choices = path, choices
        self.paths = self.files(path)
        counts = [self._guarded(file, str(file), self.look) for file in self.paths]
        for file, count in zip(self.paths, counts, strict=True):
            if not 0 <= count <= MOST_VIDEOS:
                raise UserError(f"{file} says that it holds {count} videos; it may hold 0 to {MOST_VIDEOS}")
        self._starts = list(itertools.accumulate(counts, initial=0))  # of each file, and the number of all
        if not len(self):
            raise UserError(f"{path} holds no videos")

    @abc.abstractmethod
    def files(self, path: Path) -> list[Path]:
        """The files that are read."""

    @abc.abstractmethod
    def look(self, file: Path) -> int:
        """The number of videos in a file."""

    @abc.abstractmethod
    def video(self, file: Path, number: int, key: str, where: str) -> StoredVideo:
        """A video of a file."""

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        place = bisect.bisect_right(self._starts, index) - 1
        file, number = self.paths[place], int(index) - self._starts[place]
        name, where = file.name if file == self.path else file.relative_to(self.path), f"{file}, {self.unit} {number}"
        return self._guarded(file, where, lambda file: self.video(file, number, f"{name}/{number}", where))

    def _guarded(self, file: Path, where: str, read: Callable[[Path], Any]) -> Any:
        try:
            return read(file)
        except self.damage as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where} cannot be read ({reason(error)}); copy or write {file.name} again") from error


def files_in(path: Path, suffixes: Sequence[str], split: str) -> list[Path]:
    """A file itself, or the files of a split in a folder, in order. UserError where there are none."""
    if path.is_file():
        return [path]
    kinds = " or ".join(suffixes)
    if not path.is_dir():
        raise UserError(f"{path} is not there; give a {kinds} file, or a folder of them")
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in suffixes and each.is_file())
    if not files:
        raise UserError(f"{path} holds no {kinds} files; give the folder that they are in")
    return _of_split(path, files, split)


def _of_split(root: Path, files: list[Path], split: str) -> list[Path]:
    """The files of a split ("": of training), by words in the names of files and folders; all, where none names one."""
    words = {file: re.split(r"[^a-z]+", str(file.relative_to(root)).lower()) for file in files}
    splits = {
        file: next((split for word in words[file] for split, names in SPLITS.items() if word in names), "")
        for file in files
    }
    known = sorted(set(filter(None, splits.values())))
    if not known and split not in ("", "train"):
        raise UserError(f"no file in {root} says by its name that it belongs to the split {split!r}; leave --split out")
    if known and (split or "train") not in known:
        raise UserError(f"{root}: {did_you_mean(split or 'train', known, 'split')}; choose one with --split")
    return [file for file in files if not known or splits[file] == (split or "train")]


def video_field(where: str | Path, fields: Mapping[str, bool], choices: Choices) -> str:
    """The name of the field of videos: the chosen one, or the first of the usual names, or the only one that may be it.

    `fields` has the names of all, and whether they may hold videos, by their type. UserError where there is none.
    """
    able = [name for name, may in fields.items() if may]
    if field := _field(where, fields, choices.video, VIDEO_FIELDS) or (able[0] if len(able) == 1 else ""):
        return field
    problem = f"{len(able)} fields that may hold videos, choose one with --video" if able else "no field of videos"
    raise UserError(f"{where} has {problem}: {_listed(able or fields)}")


def caption_field(where: str | Path, fields: Mapping[str, bool], choices: Choices) -> str:
    """The name of the field of captions, "" where there is none and `choices.text` takes its place."""
    field = _field(where, fields, choices.caption, CAPTION_FIELDS)
    if not field and choices.text is None:
        advice = "name their field with --caption, or give one caption to all with --text"
        other = [name for name in fields if name.strip().casefold() in CAPTION_FIELDS]
        has = f"has a field {other[0]!r} that holds no texts, one for each video" if other else "has no captions"
        raise UserError(f"{where} {has}; {advice}; its fields: {_listed(fields)}")
    return field


def _field(where: str | Path, fields: Mapping[str, bool], wanted: str, usual: Sequence[str]) -> str:
    if wanted and wanted not in fields:
        raise UserError(f"{where}: {did_you_mean(wanted, fields, 'field')}")
    if wanted and not fields[wanted]:
        raise UserError(
            f"{where}: the field {wanted!r} has another type; choose one of these: "
            f"{_listed([name for name, may in fields.items() if may])}"
        )
    by_name = {name.strip().casefold(): name for name, may in fields.items() if may}
    return wanted or next((by_name[name] for name in usual if name in by_name), "")


def _listed(names: Mapping[str, bool] | Sequence[str]) -> str:
    listed = [f"{name:.60}" for name in list(names)[:MOST_LISTED]]
    return (", ".join(listed) or "none") + ", …" * (len(names) > MOST_LISTED)


def caption_of(where: str, value: object, choices: Choices) -> str:
    """A video's caption, or the one of videos without any. UserError where there is neither, or it is no text."""
    value = choices.text if value is None else value
    if value is None:
        raise UserError(f"{where} has no caption; give one to all such videos with --text")
    text = checked(value, f"the caption of {where}").strip()  # type: ignore[arg-type]
    if len(text.encode()) > LONGEST_CAPTION:
        raise UserError(f"the caption of {where} has over {LONGEST_CAPTION} bytes; shorten it")
    return text


def encoded(key: str, where: str, content: bytes, caption: str, fit: Fit) -> StoredVideo:
    """A record of an encoded video or picture. UserError, which says `where` it is, if it cannot be read."""
    if len(content) > MOST_BYTES:
        raise UserError(f"{where} has {len(content)} bytes, allowed are {MOST_BYTES}; cut it into parts")
    info = probe(NamedBytes(content, where))
    for warning in info.warnings:
        log.warning("%s: %s", where, warning)
    return StoredVideo(key, info.seconds, (Caption(0.0, caption),), video=content, fit=fit)


def drawn(key: str, frames_THWC: np.ndarray, caption: str, choices: Choices) -> StoredVideo:
    """A record of raw frames, of a shape that `frames_shape` gave."""
    seconds, captions = len(frames_THWC) / choices.fps, (Caption(0.0, caption),)
    return StoredVideo(key, seconds, captions, frames=frames_THWC, fps=choices.fps, fit=choices.fit)


def frames_shape(where: str, shape: Sequence[int], dtype: np.dtype) -> tuple[int, int, int, int]:
    """The shape (T, H, W, C) of a video's frames, where grey ones may lack C. UserError for other arrays."""
    if dtype != np.uint8:
        raise UserError(f"{where} has numbers of type {dtype!s:.40}; frames should be uint8, 0 to 255")
    full = (*shape, 1) if len(shape) == 3 else tuple(shape)
    if len(full) != 4 or full[3] not in (1, 3) or min(full) < 1:
        raise UserError(f"{where} has the shape {tuple(shape)}; a video has frames, rows, columns and 1 or 3 channels")
    if full[0] > MOST_FRAMES or math.prod(full) > MOST_BYTES:
        size = f"{full[0]} frames, {math.prod(full)} bytes"
        raise UserError(f"{where} has {size}; allowed are {MOST_FRAMES} and {MOST_BYTES}; cut it into parts")
    return full[0], full[1], full[2], full[3]
