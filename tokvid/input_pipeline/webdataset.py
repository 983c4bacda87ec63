"""WebDataset shards: .tar archives of KEY.mp4 beside KEY.txt or KEY.json, read in place and in any order.

Archives are untrusted, as videos are. Only their headers are walked, nothing is extracted, and only ordinary files are
read.
"""

import dataclasses
import functools
import glob
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokvid.errors import UserError, reason
from tokvid.input_pipeline.captions import LONGEST_CAPTION
from tokvid.input_pipeline.checked import CheckedSource
from tokvid.input_pipeline.clips import VideoInfo, probe, read_clip
from tokvid.input_pipeline.encoded import KINDS, NamedBytes
from tokvid.input_pipeline.picture import Fit
from tokvid.input_pipeline.source import Source
from tokvid.input_pipeline.stored import MOST_BYTES
from tokvid.input_pipeline.text import checked
from tokvid.input_pipeline.workers import Map, in_threads
from tokvid.types import Caption

VIDEOS = (*(f".{kind}" for kind in KINDS.split(", ")), ".m4v", ".jpeg", ".apng")
CAPTIONS = (".txt", ".json")  # the first, where a key has both
CAPTION_FIELDS = ("caption", "text", "txt", "prompt", "description")  # of a .json; the first one present
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by first bytes
SHARDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
MOST_HEADER = 1 << 20  # bytes of one header; those of long names and extended ones declare their own size
MOST_CAPTION_FILE = 1 << 20  # bytes
MOST_PADDING = 1 << 20  # bytes of zeros at the end of an archive
MOST_SHARDS = 1_000_000  # that braces may stand for


@dataclasses.dataclass(frozen=True)
class ShardItem:
    """A captioned video in a shard, a `tokvid.types.VideoItem`: `size` bytes from the byte `begin` on."""

    shard: Path
    name: str
    begin: int
    size: int
    changed: int  # the shard's time of change, in ns
    captions: tuple[Caption, ...] = ()
    problem: str = ""  # the reason why it cannot be used, from the headers or the caption
    seconds: float = 0.0
    fps: float = 0.0
    fit: Fit = "crop"

    @property
    def key(self) -> str:
        """The shard's name and the member's."""
        return f"{self.shard.name}/{self.name}"

    @property
    def place(self) -> Path:
        """Its name in messages."""
        return self.shard / self.name

    def probe(self, full: bool) -> VideoInfo | str:
        """Its facts, or the reason why it cannot be read."""
        return self.problem or _probe_once(self, full)

    def content(self) -> NamedBytes:
        """The bytes of the file. UserError where they cannot be read."""
        if self.size > MOST_BYTES:
            raise UserError(f"{self.place} has {self.size} bytes, allowed are {MOST_BYTES}; cut it into parts")
        try:
            with open(self.shard, "rb") as file:
                content = _stretch(file, self.begin, self.size)
        except OSError as error:
            raise UserError(f"cannot read {self.shard}: {reason(error)}") from error
        return NamedBytes(content, str(self.place))

    def read(self, start: float, fps: float, frames: int, size: tuple[int, int]) -> np.ndarray:
        """See `clips.read_clip`."""
        return read_clip(self.content(), start=start, fps=fps, frames=frames, size=size, fit=self.fit)


@functools.cache
def _probe_once(item: ShardItem, full: bool) -> VideoInfo | str:
    """`probe` of an item, or the reason why it cannot be read; cached for both splits."""
    try:
        return probe(item.content(), full=full)
    except UserError as error:
        return str(error)


class WebDataset(CheckedSource[ShardItem]):
    """The captioned videos and images of .tar shards: shards in the order of their names, members in their own order.

    `path` is a folder of shards, one shard, or a pattern (`shard-*.tar`, `shard-{000..099}.tar`). A key is a member's
    name without its last suffix, so it may contain dots. Unusable samples are skipped and listed, see `CheckedSource`:
    also a link, a device, a sparse file, a name that leads out of the archive, a duplicate key, a video without a
    caption and a caption without a video. UserError for a shard that is compressed, damaged or cut off.
    """

    def __init__(self, path: str | Path, *, fit: Fit = "crop", max_unreadable: float = 0.1, mapped: Map = in_threads):
        items = [dataclasses.replace(item, fit=fit) for shard in shards_of(path) for item in _index(shard).items]
        if not items:
            raise UserError(f"the shards of {path} hold no videos; pack KEY.mp4 and KEY.txt (or KEY.json) into them")
        super().__init__(path, items, max_unreadable=max_unreadable, mapped=mapped)


