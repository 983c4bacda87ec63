"""Generated windows kept in a file, and found again by the mark of all that determines their tokens.

So a story that was interrupted resumes, and one that changes from some second on keeps what comes before.
"""

import hashlib
import math
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int

from tokvid.errors import UserError
from tokvid.io.files import atomic
from tokvid.sampling.models import Models

HEAD = struct.Struct("<32sII")  # a record: its mark, the videos of its batch, their latent frames,
CHECK = struct.Struct("<I")  # then tokens as int32, and a checksum of all before


class KeptWindows:
    """A file of windows, in a `with` statement, written from the first one on; a file of other models is replaced.

    Records are only appended, so a torn or damaged one ends what is read: it is generated again, with all later ones.
    `asked` counts the windows that were asked for, `found` those of them that were there; `others` says whether there
    was a file at all. Several threads may use it, also after the statement, when it knows and keeps nothing.
    """

    def __init__(self, path: Path, models: Models):
        self._path, self._shape = path, models.no_tokens(1).shape[2:]
        mark = hashlib.sha256(f"{models.mark} {self._shape}".encode()).hexdigest()[:16]
        self._line = f"tokvid windows {mark}\n".encode()
        self._places: dict[bytes, int] = {}  # by mark the first byte of its record: small, a long story has thousands
        self._file: BinaryIO | None = None
        self._one_by_one, self._left = threading.Lock(), True
        self.asked, self.found, self.others = 0, 0, False

    def __enter__(self) -> "KeptWindows":
        self._left, self.others = False, self._path.is_file()
        if self._belongs():
            self._open()
        return self

    def __exit__(self, *error: object) -> None:
        with self._one_by_one:
            self._left = True
            if self._file is not None:
                self._file.close()

    def _open(self) -> BinaryIO:
        self._file = file = self._path.open("r+b")
        end = file.seek(len(self._line))
        while self._reads_record(file):
            end = file.tell()
        file.truncate(end)
        return file

    def _belongs(self) -> bool:
        try:
            with open(self._path, "rb") as file:
                return file.read(len(self._line)) == self._line
        except FileNotFoundError:
            return False

    def _bytes(self, videos: int, latent_frames: int) -> int:
        return 4 * videos * latent_frames * math.prod(self._shape)

    def _reads_record(self, file: BinaryIO) -> bool:
        """Whether a whole and undamaged record follows, which then is known."""
        start = file.tell()
        if len(head := file.read(HEAD.size)) < HEAD.size:
            return False
        mark, videos, latent_frames = HEAD.unpack(head)
        count = self._bytes(videos, latent_frames)
        if file.tell() + count > os.fstat(file.fileno()).st_size:
            return False
        tokens, check = file.read(count), file.read(CHECK.size)
        if check != CHECK.pack(zlib.crc32(head + tokens)):
            return False
        self._places[bytes.fromhex(mark.decode("ascii"))] = start
        return True

    def __iter__(self) -> Iterator[str]:
        """The marks of the windows, as they were added."""
        return (mark.hex() for mark in self._places)

    def get(self, mark: str) -> Int[np.ndarray, "b t h w q"] | None:
        """The tokens (B, T, H, W, Q) that were added under this mark, or None."""
        with self._one_by_one:
            self.asked += 1
            if self._left or self._file is None or (start := self._places.get(bytes.fromhex(mark))) is None:
                return None
            self.found += 1
            self._file.seek(start)
            _, videos, latent_frames = HEAD.unpack(self._file.read(HEAD.size))
            tokens = np.frombuffer(self._file.read(self._bytes(videos, latent_frames)), "<i4")
        return tokens.reshape(videos, latent_frames, *self._shape).astype(np.int32)

    def __setitem__(self, mark: str, tokens_BTHWQ: Int[np.ndarray, "b t h w q"]) -> None:
        """Appends a window."""
        with self._one_by_one:
            if not self._left:
                self._append(mark, tokens_BTHWQ)

    def _append(self, mark: str, tokens_BTHWQ: np.ndarray) -> None:
        videos, latent_frames = tokens_BTHWQ.shape[:2]
        record = HEAD.pack(mark.encode(), videos, latent_frames) + tokens_BTHWQ.astype("<i4").tobytes()
        try:
            if self._file is None:
                with atomic(self._path) as temporary:
                    temporary.write_bytes(self._line)
            file = self._file or self._open()
            start = file.seek(0, os.SEEK_END)
            file.write(record + CHECK.pack(zlib.crc32(record)))
            file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; free some space, then run again") from error
        self._places[bytes.fromhex(mark)] = start
