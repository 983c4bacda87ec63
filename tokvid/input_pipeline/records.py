"""Videos in array_record files, one msgpack map each: encoded bytes, raw frames, or tokens.

A dataset is a folder: `00000.array_record`, `00001.array_record`, … and `dataset.json`, which is written last and
describes them. It contains no paths and no code.
"""

import bisect
import contextlib
import dataclasses
import itertools
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgpack
import numpy as np
from array_record.python import array_record_module

from tokvid.config import DataConfig
from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline.source import Source
from tokvid.io.files import atomic, check_replaced, read_json, read_limited, refuse_others, seal, write_json
from tokvid.tasks.conditions import CONDITIONS
from tokvid.types import Caption, VideoItem

if TYPE_CHECKING:
    from tokvid.input_pipeline.picture import Fit

log = logging.getLogger(__name__)

FORMAT, VERSION = "tokvid records", 1
RECORDS = ".array_record"
Kind = Literal["video", "frames", "tokens"]
KINDS: tuple[Kind, ...] = ("video", "frames", "tokens")
FIELDS = {"format", "version", "kind", "count", "counts", "metadata"}  # of dataset.json
TOKEN_TYPES = ("uint16", "int32")
MOST_FRAMES, MOST_PIXELS_A_SIDE, MOST_SECONDS, MOST_FPS = 1_000_000, 8192, 1e6, 1000.0
MOST_CAPTIONS, MOST_CHARACTERS = 10_000, 100_000
MOST_SUBCODES = 4096  # of a token
MOST_BYTES = 1 << 30  # of one encoded video


