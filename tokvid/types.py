"""What the rooms hand to one another, and the dimension letters that every tensor's name carries.

Letters: B batch, T frames or latent frames, H W rows and columns (pixels or latent grid), C channels, L flat tokens,
S cache length, Q sub-codes of a token, D model width, N heads, K key/value heads, E head width, F mlp width,
V vocabulary. In checked shapes they are lower case, with tl hl wl for latent frames, rows and columns.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from tokvid.errors import UserError

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


class Codes(NamedTuple):
    """What a token is: so many sub-codes, each one of `vocabulary` codes.

    A token of one sub-code is what most systems call a code; several hold more bits than one softmax can have classes.
    """

    vocabulary: int
    per_token: int = 1

    @property
    def bits(self) -> float:
        """Of a token."""
        return self.per_token * math.log2(self.vocabulary)


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

    tokens int32 (B, T, H, W, Q) video codes of one window, Q sub-codes a token; start int32 (B,) the window's first
    latent frame, 0 where the video begins; fps float32 (B,); text int32 (B, L) padded with -1; known bool (B, T) which
    latent frames are given (none: text to video); step int32 (B,) how many tokens are generated at once
    (`tokens_at_once`); drawn bool (B, T, H, W) where a step is a whole latent frame, which of its tokens stand already.

    coarse int32 (B, T', H, W, Q) the same video at a lower rate, padded with -1, T' 0 where nothing is interpolated;
    its coarse_start (B,) and coarse_fps (B,) as above.
    """

    tokens: AnyArray
    start: AnyArray
    fps: AnyArray
    text: AnyArray
    known: AnyArray
    step: AnyArray
    drawn: AnyArray
    coarse: AnyArray
    coarse_start: AnyArray
    coarse_fps: AnyArray


def token_batch(
    tokens: AnyArray,
    start: AnyArray,
    fps: AnyArray,
    text: AnyArray,
    known: AnyArray | None = None,
    coarse: AnyArray | None = None,
    coarse_start: AnyArray | None = None,
    coarse_fps: AnyArray | None = None,
) -> TokenBatch:
    """A `TokenBatch` generated token by token: nothing known and nothing coarse unless said."""
    B, T, H, W, Q = tokens.shape
    return TokenBatch(
        tokens=tokens,
        start=start,
        fps=fps,
        text=text,
        known=np.zeros((B, T), bool) if known is None else known,
        step=np.ones(B, np.int32),
        drawn=np.zeros((B, T, H, W), bool),
        coarse=np.zeros((B, 0, H, W, Q), np.int32) if coarse is None else coarse,
        coarse_start=np.zeros(B, np.int32) if coarse_start is None else coarse_start,
        coarse_fps=np.ones(B, np.float32) if coarse_fps is None else coarse_fps,
    )


def tokens_at_once(rows: int, latent: tuple[int, int, int]) -> int:
    """How many tokens a step generates that draws so many rows of a latent frame; `rows` 0 is token by token.

    UserError where they don't divide the latent frame.
    """
    _, height, width = latent
    if rows < 0 or (rows and height % rows):
        divisors = [divisor for divisor in range(1, height + 1) if height % divisor == 0]
        raise UserError(f"rows should be 0 (token by token) or divide a latent frame, {divisors}; got {rows}")
    return rows * width or 1


class LatentShape(NamedTuple):
    """Latent frames, rows and columns of a clip's tokens."""

    frames: int
    rows: int
    columns: int
