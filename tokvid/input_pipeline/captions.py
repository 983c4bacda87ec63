"""The captions file of a folder of clips, `captions.jsonl` or `captions.csv`; harmless slips are accepted.

So is `metadata.jsonl` or `metadata.csv` with `file_name` and `text`, as in folders for Hugging Face's `datasets`, and
the `index.jsonl` of `tokvid generate --prompts`, with `file` and `prompt`.
"""

import csv
import dataclasses
import functools
import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

from tokvid.errors import UserError, reason, suggestion
from tokvid.input_pipeline.text import checked

log = logging.getLogger(__name__)

NAMES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv", "index.jsonl")  # the first that is there
FIELDS = {"file": ("file_name",), "caption": ("text", "prompt")}  # and what others call them
CSV_SUFFIXES = (".csv", ".tsv")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
LONGEST_CAPTION = 100_000  # bytes, the limit of a record
MOST_SHOWN = 5  # bad lines in an error
Parsed = TypeVar("Parsed")


class BadLine(Exception):
    """A problem with a line."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a captions file: the file, under its name on disk where it exists, and the caption."""

    file: str
    caption: str


def read_captions(folder: Path) -> list[Line]:
    """Every line of the captions file in `folder`; missing files are not checked.

    UserError, with line numbers, for: no folder, no captions file, not UTF-8, columns of other names, more values than
    columns, texts that aren't Unicode, a file outside of the folder or named twice.
    """
    path = captions_file(folder)
    finder = _Finder(folder.resolve())
    first_line: dict[str, int] = {}
    unused: Counter[str] = Counter()

    def parse(number: int, row: Any) -> Line:
        if isinstance(row, dict):
            for field, others in FIELDS.items():
                if field not in row and (names := [other for other in others if other in row]):
                    row[field] = row.pop(names[0])
        line = _line(row, finder)
        if (first := first_line.setdefault(os.path.realpath(finder.root / line.file), number)) != number:
            raise BadLine(f"{line.file!r:.200} again, first on line {first}; a clip has one caption, join them")
        unused.update(str(name) for name in row if name and name not in FIELDS)
        return line

    lines = read_lines(path, [(field, *others) for field, others in FIELDS.items()], parse)
    if unused:
        log.warning("%s: only file and caption are read, not %s", path, ", ".join(sorted(unused)))
    return lines


def read_lines(path: Path, columns: Sequence[Sequence[str]], parse: Callable[[int, Any], Parsed]) -> list[Parsed]:
    """What `parse` makes of each line of a .csv or .jsonl file, from its number and its values by field.

    A CSV file's first line names one of each of `columns`. In place of a line's values, `parse` may get a text, its
    problem. UserError with the number of each line where it raises BadLine, for a file without lines or not in UTF-8.
    """
    lines, bad = [], []
    try:
        for number, row in _csv_rows(path, columns) if path.suffix.lower() in CSV_SUFFIXES else _json_rows(path):
            try:
                lines.append(parse(number, row))
            except BadLine as problem:
                bad.append(f"line {number}: {problem}")
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}; check its permissions") from error
    except ValueError as error:
        raise UserError(f"cannot read {path}: {reason(error)}; save it as UTF-8 text, a video on each line") from error
    if bad:
        more = f"; and {len(bad) - MOST_SHOWN} more" if len(bad) > MOST_SHOWN else ""
        count = f"{len(bad)} bad line{'s' * (len(bad) > 1)}"
        raise UserError(f"{path} has {count}: {'; '.join(bad[:MOST_SHOWN])}{more}; mend or remove them")
    if not lines:
        raise UserError(f"{path} names no videos; write one on each line")
    return lines


def is_blank(text: str) -> bool:
    """Whether it has only invisible characters: spaces, controls and the like."""
    return all(unicodedata.category(letter)[0] in "ZC" for letter in text)


def check_captioned(captions: Iterable[str], where: str | Path) -> None:
    """UserError where all captions are empty: no text model can be trained from them."""
    if all(is_blank(caption) for caption in captions):
        raise UserError(f"all captions in {where} are empty; write beside each video what it shows")


def captions_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give one with captions.jsonl or captions.csv and its videos")
    files = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(files) > 1:
        log.warning("%s is read, %s is not; keep one of them", files[0], ", ".join(map(str, files[1:])))
    if files:
        return files[0]
    similar = ", ".join(
        sorted(name for name in _names_in(folder) if name.lower().startswith(("caption", "metadata")))[:3]
    )
    raise UserError(
        f'{folder} has no captions.jsonl (a line: {{"file": "a.mp4", "caption": "a dog runs"}}) and no '
        f"captions.csv (first line: file,caption){f', but has {similar}' * bool(similar)}; write one"
    )


def field_name(name: object) -> str:
    """A column's name without capitals and the spaces around it."""
    return str(name).strip().casefold()


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, fields) of each line; a text in place of the fields is a problem."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line, object_pairs_hook=_fields)
            except BadLine as problem:
                yield number, str(problem)
            except RecursionError:
                yield number, "not JSON (nested too deeply)"
            except ValueError as error:
                yield number, f"not JSON ({' '.join(str(error).split())}); write an object on each line"


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = {field_name(name): value for name, value in pairs}
    if len(fields) < len(pairs):
        twice = Counter(field_name(name) for name, _ in pairs).most_common(1)[0][0]
        raise BadLine(f"{twice!r:.40} is there twice; a clip has one caption, join them")
    return fields


