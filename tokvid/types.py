"""The types that rooms exchange, and the dimension letters in the names of tensors.

Letters: B batch, T frames or latent frames, H W rows and columns (pixels or latent grid), C channels, L flat tokens,
S cache length, Q sub-codes of a token, D model width, N heads, K key/value heads, E head width, F mlp width,
V vocabulary. In checked shapes they are lower case, with tl hl wl for latent frames, rows and columns.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from tokvid.errors import UserError

AnyArray: TypeAlias = Any  # NumPy on the host, JAX on the device; this file needs no JAX


@dataclasses.dataclass(frozen=True)
class Caption:
    """A text in force from `start` (seconds) until the next caption of the same video."""

    start: float
    text: str


def captions_in_force(captions: tuple[Caption, ...], latent_frames: int, fps: float, temporal_patch: int) -> np.ndarray:
    """The index of each latent frame's caption, the one in force at the middle of its frames: int64 (T,).

    Latent frame 0 is frame 0; latent frame j >= 1 is the frames (j-1)p + 1 up to jp, for temporal patch p.
    """
    middle_T = (np.arange(latent_frames) - 1) * temporal_patch + (temporal_patch + 1) / 2
    middle_T[:1] = 0
    starts = [caption.start for caption in captions]
    return np.maximum(np.searchsorted(starts, middle_T / fps + 1e-6, side="right") - 1, 0)


class VideoItem(Protocol):
    """One video of a dataset, decoded only when read.

    `seconds` is its length; `captions` are in order of their starts, the first at 0; `key` is its name in messages.
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
    """A random-access dataset of videos: a data source of grain."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> VideoItem: ...


class Codes(NamedTuple):
    """The format of a token: `per_token` sub-codes, each one of `vocabulary` codes.

    A token of one sub-code is a code in most systems; several hold more bits than a softmax can have classes.
    """

    vocabulary: int
    per_token: int = 1

    @property
    def bits(self) -> float:
        """The bits of a token."""
        return self.per_token * math.log2(self.vocabulary)


class VideoBatch(NamedTuple):
    """Clips for the tokenizer.

    video: uint8 (B, T, H, W, 3); fps: float32 (B,); images: uint8 (B, I, H, W, 3), unrelated to the clips; text: int32
    (B, L) ids of the clips' captions, padded with -1, L 0 where nothing reads them.
    """

    video: AnyArray
    fps: AnyArray
    images: AnyArray
    text: AnyArray


class Clip(NamedTuple):
    """Tokens of a condition.

    tokens: int32 (B, T, H, W, Q), padded with -1; start: int32 (B,), the number of their first latent frame; fps:
    float32 (B,); condition: int32 (B,), the number of its embedding, 0 for none.
    """

    tokens: AnyArray
    start: AnyArray
    fps: AnyArray
    condition: AnyArray


class TokenBatch(NamedTuple):
    """The interface between tokenizer and transformer: windows of tokens.

    tokens: int32 (B, T, H, W, Q), Q sub-codes a token; start: int32 (B,), the number of the window's first latent
    frame, 0 at the video's beginning; fps: float32 (B,); text: int32 (B, L), padded with -1, or a T5's hidden
    states, float (B, L, E), padded with zeros; known: bool (B, T, H, W), the tokens not to generate; stride: int32
    (B,), the tokens of a step (`stride_of`); drawn: bool (B, T, H, W), the tokens that are fixed already where the
    stride is a whole latent frame; conditions: other videos that the tasks read.
    """

    tokens: AnyArray
    start: AnyArray
    fps: AnyArray
    text: AnyArray
    known: AnyArray
    stride: AnyArray
    drawn: AnyArray
    conditions: tuple[Clip, ...]


def token_batch(
    tokens: AnyArray,
    start: AnyArray,
    fps: AnyArray,
    text: AnyArray,
    known: AnyArray | None = None,
    conditions: Sequence[Clip] = (),
) -> TokenBatch:
    """A `TokenBatch` with a stride of one token. `known`, by default nothing, may be of latent frames, (B, T)."""
    B, T, H, W, _ = tokens.shape
    if known is None:
        known = np.zeros((B, T), bool)
    if known.ndim == 2:
        known = np.broadcast_to(np.asarray(known)[:, :, None, None], (B, T, H, W))
    stride, drawn = np.ones(B, np.int32), np.zeros((B, T, H, W), bool)
    return TokenBatch(tokens, start, fps, text, known, stride, drawn, tuple(conditions))


Joined = TypeVar("Joined", bound=tuple)


def joined(samples: Sequence[Joined], how: Callable[[Sequence[np.ndarray]], np.ndarray]) -> Joined:
    """Joins NamedTuples of arrays, and of tuples of such, field by field."""
    fields = [
        tuple(joined(each, how) for each in zip(*field, strict=True)) if isinstance(field[0], tuple) else how(field)
        for field in zip(*samples, strict=True)
    ]
    return type(samples[0])(*fields)


def stride_of(rows: int, latent: tuple[int, int, int]) -> int:
    """The tokens of a step that draws `rows` rows of a latent frame; 0 is token by token.

    UserError where the rows don't divide the latent frame.
    """
    _, height, width = latent
    if rows < 0 or (rows and height % rows):
        divisors = [divisor for divisor in range(1, height + 1) if height % divisor == 0]
        raise UserError(f"rows should be 0 (token by token) or divide a latent frame, {divisors}; got {rows}")
    return rows * width or 1


class LatentShape(NamedTuple):
    """The latent frames, rows and columns of a clip's tokens."""

    frames: int
    rows: int
    columns: int
