"""What the rooms hand to one another, and the dimension letters that every tensor's name carries.

Letters: B batch, T frames or latent frames, H W rows and columns (pixels or latent grid), C channels, L flat tokens,
S cache length, D model width, N heads, K key/value heads, E head width, F mlp width, V vocabulary.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

AnyArray: TypeAlias = Any  # NumPy on the host, jax on the device; this room itself needs no jax


@dataclasses.dataclass(frozen=True)
class Caption:
    """A text that holds from `start` (seconds) until the next caption of the same video."""

    start: float
    text: str


class VideoItem(Protocol):
    """One video of a dataset, decoded only when read.

    `seconds` is its length, `captions` are in order of their start (the first starts at 0), `key` names it for people.
    """

    @property
    def seconds(self) -> float: ...

    @property
    def captions(self) -> tuple[Caption, ...]: ...

    @property
    def key(self) -> str: ...

    def read(self, start: float, fps: float, frames: int, size: tuple[int, int]) -> np.ndarray:
        """Frames at times start + i/fps (seconds), resized to (height, width): uint8 (T, H, W, 3)."""
        ...


class VideoSource(Protocol):
    """A random-access dataset of videos; what grain calls a data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> VideoItem: ...


class VideoBatch(NamedTuple):
    """Clips for the tokenizer.

    video uint8 (B, T, H, W, 3); fps float32 (B,); images uint8 (B, I, H, W, 3) that have nothing to do with them; text
    int32 (B, L) of their captions, padded with -1, L 0 where nothing reads them.
    """

    video: AnyArray
    fps: AnyArray
    images: AnyArray
    text: AnyArray


class TokenBatch(NamedTuple):
    """What the tokenizer and the transformer meet in.

    tokens int32 (B, T, H, W) video codes of one window; start int32 (B,) the window's first latent frame, 0 where the
    video begins; fps float32 (B,); text int32 (B, L) padded with -1; known int32 (B,) how many leading latent frames
    are given (0: text to video).
    """

    tokens: AnyArray
    start: AnyArray
    fps: AnyArray
    text: AnyArray
    known: AnyArray


class LatentShape(NamedTuple):
    """Latent frames, rows and columns of a clip's tokens."""

    frames: int
    rows: int
    columns: int
