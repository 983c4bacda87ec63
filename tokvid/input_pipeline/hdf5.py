"""HDF5 files of raw frames, as VideoGPT and TECO use them: the frames of all videos in a row, and where each begins.

`train_data` is uint8 (frames, rows, columns, channels), `train_idx` the number of each video's first frame. An array
(videos, frames, rows, columns, channels) is read as well, and one of four dimensions, which is one video. Files are
untrusted: arrays that lie in other files are refused, and memory holds the frames of one video.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline.foreign import (
    CAPTION_FIELDS,
    MOST_VIDEOS,
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
from tokvid.input_pipeline.stored import MOST_BYTES, StoredVideo

try:
    import h5py
except ImportError as missing:
    raise UserError("HDF5 needs h5py, which isn't installed; do: pip install 'tokvid[import]'") from missing

SUFFIXES = (".h5", ".hdf5")
MOST_ARRAYS = 100_000  # of a file
LONGEST_TEXT = 1 << 16  # bytes of a value: texts may have a fixed length


class _Layout(NamedTuple):
    """The arrays of videos and of captions ("": none) in a file, and the number of videos.

    `starts` has the first frame of each video and the number of all frames; without it, an array of five dimensions has
    a video in each row, and one of four dimensions is a video.
    """

    video: str
    caption: str
    videos: int
    starts: np.ndarray | None = None


class HDF5(Files):
    """The videos of an HDF5 file, or of all in a folder, whose names then say the split."""

    kind = "frames"

    def __init__(self, path: Path, choices: Choices):
        self._layouts: dict[Path, _Layout] = {}
        super().__init__(path, choices)

    def files(self, path: Path) -> list[Path]:
        return files_in(path, SUFFIXES, self.choices.split)

    def look(self, file: Path) -> int:
        choices = self.choices if file == self.path else self.choices._replace(split="")
        with h5py.File(file, "r") as opened:
            self._layouts[file] = _layout(file, _arrays(opened, file), choices)
        return self._layouts[file].videos

    def video(self, file: Path, number: int, key: str, where: str) -> StoredVideo:
        layout = self._layouts[file]
        with h5py.File(file, "r") as opened:
            frames_THWC = _frames(opened[layout.video], layout.starts, number, where)
            caption = None
            if layout.caption:
                captions = opened[layout.caption]
                caption = captions.asstr()[number if captions.ndim else ()]
        return drawn(key, frames_THWC, caption_of(where, caption, self.choices), self.choices)


def _frames(array: Any, starts: np.ndarray | None, number: int, where: str) -> np.ndarray:
    if starts is not None:
        first, end = int(starts[number]), int(starts[number + 1])
        shape = frames_shape(where, (end - first, *array.shape[1:]), array.dtype)
        return array[first:end].reshape(shape)
    shape = frames_shape(where, array.shape[-4:], array.dtype)
    return (array[number] if array.ndim == 5 else array[()]).reshape(shape)


def _layout(file: Path, arrays: dict[str, Any], choices: Choices) -> _Layout:
    texts = {name: h5py.check_string_dtype(array.dtype) is not None for name, array in arrays.items()}
    splits = [name.removesuffix("_data") for name in arrays if f"{name.removesuffix('_data')}_idx" in arrays]
    starts = None
    if splits and not choices.video:
        if (split := choices.split or "train") not in splits:
            raise UserError(f"{file}: {did_you_mean(split, splits, 'split')}; choose one with --split")
        video, starts = f"{split}_data", _starts(file, split, arrays)
        count, usual = len(starts) - 1, [f"{split}_{name}" for name in CAPTION_FIELDS]
        choices = choices._replace(caption=choices.caption or next((name for name in usual if texts.get(name)), ""))
    else:
        if choices.split not in ("", "train"):
            raise UserError(f"{file} has no {choices.split}_data and {choices.split}_idx; leave --split out")
        video = video_field(file, {name: array.ndim in (4, 5) for name, array in arrays.items()}, choices)
        frames_shape(f"{file}, {video}", arrays[video].shape[-4:], arrays[video].dtype)
        count = arrays[video].shape[0] if arrays[video].ndim == 5 else 1
    caption = caption_field(file, texts, choices)
    if caption and arrays[caption].shape not in ((count,), () if count == 1 else (count,)):
        raise UserError(f"{file}, {caption} has the shape {arrays[caption].shape}; it should have {count} captions")
    return _Layout(video, caption, count, starts)


def _arrays(opened: Any, file: Path) -> dict[str, Any]:
    """All arrays that lie in the file itself, by name; links are not followed."""
    arrays: dict[str, Any] = {}

    def visit(name: str, thing: Any) -> bool | None:
        if isinstance(thing, h5py.Dataset):
            arrays[name] = thing
        return len(arrays) > MOST_ARRAYS or None

    opened.visititems(visit)
    if len(arrays) > MOST_ARRAYS:
        raise UserError(f"{file} has more than {MOST_ARRAYS} arrays, which are allowed")
    for name, array in arrays.items():
        if array.external or array.is_virtual:
            raise UserError(f"{file}, {name} takes its values from other files; copy them into it")
        if array.dtype.itemsize > LONGEST_TEXT:
            raise UserError(f"{file}, {name} has values of {array.dtype.itemsize} bytes; allowed are {LONGEST_TEXT}")
        if array.chunks and math.prod(array.chunks) * array.dtype.itemsize > MOST_BYTES:
            raise UserError(f"{file}, {name} is stored in chunks of more than {MOST_BYTES} bytes; use smaller ones")
    return arrays


def _starts(file: Path, split: str, arrays: dict[str, Any]) -> np.ndarray:
    """The first frame of each video, and the number of all frames."""
    data, index = arrays[f"{split}_data"], arrays[f"{split}_idx"]
    if data.ndim not in (3, 4) or index.ndim != 1 or index.dtype.kind not in "iu" or not 0 < len(index) <= MOST_VIDEOS:
        raise UserError(
            f"{file} has {split}_data of the shape {data.shape} and {split}_idx of the shape {index.shape}, type "
            f"{index.dtype}; these should be frames, rows, columns, channels, and the first frame of each video"
        )
    frames_shape(f"{file}, {split}_data", (1, *data.shape[1:]), data.dtype)
    starts = np.append(index[()].astype(np.int64), len(data))
    wrong = np.flatnonzero((np.diff(starts) <= 0) | (starts[:-1] < 0))
    if wrong.size:
        number = int(wrong[0])
        raise UserError(
            f"{file}, {split}_idx[{number}]: video {number} would be the frames {starts[number]} up to "
            f"{starts[number + 1]} of {len(data)}; write the first frame of each video, in their order"
        )
    return starts


SOURCE = foreign(HDF5)
