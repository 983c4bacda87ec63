"""Outputs appear whole or not at all: written under a temporary name beside their place, then renamed.

And before the work begins it is tried whether they can: `Outputs` for arguments, `check_output` and `check_folder`.
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tokvid.errors import UserError
from tokvid.io.urls import is_url

VIDEO_SUFFIXES = (".mp4", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
SHEET_SUFFIXES = (".png",)


def shipped() -> Path:
    """The folder of the shipped weights and stories: `data/` in a checkout, a part of the package where it's a copy."""
    package = Path(__file__).resolve().parents[1]
    return inside if (inside := package / "data").is_dir() else package.parent / "data"


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path (same folder, same suffix) to write a file or folder to; renamed to `path` on success.

    An existing file or folder at `path` stays untouched until the new one is complete, and neither replaces the other;
    a link stays, and what it points to is replaced. A full disk, a read-only or a missing-permission folder raises
    UserError; the temporary is removed on any error.
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
    # A name may have 255 bytes, and a letter four.
    return place.parent / f".{place.stem[:40]}.{uuid.uuid4().hex[:8]}{place.suffix}"


def _swap(new: Path, place: Path) -> None:
    old = new.with_suffix(".old")
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old)


def _cannot(path: str | Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose another place")


def check_output(path: str | Path, *suffixes: str) -> None:
    """UserError, before any work, where no file can be put at `path` after it. Leaves everything as it is.

    Its name should end in one of `suffixes`, if there are any.
    """
    check_suffix(path, *suffixes)
    with _explained(path):
        if Path(path).is_dir():
            raise UserError(f"cannot write {path}: it is a folder; give a file's name")
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"cannot write {path}: it is there and no ordinary file; give another name")
        _try(Path(path))


def check_suffix(path: str | Path, *suffixes: str) -> None:
    """UserError where the name ends in none of `suffixes`, in small letters or capitals."""
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise UserError(f"cannot write {path}: its name should end in {' or '.join(suffixes)}")


def check_folder(path: str | Path) -> None:
    """As `check_output`, where files are to be put into a folder at `path`, which needn't be there yet."""
    with _explained(path):
        if Path(path).exists() and not Path(path).is_dir():
            raise UserError(f"cannot write to {path}: it is there and no folder; give another name")
        _try(Path(path) / "file")


def check_replaced(path: str | Path) -> None:
    """As `check_output`, where a folder is to be put at `path` as a whole, in place of one that may be there."""
    with _explained(path):
        if os.path.ismount(path):
            raise UserError(f"cannot replace {path}: something is mounted there; name a folder in it")
        _try(Path(path))


def _try(path: Path) -> None:
    """Writes a file of that name in a temporary folder, beside `path` or where its folders would have to be made."""
    place = Path(os.path.realpath(path))
    there = next(parent for parent in place.parents if os.path.lexists(parent))  # maybe links in a circle
    with tempfile.TemporaryDirectory(prefix=".tokvid-", dir=there) as folder:
        trial = Path(folder, *place.relative_to(there).parts)
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
    """What a program writes, as types for `argparse`: each is checked when its argument is read, before any work.

    Defaults are, too, where they are strings. No place may be named twice.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def file(self, *suffixes: str) -> Callable[[str], Path]:
        """The type of a file whose name ends in one of `suffixes`; any where there are none."""
        return lambda text: self._checked(text, lambda path: check_output(path, *suffixes))

    def folder(self, text: str) -> Path:
        """The type of a folder that files are put into."""
        return self._checked(text, check_folder)

    def _checked(self, text: str, check: Callable[[Path], None]) -> Path:
        if is_url(text):
            raise argparse.ArgumentTypeError(f"{text} is a URL; write to a file system, maybe a mounted bucket")
        path = named_path(text)
        try:
            check(path)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if (place := os.path.realpath(text)) in self._seen:
            raise argparse.ArgumentTypeError(f"{text} is named for another output, too; give each a name of its own")
        self._seen.add(place)
        return path


def named_path(text: str) -> Path:
    """A path for `argparse`, which "" is not: that would be the folder that one is in."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a path")
    return Path(text)


def write_json(path: str | Path, value: object) -> None:
    """Writes `to_json(value)` (UTF-8), atomically."""
    write_text(path, to_json(value))


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: object) -> str:
    """`value` as indented JSON, keys in the order given; bytes of names that are no UTF-8 as escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_json(path: str | Path, what: str) -> dict:
    """The JSON object in `path`; UserError with `what` it should have been when missing or damaged."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{what} {path} should be a JSON object, found {type(value).__name__}")
    return value
