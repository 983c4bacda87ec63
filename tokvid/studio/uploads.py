"""Uploads: counted while they arrive, kept under an id, and opened only as `input_pipeline` opens untrusted files."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import ClientDisconnect

from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe, read_image
from tokvid.input_pipeline.encoded import KINDS, image_kind
from tokvid.io.media import write_image
from tokvid.studio.guard import TooLarge
from tokvid.studio.records import Records, Upload, new_id

MOST_UPLOAD = 64 << 20  # bytes
LONGEST_SILENCE = 30.0  # seconds between parts of an upload
MOST_UPLOADS = 1 << 30  # bytes of all; beyond, the oldest that no take needs are deleted
MOST_CLIP_SECONDS = 60.0
PICTURE = 512  # pixels of the longer side of the picture that stands for it


class Unusable(UserError):
    """A file that the studio cannot use."""

    code = "unreadable"


async def receive(records: Records, name: str, content: AsyncIterator[bytes]) -> Upload:
    """Stores a picture or a clip, or raises a UserError and leaves nothing behind."""
    upload_id = new_id()
    place = records.folder / "uploads" / upload_id
    hidden = place.with_name(f".{upload_id}")
    hidden.mkdir()
    try:
        size = 0
        with open(hidden / "file", "wb") as file:
            async for part in _in_time(content):
                size += len(part)
                if size > MOST_UPLOAD:
                    raise TooLarge
                await asyncio.to_thread(file.write, part)
        upload = await asyncio.to_thread(_checked, hidden, upload_id, _shown(name), size)
        records.save(upload, hidden)
        hidden.rename(place)
        records.uploads[upload_id] = upload
        _make_room(records, upload)
        return upload
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


async def _in_time(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The parts of an upload. UserError where they stop coming: others wait for it."""
    parts = aiter(content)
    while True:
        try:
            async with asyncio.timeout(LONGEST_SILENCE):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except (TimeoutError, ClientDisconnect) as error:
            raise Unusable("the file stopped arriving; send it again") from error
        yield part


def _make_room(records: Records, newest: Upload) -> None:
    used = {newest.id}.union(*(take.uploads for take in records.takes.values()))
    total = sum(upload.bytes for upload in records.uploads.values())
    for upload in sorted(records.uploads.values(), key=lambda upload: upload.created):
        if total > MOST_UPLOADS and upload.id not in used:
            records.remove(upload)
            total -= upload.bytes


def _shown(name: str) -> str:
    """A name for people: the last part of a path, without control characters."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(letter for letter in last if letter.isprintable())[:80] or "file"


def _checked(place: Path, upload_id: str, name: str, size: int) -> Upload:
    path = place / "file"
    try:
        info, kind = probe(path), image_kind(path)
        first_HWC = read_image(path, _size(info.height, info.width))
    except UserError as error:
        raise Unusable(str(error).replace(str(path), name)) from error
    still = info.frames == 1 and info.seconds == 0
    if info.seconds > MOST_CLIP_SECONDS:
        raise Unusable(f"{name} has {info.seconds:.0f} s, at most {MOST_CLIP_SECONDS:g} are allowed; cut it")
    write_image(place / "picture.png", first_HWC)
    suffix = f".{kind.lower()}" if kind else Path(name).suffix.lower()
    if suffix.removeprefix(".") not in KINDS.split(", "):
        suffix = ".jpg" if suffix == ".jpeg" else ".mp4"
    return Upload(
        id=upload_id, name=name, kind="picture" if still else "clip", suffix=suffix, width=info.width,
        height=info.height, seconds=info.seconds, fps=info.fps, bytes=size, created=time.time(),
    )  # fmt: skip


def _size(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, PICTURE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
