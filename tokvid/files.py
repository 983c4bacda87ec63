"""Outputs appear whole or not at all: written under a temporary name beside their place, then renamed."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tokvid.errors import UserError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path (same folder, same suffix) to write a file or folder to; renamed to `path` on success.

    An existing file or folder at `path` stays untouched until the new one is complete. A full disk, a read-only or a
    missing-permission folder raises UserError; the temporary is removed on any error.
    """
    path = Path(path)
    temporary = path.parent / f".{path.stem[:80]}.{uuid.uuid4().hex[:8]}{path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir():
            old = temporary.with_suffix(".old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; free some space or choose another place") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Writes `to_json(value)` (UTF-8), atomically."""
    with atomic(path) as temporary:
        temporary.write_text(to_json(value), encoding="utf-8")


def to_json(value: object) -> str:
    """`value` as indented JSON, keys in the order given."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


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
