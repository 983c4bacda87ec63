"""Inputs may be URLs that fsspec knows (gs://, s3://, hf://, https://, …); they are fetched into a cache."""

import hashlib
import os
import reprlib
import shutil
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

from tokvid.errors import UserError

# What fsspec needs for a scheme; the extra `remote` has them all.
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp"}


class URL(str):
    """An argument that `local` turns into a path."""


def is_url(path: str | Path) -> bool:
    """Whether `local` would fetch it."""
    return "://" in str(path)


def text_of(path: Any) -> str:
    """A path or a URL as text. UserError for what is neither."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UserError(f"a path or a URL should be text or a pathlib.Path, got {reprlib.repr(path)}")
    return text


def local(path: str | Path) -> Path:
    """A path itself, or for a URL a copy of its file or folder in the user's cache folder ($XDG_CACHE_HOME).

    It is fetched once, and again when names, sizes or versions change. UserError for a URL without a file, one that
    cannot be reached or copied, or one for which fsspec lacks a package (see PACKAGES).
    """
    if not is_url(path):
        return Path(path)
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(str(path))
        root = root.rstrip("/")
        if "file" in files.protocol:
            return Path(root)
        listing = {root: files.info(root)} if files.isfile(root) else files.find(root, detail=True)
        if not listing:
            raise UserError(f"there is nothing at {path}")
        about = sorted((name, str(sorted(info.items()))) for name, info in listing.items())
        mark = hashlib.sha256(str((str(path), about)).encode()).hexdigest()[:16]
        copy = cache() / mark / Path(root).name
        if not copy.exists():
            _fetch(files, root, {name: listing[name].get("size") for name in sorted(listing)}, copy)
    except UserError:
        raise
    except ImportError as error:
        scheme = str(path).partition("://")[0]
        package = PACKAGES.get(scheme)
        advice = f"do: pip install {package}, or 'tokvid[remote]' for all" if package else error
        raise UserError(f"cannot read {path}: {scheme}:// needs a package that isn't installed; {advice}") from error
    except Exception as error:  # every kind of store raises its own errors
        raise UserError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    return copy


def cache() -> Path:
    """The folder of what was fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokvid" / "fetched"


def _fetch(files: Any, root: str, sizes: dict[str, int | None], copy: Path) -> None:
    """Fetches all files or none. Where several processes fetch the same, the first copy stays."""
    from tokvid.io.progress import progress

    temporary = copy.parent.with_name(f".{uuid.uuid4().hex[:8]}")
    try:
        with progress(f"fetching {copy.name}", len(sizes), "files") as advance:
            for name in sizes:
                inner = PurePosixPath(name[len(root) :].lstrip("/"))
                if not name.startswith(root) or ".." in inner.parts or "\0" in name:
                    raise UserError(f"cannot fetch {root}: it lists {name!r:.200}, which leads out of it")
                to = temporary / copy.name / inner
                to.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(name, str(to))
                if (size := sizes[name]) not in (None, to.stat().st_size):
                    raise UserError(f"{name} has {size} bytes, but {to.stat().st_size} arrived; try again")
                advance()
        try:
            temporary.rename(copy.parent)
        except OSError:
            if not copy.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
