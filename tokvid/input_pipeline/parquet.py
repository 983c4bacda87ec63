"""Tables of videos: .parquet files, and the .arrow files of Hugging Face's `datasets`. A row has bytes and a caption.

Rows are counted from 0, and read one by one: an .arrow file through a memory map, so that memory holds one video, a
.parquet file by its pages, which may be as large as a group of rows. Only bytes in the table itself are read, never the
files that it may name.
"""

import bisect
import functools
import itertools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline.foreign import (
    Choices,
    Files,
    caption_field,
    caption_of,
    encoded,
    files_in,
    foreign,
    video_field,
)
from tokvid.input_pipeline.stored import MOST_BYTES, StoredVideo
from tokvid.io.files import read_json

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as missing:
    raise UserError("tables need pyarrow, which isn't installed; do: pip install 'tokvid[import]'") from missing

SUFFIXES = (".parquet", ".arrow")
PIECE = 1 << 20  # bytes read at once of a column of .parquet
MOST_OPEN = 64  # files


class _Parquet:
    """The rows of a .parquet file. A group of them has no index, so reading goes on from the last row read."""

    def __init__(self, path: Path):
        self.file = pq.ParquetFile(path, buffer_size=PIECE)
        self.schema = self.file.schema_arrow
        metadata = self.file.metadata
        self._starts = _starts(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self.count = self._starts[-1]
        self._group, self._following = -1, 0
        self._rows: Iterator[Any] = iter(())
        self._lock = threading.Lock()

    def row(self, index: int, columns: list[str]) -> dict[str, Any]:
        """The values of a row by column."""
        group = bisect.bisect_right(self._starts, index) - 1
        with self._lock:
            if group != self._group or self._following > index:
                self._group, self._following = group, self._starts[group]
                self._rows = self.file.iter_batches(1, row_groups=[group], columns=columns)
            for batch in self._rows:
                self._following += 1
                if self._following > index:
                    return batch.to_pylist()[0]
            self._group = -1
        raise ValueError("it has fewer rows than it says")


class _Arrow:
    """The rows of an .arrow file, in the format of streams or of files."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            stream = file.read(6) != b"ARROW1"
        opened = (pa.ipc.open_stream if stream else pa.ipc.open_file)(pa.memory_map(str(path)))
        self.schema = opened.schema
        self.batches: list[Any] = []
        before = pa.total_allocated_bytes()
        for batch in opened if stream else map(opened.get_batch, range(opened.num_record_batches)):
            self.batches.append(batch)
            if pa.total_allocated_bytes() - before > MOST_BYTES:  # not those of the map
                raise UserError(f"{path} is compressed, and would need memory for all of it; save it as .parquet")
        self._starts = _starts(batch.num_rows for batch in self.batches)
        self.count = self._starts[-1]
        self._checked: set[int] = set()

    def row(self, index: int, columns: list[str]) -> dict[str, Any]:
        """The values of a row by column."""
        number = bisect.bisect_right(self._starts, index) - 1
        batch = self.batches[number].select(columns)
        if number not in self._checked:
            batch.validate(full=True)  # offsets that lead out of the file, texts that are no UTF-8
            self._checked.add(number)
        return batch.slice(index - self._starts[number], 1).to_pylist()[0]


class _Opened(NamedTuple):
    """The rows of a file, and the names of its two columns; "" where there are no captions."""

    rows: _Parquet | _Arrow
    video: str
    caption: str


class Tables(Files):
    """The captioned videos and pictures of a .parquet or .arrow file, or of a folder: that `save_to_disk` wrote, or of
    .parquet files."""

    kind = "video"
    unit = "row"
    damage = (*Files.damage, pa.ArrowException)

    def __init__(self, path: Path, choices: Choices):
        self._open = functools.lru_cache(MOST_OPEN)(self._opened)
        super().__init__(path, choices)

    def files(self, path: Path) -> list[Path]:
        split = self.choices.split
        if (path / "dataset_dict.json").is_file():
            splits = [each.name for each in sorted(path.iterdir()) if (each / "state.json").is_file()]
            if (wanted := split or "train") not in splits:
                raise UserError(f"{path}: {did_you_mean(wanted, splits, 'split')}; choose one with --split")
            path = path / wanted
        return _saved(path) if (path / "state.json").is_file() else files_in(path, SUFFIXES, split)

    def look(self, file: Path) -> int:
        return self._open(file).rows.count

    def video(self, file: Path, number: int, key: str, where: str) -> StoredVideo:
        opened = self._open(file)
        values = opened.rows.row(number, [name for name in (opened.video, opened.caption) if name])
        content = values[opened.video]
        if isinstance(content, dict):
            if content["bytes"] is None and content.get("path"):
                raise UserError(f"{where} only names a file, {content['path']!r:.200}; save the table with its bytes")
            content = content["bytes"]
        if content is None:
            raise UserError(f"{where} has no video")
        return encoded(
            key, where, content, caption_of(where, values.get(opened.caption), self.choices), self.choices.fit
        )

    def _opened(self, file: Path) -> _Opened:
        rows = (_Arrow if file.suffix.lower() == ".arrow" else _Parquet)(file)
        fields = {field.name: field.type for field in rows.schema}
        video = video_field(file, {name: _is_content(kind) for name, kind in fields.items()}, self.choices)
        caption = caption_field(file, {name: _is_text(kind) for name, kind in fields.items()}, self.choices)
        return _Opened(rows, video, caption)


def _starts(counts: Iterable[int]) -> list[int]:
    """The number of rows before each group, and of all."""
    return list(itertools.accumulate(counts, initial=0))


def _is_content(kind: Any) -> bool:
    """Bytes, or as `datasets` has them, bytes beside a path."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_content(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _saved(folder: Path) -> list[Path]:
    """The files that state.json lists, which lie in the folder itself."""
    listed = read_json(folder / "state.json", "the description of a saved dataset").get("_data_files")
    files = []
    for each in listed if isinstance(listed, list) else [listed]:
        name = each.get("filename") if isinstance(each, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{folder / 'state.json'} lists {each!r:.100}, which is no file beside it; save it again")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; copy the dataset again, all of its files")
        files.append(folder / name)
    return files


SOURCE = foreign(Tables)
