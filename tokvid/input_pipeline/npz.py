"""Frames in NumPy's .npz files: an array (frames, rows, columns, channels), or (videos, frames, …) for many videos.

Captions are an array of texts in the same file, or lines of the folder's captions.jsonl; `fps` may be a number. Files
are untrusted: objects, which would be pickles, are refused, and memory holds the frames of one video.
"""

import math
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from tokvid.errors import UserError
from tokvid.input_pipeline.captions import NAMES, read_captions
from tokvid.input_pipeline.foreign import (
    Choices,
    Files,
    caption_field,
    caption_of,
    drawn,
    files_in,
    foreign,
    frames_shape,
    video_field,
)
from tokvid.input_pipeline.stored import MOST_FPS, StoredVideo

PIECE = 1 << 20  # bytes read at once
MOST_CAPTIONS = 64 << 20  # bytes of the captions of a file


class _Array(NamedTuple):
    """An array by its header, which ends at the byte `begin`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int
    by_columns: bool


class _Layout(NamedTuple):
    """The videos of a file: their array, the captions ("": none), and their rate (None: not said)."""

    video: str
    array: _Array
    captions: list[str]
    fps: float | None

    @property
    def videos(self) -> int:
        return self.array.shape[0] if len(self.array.shape) == 5 else 1


class NPZ(Files):
    """The videos of an .npz file, or of all in a folder."""

    kind = "frames"
    damage = (*Files.damage, zipfile.BadZipFile, zlib.error, EOFError)

    def __init__(self, path: Path, choices: Choices):
        self._layouts: dict[Path, _Layout] = {}
        self._place: tuple[Path, str] | None = None  # of the array that is open, since reading on is faster
        self._opened: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._lines: dict[Path, str] = {}
        if path.is_dir() and any((path / name).is_file() for name in NAMES):
            self._lines = {path / line.file: line.caption for line in read_captions(path)}
        super().__init__(path, choices)

    def files(self, path: Path) -> list[Path]:
        return files_in(path, (".npz",), self.choices.split)

    def look(self, file: Path) -> int:
        self._layouts[file] = _layout(file, self.choices._replace(text="") if self._lines else self.choices)
        return self._layouts[file].videos

    def video(self, file: Path, number: int, key: str, where: str) -> StoredVideo:
        layout = self._layouts[file]
        shape = frames_shape(where, layout.array.shape[-4:], layout.array.dtype)
        size = math.prod(shape)
        with self._lock:
            opened = self._member(file, layout.video)
            opened.seek(layout.array.begin + number * size)
            content = opened.read(size)
        if len(content) < size:
            raise EOFError("it ends early")
        frames_THWC = np.frombuffer(content, np.uint8).reshape(shape)
        caption = layout.captions[number] if layout.captions else self._lines.get(file)
        choices = self.choices._replace(fps=layout.fps or self.choices.fps)
        return drawn(key, frames_THWC, caption_of(where, caption, choices), choices)

    def _member(self, file: Path, name: str) -> IO[bytes]:
        if self._place != (file, name) or self._opened is None:
            self._place = None
            if self._opened is not None:
                self._opened.close()
            with zipfile.ZipFile(file) as archive:
                self._opened = archive.open(f"{name}.npy")  # which keeps the file open
            self._place = file, name
        return self._opened


def _layout(file: Path, choices: Choices) -> _Layout:
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        arrays = {name: array for name in names if (array := _header(archive, name))}
        video = video_field(file, {name: len(array.shape) in (4, 5) for name, array in arrays.items()}, choices)
        caption = caption_field(file, {name: array.dtype.kind == "U" for name, array in arrays.items()}, choices)
        frames_shape(f"{file}, {video}", arrays[video].shape[-4:], arrays[video].dtype)
        if arrays[video].by_columns:
            raise UserError(f"{file}, {video} is stored column by column; save numpy.ascontiguousarray of it")
        if len(arrays[video].shape) == 5:
            _check(archive, video)
        captions = [str(text) for text in _whole(archive, caption, arrays[caption]).ravel()] if caption else []
        fps = None
        if (rate := arrays.get("fps")) and rate.dtype.kind in "iuf" and math.prod(rate.shape) == 1:
            fps = float(_whole(archive, "fps", rate).ravel()[0])
            if not 0 < fps <= MOST_FPS:
                raise UserError(f"{file} has the fps {fps}; it should be above 0 and at most {MOST_FPS:g}")
    layout = _Layout(video, arrays[video], captions, fps)
    if captions and len(captions) != layout.videos:
        raise UserError(f"{file}, {caption} has {len(captions)} captions; it should have {layout.videos}")
    return layout


def _check(archive: zipfile.ZipFile, name: str) -> None:
    """Reads an array to its end, where its checksum is: any of its videos may be damaged."""
    with archive.open(f"{name}.npy") as opened:
        while opened.read(PIECE):
            pass


def _header(archive: zipfile.ZipFile, name: str) -> _Array | None:
    with archive.open(f"{name}.npy") as opened:
        if npy.read_magic(opened) != (1, 0):  # other versions are for structures, and their headers may be endless
            return None
        shape, by_columns, dtype = npy.read_array_header_1_0(opened)
        return _Array(shape, dtype, opened.tell(), by_columns)


def _whole(archive: zipfile.ZipFile, name: str, array: _Array) -> np.ndarray:
    """All of a small array."""
    size = math.prod(array.shape) * array.dtype.itemsize
    if array.dtype.hasobject or not 0 <= size <= MOST_CAPTIONS:
        raise UserError(f"{archive.filename}, {name} has {size} bytes, allowed are {MOST_CAPTIONS}; shorten it")
    with archive.open(f"{name}.npy") as opened:
        opened.seek(array.begin)
        return np.frombuffer(opened.read(size), array.dtype).reshape(array.shape)


SOURCE = foreign(NPZ)
