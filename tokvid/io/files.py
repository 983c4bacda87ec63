"""Outputs appear as a whole or not at all: written under a temporary name beside their path, then renamed.

Before any work, `Outputs` (for arguments), `check_output` and `check_folder` test that they can be written.
"""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokvid.errors import UserError, reason
from tokvid.io.urls import is_url

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what more space helps with

VIDEO_SUFFIXES = (".mp4", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
SHEET_SUFFIXES = (".png",)


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path (same folder, same suffix) to write a file or folder to; renamed to `path` on success.

    A file or folder at `path` stays untouched until the new one is complete, and a file never replaces a folder, nor
    the reverse. A link stays, and its target is replaced. UserError for a full disk or a folder without write
    permission; the temporary is removed on any error.
    """
    place = Path(os.path.realpath(path))
    temporary = _temporary(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if place.is_dir() and temporary.is_dir():
            _swap(temporary, place)
        else:
            os.replace(temporary, place)
    except OSError as error:
        raise _cannot(path, error) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _temporary(place: Path) -> Path:
    # A name has at most 255 bytes, and a character up to four.
    return place.parent / f".{place.stem[:40]}.{uuid.uuid4().hex[:8]}{place.suffix}"


def _swap(new: Path, place: Path) -> None:
    old = new.with_suffix(".old")
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)  # the new one is there


def _cannot(path: str | Path, error: OSError) -> UserError:
    advice = "free some space or choose another place" if error.errno in FULL else "choose another place"
    return UserError(f"cannot write {path}: {reason(error)}; {advice}")


def check_output(path: str | Path, *suffixes: str) -> None:
    """UserError where no file can be written to `path`; to be called before the work. Changes nothing.

    The name must end in one of `suffixes`, if there are any.
    """
    check_suffix(path, *suffixes)
    with _explained(path):
        if Path(path).is_dir():
            raise UserError(f"cannot write {path}: it is a folder; give a file's name")
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"cannot write {path}: it exists and is no ordinary file; give another name")
        _try(Path(path))


def check_suffix(path: str | Path, *suffixes: str) -> None:
    """UserError where the name ends in none of `suffixes`, in lower or upper case."""
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise UserError(f"cannot write {path}: its name should end in {' or '.join(suffixes)}")


def check_folder(path: str | Path) -> None:
    """As `check_output`, for files in a folder at `path`, which need not exist yet."""
    with _explained(path):
        if Path(path).exists() and not Path(path).is_dir():
            raise UserError(f"cannot write to {path}: it exists and is no folder; give another name")
        _try(Path(path) / "file")


def check_replaced(path: str | Path) -> None:
    """As `check_output`, for a whole folder at `path`, which may replace another."""
    with _explained(path):
        if os.path.ismount(path):
            raise UserError(f"cannot replace {path}: something is mounted there; name a folder in it")
        _try(Path(path))


def refuse_others(folder: Path, own: Iterable[str]) -> None:
    """UserError where a folder that is to be replaced holds files that aren't its `own`; hidden ones don't count."""
    known = set(own)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.name.startswith(".") and name not in known and not (path.is_dir() and not path.is_symlink()):
            raise UserError(f"{folder} is to be replaced, but holds {name}, too; move that, or choose another place")


def _try(path: Path) -> None:
    """Writes a file of that name in a temporary folder, beside `path` or in its nearest existing parent."""
    place = Path(os.path.realpath(path))
    parent_folder = next(parent for parent in place.parents if os.path.lexists(parent))  # maybe links in a circle
    with tempfile.TemporaryDirectory(prefix=".tokvid-", dir=parent_folder) as folder:
        trial = Path(folder, *place.relative_to(parent_folder).parts)
        trial.parent.mkdir(parents=True, exist_ok=True)
        for name in (_temporary(trial), trial):
            name.write_bytes(b"?")


@contextlib.contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot(path, error) from error


class Outputs:
    """Types of output paths for `argparse`, which checks each path as it is parsed, before any work.

    String defaults are checked, too. No path may be named twice.
    """

    def __init__(self) -> None:
        self._places: set[str] = set()

    def file(self, *suffixes: str) -> Callable[[str], Path]:
        """The type of a file whose name ends in one of `suffixes`, or in any if there are none."""
        return lambda text: self._checked(text, lambda path: check_output(path, *suffixes))

    def folder(self, text: str) -> Path:
        """The type of a folder for output files."""
        return self._checked(text, check_folder)

    def has(self, path: Path) -> bool:
        """Whether it is one of the outputs."""
        return os.path.realpath(path) in self._places

    def _checked(self, text: str, check: Callable[[Path], None]) -> Path:
        if is_url(text):
            raise argparse.ArgumentTypeError(f"{text} is a URL; write to a file system, maybe a mounted bucket")
        path = named_path(text)
        try:
            check(path)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if (place := os.path.realpath(text)) in self._places:
            raise argparse.ArgumentTypeError(f"{text} is named for another output, too; give each a name of its own")
        self._places.add(place)
        return path


def named_path(text: str) -> Path:
    """A path for `argparse`, which refuses "": that would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a path")
    return Path(text)


def write_json(path: str | Path, value: object) -> None:
    """Writes `to_json(value)` (UTF-8) atomically."""
    write_text(path, to_json(value))


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: object) -> str:
    """`value` as indented JSON, keys in their order; names that are no UTF-8 are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def seal(record: Mapping[str, object]) -> str:
    """The SHA-256 of a JSON object without its own `sha256`, by which a changed one is recognised."""
    return hashlib.sha256(to_json({k: v for k, v in record.items() if k != "sha256"}).encode()).hexdigest()


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object. UserError for one that is there twice: JSON's own reader keeps the last."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise UserError(f"{next(name for name in names if names.count(name) > 1)!r:.40} is there twice; give it once")
    return fields


def read_limited(path: str | Path, what: str, most: int, advice: str = "split it") -> bytes:
    """The bytes of a file. UserError, which calls it `what`, where it cannot be read or has more than `most`."""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {reason(error)}; check its name") from error
    if len(data) > most:
        raise UserError(f"{what} {path} has more than {most} bytes; {advice}")
    return data


def read_json(path: str | Path, what: str) -> dict:
    """The JSON object in `path`; UserError when it is missing or damaged. `what` is its name in the error."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{what} {path} should be a JSON object, found {type(value).__name__}")
    return value