def shards_of(path: str | Path) -> list[Path]:
    """The shards that a path or a pattern names, in order. UserError where one is missing, or there are none."""
    path = Path(path)
    if path.is_dir():
        shards = [file for file in path.iterdir() if file.name.lower().endswith(SHARDS) and file.is_file()]
        if not shards:
            raise UserError(f"{path} holds no .tar shards; give the folder that they are in, or a pattern")
        return sorted(shards)
    names = [str(path)] if path.exists() else list(_without_braces(str(path)))
    shards = []
    for name in names:
        matches = sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
        shards += [Path(match) for match in matches]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{shard} is {'not a file' if shard.exists() else 'not there'}; give .tar shards")
    if not shards:
        raise UserError(f"no file matches {path}; give a folder of .tar shards, one of them, or a pattern")
    return sorted(set(shards))


def _without_braces(pattern: str) -> Iterator[str]:
    """The names that a pattern with {a,b} or {000..123} stands for."""
    if not (braces := re.search(r"\{([^{}]*)\}", pattern)):
        yield pattern
        return
    choices: list[str] = braces[1].split(",")
    if bounds := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", braces[1]):
        first, last = int(bounds[1]), int(bounds[2])
        if last - first >= MOST_SHARDS:
            raise UserError(f"{pattern!r:.200} stands for {last - first + 1} shards, at most {MOST_SHARDS} are allowed")
        choices = [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]
    for choice in choices:
        yield from _without_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


def members_of(shard: Path) -> tuple[tuple[int, int], ...]:
    """The first byte of each member, its header included, and its number of bytes."""
    return _index(shard).stretches


@dataclasses.dataclass(frozen=True)
class _Index:
    """The contents of a shard, by its headers."""

    items: tuple[ShardItem, ...]
    stretches: tuple[tuple[int, int], ...]


