"""Videos in array_record files, one record each (stored.py).

A dataset is a folder: `00000.array_record`, `00001.array_record`, … and `dataset.json`, which is written last and
describes them. It contains no paths and no code.
"""

import bisect
import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from array_record.python import array_record_module

from tokvid.config import DataConfig
from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline.source import Source
from tokvid.input_pipeline.stored import KINDS, Kind, StoredVideo, pack, unpack
from tokvid.io.files import atomic, check_replaced, read_json, refuse_others, seal, write_json

if TYPE_CHECKING:
    from tokvid.input_pipeline.picture import Fit

log = logging.getLogger(__name__)

FORMAT, VERSION = "tokvid records", 1
RECORDS = ".array_record"
FIELDS = {"format", "version", "kind", "count", "counts", "metadata"}  # of dataset.json


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
        data = pack(video, self.kind)
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
        return unpack(data, self.kind, self.fit, where)


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