@dataclasses.dataclass(frozen=True)
class StoredVideo:
    """One record, a `VideoItem`. Exactly one of `video`, `frames` and `tokens` is set; its name is the kind.

    `video` is an encoded file; `frames` uint8 (T, H, W, C) with C 1 or 3; `tokens` uint16 or int32 (T, H, W, Q)
    in latent frames. `fps` is the rate of the stored or tokenized frames. Tokens may come with those of `conditions` of
    the same video, by name, and with a T5's hidden states of each caption, float16 (L, E).
    """

    key: str
    seconds: float
    captions: tuple[Caption, ...]
    video: bytes | None = None
    frames: np.ndarray | None = None
    tokens: np.ndarray | None = None
    fps: float = 0.0
    conditions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    states: tuple[np.ndarray, ...] = ()
    fit: "Fit" = "crop"  # how `read` fits another aspect ratio; not stored

    @property
    def kind(self) -> Kind:
        """The kind of record: "video", "frames" or "tokens"."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    def read(self, start: float, fps: float, frames: int, size: tuple[int, int]) -> np.ndarray:
        """The frames shown at start + i/fps (seconds): uint8 (T, H, W, 3)."""
        if self.video is not None:
            from tokvid.input_pipeline.clips import read_clip  # tokens are read without PyAV

            return read_clip(self.video, start=start, fps=fps, frames=frames, size=size, fit=self.fit)
        if self.frames is None:
            raise UserError(f"{self.key} holds tokens, not frames; decode them with their tokenizer")
        return show(self.frames, self.fps, start=start, fps=fps, frames=frames, size=size, fit=self.fit)


def show(
    frames_THWC: np.ndarray,
    own_fps: float,
    *,
    start: float,
    fps: float,
    frames: int,
    size: tuple[int, int],
    fit: "Fit",
) -> np.ndarray:
    """The frames of a video of rate `own_fps` at start + i/fps, the last one held: uint8 (T, H, W, 3)."""
    seconds_T = start + np.arange(frames) / fps
    index_T = np.clip(np.floor(seconds_T * own_fps + 1e-6).astype(np.int64), 0, len(frames_THWC) - 1)
    shown_THWC = frames_THWC[index_T]
    shown_THWC = np.repeat(shown_THWC, 3, axis=3) if shown_THWC.shape[3] == 1 else shown_THWC
    return shown_THWC if shown_THWC.shape[1:3] == tuple(size) else _resized(shown_THWC, size, fit)


def _resized(video_THWC: np.ndarray, size: tuple[int, int], fit: "Fit") -> np.ndarray:
    import av

    from tokvid.input_pipeline.picture import Fitter

    fitter = Fitter(size, fit)
    return np.stack([fitter(av.VideoFrame.from_ndarray(image_HWC, format="rgb24")) for image_HWC in video_THWC])


def stored(item: VideoItem, *, fps: float, size: tuple[int, int], as_frames: bool = False) -> StoredVideo:
    """`item` as a record: its file's bytes, at most MOST_BYTES; without a file, or `as_frames`, its frames at `fps`.

    A record stays one; `as_frames`, it becomes one of frames of this size and rate.
    """
    if isinstance(item, StoredVideo) and not (as_frames and item.tokens is None):
        return item
    if not as_frames and (path := getattr(item, "path", None)) is not None:
        encoded = read_limited(path, "video", MOST_BYTES, "cut it into parts")
        return StoredVideo(item.key, item.seconds, item.captions, video=encoded)
    if not as_frames and (content := getattr(item, "content", None)) is not None:  # in an archive
        return StoredVideo(item.key, item.seconds, item.captions, video=bytes(content()))
    frames = max(1, math.floor(item.seconds * fps + 1e-6))
    return StoredVideo(item.key, item.seconds, item.captions, frames=item.read(0.0, fps, frames, size), fps=fps)


class RecordWriter:
    """Writes a dataset folder, which appears as a whole when the `with` block ends without an error.

        with RecordWriter(path, "frames", {"made_from": "shapes"}) as writer:
            writer.write(stored(item, fps=8, size=(64, 64)))

    `metadata` is any JSON object. A file has at most `per_file` records. UserError when `path` holds anything else,
    when the disk is full, and for a record of another kind.
    """

    def __init__(
        self,
        path: str | Path,
        kind: Kind,
        metadata: Mapping[str, Any] | None = None,
        *,
        per_file: int = 10_000,
    ):
        if kind not in KINDS:
            raise UserError(did_you_mean(kind, KINDS, "kind of record"))
        if per_file < 1:
            raise UserError(f"per_file {per_file}: a file should hold one record at least")
        self.path, self.kind, self.metadata, self.per_file = Path(path), kind, dict(metadata or {}), per_file
        self._counts: list[int] = []
        self._file: Any = None

    def __enter__(self) -> "RecordWriter":
        check_replaceable(self.path)
        self._block = self._writing()
        self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._block.__exit__(*error)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with atomic(self.path) as self._folder:
            self._folder.mkdir()
            try:
                yield
            finally:
                self._close_file()
            _complete(self._folder, self.path, self.kind, self._counts, self.metadata)

    def write(self, video: StoredVideo) -> None:
        """Adds one record. UserError when it is of another kind, or cannot be read back."""
        data = _pack(video, self.kind)
        if not self._counts or self._counts[-1] >= self.per_file:
            self._close_file()
            name = os.fsencode(self._folder / _file_name(len(self._counts)))  # the path may not be UTF-8
            self._file = self._guarded(lambda: array_record_module.ArrayRecordWriter(name, "group_size:1,zstd:3"))
            self._counts.append(0)
        self._guarded(lambda: self._file.write(data))
        self._counts[-1] += 1

    def _close_file(self) -> None:
        if self._file is not None:
            self._guarded(self._file.close)
            self._file = None

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (RuntimeError, OSError) as error:
            raise UserError(f"cannot write {self.path}: {error}; free some space or choose another place") from error


def check_replaceable(path: Path) -> None:
    """UserError where no dataset can be put at `path`, or where there is anything but a dataset or an empty folder."""
    replaceable = path.is_dir() and ((path / "dataset.json").is_file() or not any(path.iterdir()))
    if path.exists() and not replaceable:
        raise UserError(f"{path} is there already and holds no records; choose another place for them")
    if path.exists():
        refuse_others(
            path, (each.name for each in path.iterdir() if each.suffix == RECORDS or each.name == "dataset.json")
        )
    check_replaced(path)


def _complete(folder: Path, path: Path, kind: Kind, counts: Sequence[int], metadata: Mapping[str, Any]) -> None:
    """Writes the description of the records in `folder`, and reads from each file before `folder` moves to `path`."""
    description = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "count": sum(counts),
        "counts": list(counts),
        "metadata": dict(metadata),
    }
    write_json(folder / "dataset.json", description | {"sha256": seal(description)})
    try:
        source = RecordSource(folder)
        for end in itertools.accumulate(source.counts):
            source[end - 1]
    except UserError as error:
        raise UserError(f"cannot write {path}: the records cannot be read back: {error}") from error


def join_records(parts: Sequence[Path], path: Path, metadata: Mapping[str, Any]) -> None:
    """Joins datasets of one kind, in their order, to one at `path`, which appears as a whole. The parts are kept.

    UserError where a part is missing, damaged or of another kind than the first, or `path` holds anything else.
    """
    check_replaceable(path)
    sources = [RecordSource(part) for part in parts]
    kind = sources[0].kind
    if other := [source for source in sources if source.kind != kind]:
        raise UserError(f"{other[0].path} holds records of kind {other[0].kind!r}, not {kind!r}")
    files = [source.path / _file_name(number) for source in sources for number in range(len(source.counts))]
    with atomic(path) as folder:
        folder.mkdir()
        for number, file in enumerate(files):
            try:
                os.link(file, folder / _file_name(number))
            except OSError:  # a file system without hard links, such as a bucket
                shutil.copyfile(file, folder / _file_name(number))
        _complete(folder, path, kind, [count for source in sources for count in source.counts], metadata)


class RecordSource:
    """A dataset folder, with random access from any number of threads; a `VideoSource`.

    `kind`, `metadata` and the count are as written; a `fit` in the metadata overrides the argument. UserError for a
    folder without a dataset or with one of another version, and for damaged or missing files.
    """

    def __init__(self, path: str | Path, *, fit: "Fit" = "crop"):
        self.path, self.fit = Path(path), fit
        if not (self.path / "dataset.json").is_file():
            raise UserError(f"{path} is no dataset of records: it has no dataset.json; `tokvid data` writes one")
        description = read_json(self.path / "dataset.json", "the description of records")
        if description.get("format") != FORMAT:
            raise UserError(
                f"{path} is no dataset of records: dataset.json has format {description.get('format')!r:.60}"
            )
        if description.get("version") != VERSION:
            raise UserError(
                f"{path} is written in version {description.get('version')!r:.60} of the records; this tokvid "
                f"reads {VERSION}, so write it again"
            )
        sealed = seal(description)
        kind, counts, metadata = (description.get(name) for name in ("kind", "counts", "metadata"))
        if not (
            kind in KINDS
            and isinstance(counts, list)
            and all(type(count) is int and count > 0 for count in counts)
            and description.get("count") == sum(counts)
            and isinstance(metadata, dict)
            and description.keys() - {"sha256"} == FIELDS
            and description.get("sha256", sealed) == sealed  # earlier versions wrote none
        ):
            raise UserError(f"{self.path / 'dataset.json'} is damaged; write the dataset again")
        self.kind: Kind = kind
        self.metadata: dict[str, Any] = metadata
        self.counts: list[int] = counts  # of each file
        if (stored_fit := metadata.get("fit", fit)) not in ("crop", "letterbox"):
            raise UserError(f"{self.path / 'dataset.json'}: {did_you_mean(stored_fit, ('crop', 'letterbox'), 'fit')}")
        self.fit = stored_fit  # the writer's choice comes first
        self._starts = list(itertools.accumulate(counts, initial=0))  # of each file, and the number of all
        self._files = [_open(self.path / _file_name(i), count) for i, count in enumerate(counts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> StoredVideo:
        """Record `index`. IndexError outside 0 to len - 1, UserError when it is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = bisect.bisect_right(self._starts, index) - 1
        where = f"record {index} of {self.path}"
        try:
            (data,) = self._files[file].read([int(index) - self._starts[file]])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{where} is damaged: {error}") from error
        return _unpack(data, self.kind, self.fit, where)