def _index(shard: Path) -> _Index:
    try:
        status = shard.stat()
        return _index_once(shard, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise UserError(f"cannot read {shard}: {reason(error)}; check its permissions") from error


@functools.cache
def _index_once(shard: Path, changed: int, size: int) -> _Index:
    with open(shard, "rb") as file:
        head = file.read(6)
        for magic, program in COMPRESSED.items():
            if head.startswith(magic):
                raise UserError(
                    f"{shard} is compressed, so no single video can be read from it; unpack it to a plain .tar: "
                    f"{program} -d {shard.name}"
                )
        members = list(_walk(shard))
        groups: dict[str, list[tarfile.TarInfo]] = {}
        for member in members:
            if not member.isdir() and _suffix(member) in (*VIDEOS, *CAPTIONS):
                groups.setdefault(os.path.splitext(_name(member))[0], []).append(member)
        items = tuple(_item(file, shard, changed, key, group) for key, group in groups.items())
    return _Index(items, tuple((member.offset, member.offset_data + member.size - member.offset) for member in members))


def _name(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./")


def _suffix(member: tarfile.TarInfo) -> str:
    """The suffix in lower case; "" for the companion files of macOS."""
    name = os.path.basename(member.name)
    return "" if name.startswith("._") else os.path.splitext(name)[1].lower()


class _Headers(io.FileIO):
    """A shard that limits the bytes read at once to a header's most, because headers declare their own size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header says that it has {size} bytes, allowed are {MOST_HEADER}")
        return super().read(size)


def _walk(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Each member. UserError where the archive lacks a proper end: tarfile takes damage for one."""
    try:
        with _Headers(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.size < 0:
                    raise tarfile.ReadError(f"a member has {member.size} bytes")
                yield member
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
            if len(end) < tarfile.BLOCKSIZE or any(end):
                raise tarfile.ReadError(f"no header and no end at byte {archive.offset}")
            rest = io.FileIO.read(file, MOST_PADDING)
            if any(rest) or io.FileIO.read(file, 1):
                raise tarfile.ReadError(f"it continues after its end at byte {archive.offset}")
    except Exception as error:  # tarfile raises anything on senseless headers
        raise UserError(
            f"{shard} is damaged, cut off or no .tar archive ({reason(error)}); copy or pack it again"
        ) from error


def _item(file: io.BufferedReader, shard: Path, changed: int, key: str, group: list[tarfile.TarInfo]) -> ShardItem:
    """The sample of a key, maybe with a problem."""
    videos = [member for member in group if _suffix(member) in VIDEOS]
    by_suffix = ([member for member in group if _suffix(member) == suffix] for suffix in CAPTIONS)
    captions = next(filter(None, by_suffix), [])
    first = (videos or captions)[0]
    item = ShardItem(shard, _name(first), first.offset_data, first.size, changed)
    try:
        for members in (videos, captions):
            _check(key, members, "video" if members is videos else "caption")
        return dataclasses.replace(item, captions=(Caption(0.0, _caption(file, captions[0])),))
    except UserError as error:
        return dataclasses.replace(item, problem=f"{shard}: {error}")


def _check(key: str, members: list[tarfile.TarInfo], kind: str) -> None:
    """UserError unless `members` is one ordinary file."""
    if not members:
        expected = "KEY.txt or KEY.json" if kind == "caption" else "KEY.mp4"
        raise UserError(f"{key!r:.200} has no {kind}; pack {expected} beside it, of the same KEY")
    if len(members) > 1:
        names = Counter(_name(member) for member in members)
        raise UserError(f"{key!r:.200} has {len(members)} {kind}s, {', '.join(names)!r:.200}; a key has one, keep that")
    (member,) = members
    name = f"{member.name!r:.200}"
    checked(member.name, "the name")
    if os.path.isabs(member.name) or ".." in member.name.split("/"):
        raise UserError(f"{name} leads out of the archive; pack files by names within their folder")
    if re.search(r"[\x00-\x1f\x7f]", member.name):
        raise UserError(f"{name} has control characters; pack it by another name")
    if member.issparse():
        raise UserError(f"{name} is a sparse file; pack it without --sparse")
    if not member.isreg():
        raise UserError(f"{name} is a link or a device; pack the file itself: tar --dereference --hard-dereference")


def _caption(file: io.BufferedReader, member: tarfile.TarInfo) -> str:
    name = f"{member.name!r:.200}"
    if member.size > MOST_CAPTION_FILE:
        raise UserError(f"{name} has {member.size} bytes, allowed are {MOST_CAPTION_FILE}; shorten it")
    content = _stretch(file, member.offset_data, member.size)
    try:
        text = content.decode("utf-8-sig")
        if _suffix(member) == ".json":
            text = _caption_in(json.loads(text), name)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} holds no caption ({reason(error)}); save it as UTF-8") from error
    if len(checked(text, f"the caption {name}").encode()) > LONGEST_CAPTION:
        raise UserError(f"{name} has a caption of over {LONGEST_CAPTION} bytes; shorten it")
    return text.strip()


def _caption_in(value: object, name: str) -> str:
    fields = {str(field).strip().casefold(): text for field, text in value.items()} if isinstance(value, dict) else {}
    for field in CAPTION_FIELDS:
        if isinstance(text := fields.get(field), str):
            return text
    raise UserError(
        f'{name} has no text in any field of {", ".join(CAPTION_FIELDS)}; write {{"caption": "a dog runs"}}'
    )


def _stretch(file: io.BufferedReader, begin: int, size: int) -> bytes:
    file.seek(begin)
    content = file.read(size)
    if len(content) < size:
        raise UserError(f"{file.name} ends before byte {begin + size}; it was changed while it was read")
    return content


SOURCE = Source(
    open=lambda config: WebDataset(config.path, fit=config.fit, max_unreadable=config.max_unreadable),
    files=shards_of,
    parts=members_of,
)