def _csv_rows(path: Path, needed: Sequence[Sequence[str]]) -> Iterator[tuple[int, Any]]:
    """(number of its first line, values by column) of each row; a text in place of the values is a problem."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next((line for line in file if line.strip()), "")
        columns, delimiter = _columns(path, header, needed)
        file.seek(0)
        stripped = (line.rstrip(" \r\n") + "\n" for line in file)  # spaces after a closing quote would be an error
        reader = csv.reader(stripped, strict=True, delimiter=delimiter, skipinitialspace=True)
        seen_header = False
        while True:
            began = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield began, _quoting(error)
                return  # the start of the next row is unknown
            if row is None:
                return
            row = [value.strip() for value in row]
            if not any(row):
                continue
            if not seen_header:
                seen_header = True
                continue
            if reader.line_num > began:
                log.warning(
                    "%s: the row of line %d goes on to line %d, as its quotes say", path, began, reader.line_num
                )
            yield began, _by_column(row, columns, delimiter)


def _columns(path: Path, header: str, needed: Sequence[Sequence[str]]) -> tuple[list[str], str]:
    """The header's columns and the delimiter."""
    header = header.strip("\r\n")
    for delimiter in DELIMITERS:
        try:
            cells = next(csv.reader([header], strict=True, delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            continue
        columns = [field_name(cell) for cell in cells]
        if all(set(names) & set(columns) for names in needed):
            if twice := [field for names in needed for field in names if columns.count(field) > 1]:
                raise UserError(f"{path} has the column {twice[0]} more than once; keep one, with the texts of both")
            return columns, delimiter
    usual = ",".join(names[0] for names in needed)
    if not header:
        raise UserError(f"{path} is empty; write {usual} on its first line, and below it a line for each video")
    raise UserError(
        f"the first line of {path} is {header!r:.200}, it should name the columns: {usual}; write that line above "
        "the others, or rename the columns"
    )


def _by_column(row: list[str], columns: list[str], delimiter: str) -> dict[str, str] | str:
    spare = [value for value, name in zip(row, columns, strict=False) if value and not name]
    if len(row) > len(columns) or spare:
        count = sum(1 for name in columns if name)
        return (
            f"{len(row)} values for {count} columns; put a text that holds {DELIMITERS[delimiter]} in quotes: "
            f'"put the cup{delimiter} then the lid"'
        )
    return {name: value for name, value in zip(columns, row, strict=False) if name}


def _quoting(error: csv.Error) -> str:
    message = str(error)
    if "unexpected end" in message:
        return 'a quote " is opened here and never closed; close it'
    if "expected after" in message:
        return 'there is text after a closing quote "; put quotes around the whole text, and write each " in it as ""'
    return message


def _line(row: Any, finder: "_Finder") -> Line:
    if isinstance(row, str):
        raise BadLine(row)
    if not isinstance(row, dict):
        raise BadLine(f'needs an object like {{"file": "a.mp4", "caption": "a dog runs"}}, found {type(row).__name__}')
    for field in FIELDS:
        if not isinstance(row.get(field), str) or not (row[field].strip() or field == "caption"):
            names = ", ".join(f"{name!r:.40}" for name in list(row)[:5]) or "nothing"
            kind = f"{field} is {row[field]!r:.40}" if field in row else f"found {names}"
            raise BadLine(f"needs the texts file and caption, {kind}")
        try:
            checked(row[field], f"the {field}")
        except UserError as error:
            raise BadLine(str(error)) from error
    caption = row["caption"].strip()
    if len(caption.encode()) > LONGEST_CAPTION:
        raise BadLine(f"the caption has {len(caption.encode())} bytes, at most {LONGEST_CAPTION} are allowed")
    return Line(finder.find(row["file"]), caption)


class _Finder:
    """Finds files of a folder by the names in its captions."""

    def __init__(self, root: Path):
        self.root = root
        self._listing = functools.cache(self._list)

    def find(self, name: str) -> str:
        """The path within the folder, as on disk; `name` itself where there is no such file.

        Without a file of exactly that name, spaces around it are ignored, backslashes may stand for slashes (Windows),
        and letters with marks may be composed differently (macOS). BadLine for a file outside of the folder.
        """
        if "\0" in name:
            raise BadLine(f"{name!r:.60} is not a file name")
        try:
            for path in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
                if Path(path).is_absolute() or ".." in Path(path).parts:
                    problem = "is an absolute path" if Path(path).is_absolute() else "goes up by '..'"
                    raise BadLine(f"{name!r:.200} {problem}; name files as seen from the folder, inside of it")
                actual = path if _is_there(self.root / path) else self._composed(path)
                if not Path(os.path.realpath(self.root / (actual or path))).is_relative_to(self.root):
                    raise BadLine(f"{name!r:.200} links to outside of the folder; copy the file into it")
                if actual is not None:
                    return os.path.normpath(actual)
        except OSError as error:
            raise BadLine(f"{name!r:.60} is not a file name ({error.strerror})") from error
        if PureWindowsPath(name).root:
            raise BadLine(f"{name!r:.200} is an absolute path; name files as seen from the folder, inside of it")
        return os.path.normpath(name)

    def _composed(self, name: str) -> str | None:
        path = Path()
        for part in Path(name).parts:
            same = self._listing(path).get(unicodedata.normalize("NFC", part), [])
            if len(same) != 1:
                return None
            path /= same[0]
        return str(path)

    def _list(self, within: Path) -> dict[str, list[str]]:
        """The names in a folder, by their composed form."""
        names: dict[str, list[str]] = {}
        for name in _names_in(self.root / within):
            names.setdefault(unicodedata.normalize("NFC", name), []).append(name)
        return names


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # reported when it is opened
        return True
    return True


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def missing(file: Path) -> str:
    """The error for a file that captions name and that doesn't exist, with the most similar name."""
    similar = [name for name in _names_in(file.parent) if Path(name).stem.casefold() == file.stem.casefold()]
    return f"{file} is not there{suggestion(file.name, similar)}"
