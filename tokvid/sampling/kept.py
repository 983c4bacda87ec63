"""Generated windows kept in a file, and found again by the mark of all that determines their tokens.

So a story that was interrupted resumes, and one that changes from some second on keeps what comes before.
"""

import hashlib
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int

from tokvid.errors import UserError
from tokvid.io.files import atomic
from tokvid.sampling.stream import Models

HEAD = struct.Struct("<32sII")  # a record: its mark, the videos of its batch, their latent frames,
CHECK = struct.Struct("<I")  # then tokens as int32, and a checksum of all before


class KeptWindows:
    """A file of windows, in a `with` statement; a file of other models is replaced.

    Records are only appended, so a torn or damaged one ends what is read: it is generated again, with all later ones.
    """

    def __init__(self, path: Path, models: Models):
        self._path, self._shape = path, models.no_tokens(1).shape[2:]
        mark = hashlib.sha256(f"{models.mark} {self._shape}".encode()).hexdigest()[:16]
        self._line = f"tokvid windows {mark}\n".encode()
        self._places: dict[str, tuple[int, int, int]] = {}  # of tokens in the file: first byte, videos, latent frames

    def __enter__(self) -> "KeptWindows":
        if not self._belongs():
            with atomic(self._path) as temporary:
                temporary.write_bytes(self._line)
        self._file = open(self._path, "r+b")
        end = self._file.seek(len(self._line))
        while self._reads_record():
            end = self._file.tell()
        self._file.truncate(end)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _belongs(self) -> bool:
        try:
            with open(self._path, "rb") as file:
                return file.read(len(self._line)) == self._line
        except FileNotFoundError:
            return False

    def _bytes(self, videos: int, latent_frames: int) -> int:
        return 4 * videos * latent_frames * math.prod(self._shape)

    def _reads_record(self) -> bool:
        """Whether a whole and undamaged record follows, which then is known."""
        if len(head := self._file.read(HEAD.size)) < HEAD.size:
            return False
        mark, videos, latent_frames = HEAD.unpack(head)
        start, count = self._file.tell(), self._bytes(videos, latent_frames)
        if start + count > os.fstat(self._file.fileno()).st_size:
            return False
        tokens, check = self._file.read(count), self._file.read(CHECK.size)
        if check != CHECK.pack(zlib.crc32(head + tokens)):
            return False
        self._places[mark.decode("ascii")] = (start, videos, latent_frames)
        return True

    def get(self, mark: str) -> Int[np.ndarray, "b t h w q"] | None:
        """The tokens (B, T, H, W, Q) that were added under this mark, or None."""
        if mark not in self._places:
            return None
        start, videos, latent_frames = self._places[mark]
        self._file.seek(start)
        tokens = np.frombuffer(self._file.read(self._bytes(videos, latent_frames)), "<i4")
        return tokens.reshape(videos, latent_frames, *self._shape).astype(np.int32)

    def __setitem__(self, mark: str, tokens_BTHWQ: Int[np.ndarray, "b t h w q"]) -> None:
        """Appends a window."""
        videos, latent_frames = tokens_BTHWQ.shape[:2]
        record = HEAD.pack(mark.encode(), videos, latent_frames) + tokens_BTHWQ.astype("<i4").tobytes()
        try:
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(record + CHECK.pack(zlib.crc32(record)))
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; free some space, then run again") from error
        self._places[mark] = (start + HEAD.size, videos, latent_frames)