def _file_name(index: int) -> str:
    return f"{index:05d}{RECORDS}"


def _open(path: Path, count: int) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the dataset again, all of its files")
    try:
        reader = array_record_module.ArrayRecordReader(os.fsencode(path), "readahead_buffer_size:0,max_parallelism:0")
        readable = reader.num_records() if reader.ok() else 0
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if readable != count:
        raise UserError(
            f"{path} is damaged: it should hold {count} records, {readable} can be read; copy or write it again"
        )
    return reader


def _pack(video: StoredVideo, kind: Kind) -> bytes:
    values: dict[str, Any] = {
        "key": video.key,
        "seconds": float(video.seconds),
        "captions": [[float(caption.start), caption.text] for caption in video.captions],
    }
    present = [name for name in KINDS if getattr(video, name) is not None]
    if present != [kind]:
        raise UserError(f"{video.key}: this record should be of kind {kind!r}, it holds {present}")
    content = getattr(video, kind)
    if kind == "video":
        values["video"] = bytes(content)
    else:
        # The stored type doesn't include the byte order, so it is always little-endian.
        array = np.ascontiguousarray(content)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        values |= {
            kind: array.tobytes(),
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "fps": float(video.fps),
        }
        for name, tokens in video.conditions.items():
            values.setdefault("conditions", {})[name] = {
                "tokens": np.ascontiguousarray(tokens).astype(array.dtype).tobytes(),
                "shape": list(tokens.shape),
            }
        for states_LE in video.states:
            content = np.ascontiguousarray(states_LE).astype("<f2").tobytes()
            values.setdefault("states", []).append({"content": content, "shape": list(states_LE.shape)})
    try:
        data = msgpack.packb(values)
    except (ValueError, OverflowError) as error:  # lone surrogates in a text, or too many bytes for a map
        raise UserError(f"{video.key!r:.200} cannot be written as a record: {error}") from error
    _unpack(data, kind, "crop", video.key)  # never writes an unreadable record
    return data


