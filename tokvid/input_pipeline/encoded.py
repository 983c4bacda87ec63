"""An encoded video or image, on disk or in memory, before it is decoded: its size, its first bytes, its name."""

import io
from pathlib import Path
from typing import Any

from tokvid.errors import UserError, reason

Encoded = str | Path | bytes  # a path, or the bytes of a file

MAX_BYTES = 64 * 2**30  # of a file
MAX_PIXELS = 8192 * 4320  # of a frame: 8K
IMAGES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}  # first bytes: Pillow's name
KINDS = "mp4, mov, mkv, webm, avi, ts, flv, gif, png, jpg, bmp, webp"


class NamedBytes(bytes):
    """An encoded file in memory, with a name for messages."""

    name: str

    def __new__(cls, content: bytes, name: str) -> "NamedBytes":
        named = super().__new__(cls, content)
        named.name = name
        return named


def name_of(source: Encoded) -> str:
    """Its name in messages."""
    if isinstance(source, bytes) and not isinstance(source, NamedBytes):
        return f"the video of {len(source)} bytes"
    return " ".join(str(source.name if isinstance(source, NamedBytes) else source).split("\n"))


def head_of(source: Encoded) -> bytes:
    """The first bytes of a regular file of at most MAX_BYTES; UserError for another. (A pipe would block.)"""
    name = name_of(source)
    if isinstance(source, bytes):
        size, head = len(source), source[:16]
    else:
        path = Path(source)
        try:
            exists, regular = path.exists(), path.is_file()
            size = path.stat().st_size if regular else 0
            head = b""
            if regular:
                with path.open("rb") as file:
                    head = file.read(16)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {name}: {reason(error)}; check the path and its permissions") from error
        if not regular:
            raise UserError(f"{name} is {'not a file' if exists else 'not there'}; give a video or picture ({KINDS})")
    if not head:
        raise UserError(f"{name} is empty (0 bytes); copy it again or remove it")
    if size > MAX_BYTES:
        raise UserError(f"{name} has {size} bytes, allowed are {MAX_BYTES}; cut it into parts")
    return head


def opened(source: Encoded) -> Any:
    """The source in a form that Pillow opens."""
    return io.BytesIO(source) if isinstance(source, bytes) else source


def image_kind(source: Encoded) -> str | None:
    """Pillow's name of an image format, by the first bytes; None for another file; UserError when it cannot be read."""
    head = head_of(source)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in IMAGES.items() if head.startswith(magic)), None)