def _unpack(data: bytes, kind: Kind, fit: "Fit", where: str) -> StoredVideo:
    try:
        values = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise UserError(f"{where} is damaged: {error}") from error
    return from_values(values, kind, fit, where)


def from_values(values: dict[str, Any], kind: Kind, fit: "Fit", where: str) -> StoredVideo:
    """The video of a record's values. UserError, with `where`, for values that no writer writes."""
    try:
        return _checked(values, kind, fit)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{where} is damaged or not a record of kind {kind!r}: {error}") from error


def _checked(values: dict[str, Any], kind: str, fit: "Fit") -> StoredVideo:
    key, seconds, captions = values["key"], values["seconds"], values["captions"]
    _within("key", len(key.encode()), 0, MOST_CHARACTERS)
    _within("seconds", seconds, 0, MOST_SECONDS)
    _within("number of captions", len(captions), 0, MOST_CAPTIONS)
    for start, text in captions:
        _within("caption's start", start, 0, MOST_SECONDS)
        _within("caption's length", len(text.encode()), 0, MOST_CHARACTERS)
    starts = [start for start, _ in captions]
    if starts != sorted(starts):
        raise ValueError(f"captions start at {starts}, which is not in order")
    texts = tuple(Caption(float(start), text) for start, text in captions) or (Caption(0.0, ""),)
    if kind == "video":
        if not isinstance(values["video"], bytes):
            raise TypeError("video is not bytes")
        return StoredVideo(key, float(seconds), texts, video=values["video"], fit=fit)
    shape, dtype, fps = _shape(values["shape"], kind), values["dtype"], values["fps"]
    if dtype not in (("uint8",) if kind == "frames" else TOKEN_TYPES):
        raise ValueError(f"{kind} have type {dtype!r:.20}")
    _within("fps", fps, 1e-3, MOST_FPS)
    array = _array(values[kind], np.dtype(dtype), shape)
    if kind == "frames":
        return StoredVideo(key, float(seconds), texts, frames=array, fps=float(fps), fit=fit)
    conditions = {
        name: _array(each["tokens"], array.dtype, _shape(each["shape"], kind))
        for name, each in values.get("conditions", {}).items()
    }
    if values.get("coarse_factor") == CONDITIONS["coarse"].slower:  # of earlier versions
        conditions["coarse"] = np.frombuffer(values["coarse"], array.dtype).reshape(-1, *shape[1:])
    states = tuple(_array(each["content"], np.dtype("f2"), tuple(each["shape"])) for each in values.get("states", ()))
    if states and (len(states) != len(texts) or any(each.ndim != 2 for each in states)):
        raise ValueError(f"{len(states)} hidden states don't fit {len(texts)} captions")
    return StoredVideo(key, float(seconds), texts, tokens=array, fps=float(fps), conditions=conditions, states=states)


def _shape(dims: list[int], kind: str) -> tuple[int, ...]:
    """The checked shape of frames or tokens."""
    shape = tuple(dims)
    if kind == "tokens" and len(shape) == 3:  # earlier versions had no sub-codes
        shape = (*shape, 1)
    if len(shape) != 4:
        raise ValueError(f"shape {shape} has {len(shape)} dimensions")
    _within("number of frames", shape[0], 1, MOST_FRAMES)
    _within("height", shape[1], 1, MOST_PIXELS_A_SIDE)
    _within("width", shape[2], 1, MOST_PIXELS_A_SIDE)
    if kind == "frames" and shape[3] not in (1, 3):
        raise ValueError(f"frames have {shape[3]} channels, not 1 or 3")
    _within("number of sub-codes", shape[3], 1, MOST_SUBCODES)
    return shape


def _array(content: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    array = np.frombuffer(content, dtype.newbyteorder("<"))
    if array.size != math.prod(shape):
        raise ValueError(f"shape {shape} doesn't fit {array.size} values")
    return array.reshape(shape)


def _within(what: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{what} should be {least} to {most}, found {value!r:.40}")


def _open_source(config: DataConfig) -> RecordSource:
    source = RecordSource(config.path, fit=config.fit)
    if source.fit != config.fit:
        log.warning("%s was written to be read with fit %s; fit %s is ignored", config.path, source.fit, config.fit)
    stored = source.metadata.get("size")
    zoomed = tuple(round(side * config.zoom) for side in config.size)  # as many pixels as `zoom` asks for
    if stored and tuple(stored) not in (config.size, zoomed):
        log.warning("%s holds frames of %dx%d, resized to %dx%d as they are read", config.path, *stored, *config.size)
    return source


SOURCE = Source(open=_open_source, files=lambda path: [path / "dataset.json", *path.glob(f"*{RECORDS}")])
