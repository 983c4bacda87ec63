"""The one idea: one trunk, every task is a layout. Training and sampling both build their sequences here.

A layout is an ordered list of segments. Each becomes slots with an input token, a position in (seconds, row, column), a
block number for attention, and a loss weight. Tasks differ in nothing else:

    text → video            [text][rate] <clip>
    image + text → video    [text][rate][first frame] <rest of the clip>
    continuation            [text][rate][last K latent frames] <next latent frames>
    interpolation           [text][rate][coarse clip][finer rate] <fine clip>

Known slots hold their own token. A generated slot holds the token generated one step before it (BEGIN at first) but has
its own position: it is asked "what stands here?", and its output predicts its own token. With `step` tokens generated
at once, a step's slots share a block and look one step back, so rows can be decoded in parallel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokvid.nn.attention import NEVER
from tokvid.types import AnyArray


class Text(NamedTuple):
    """A prompt: ids (B, L), padded with -1. All padding means no text."""

    ids_BL: AnyArray


class Rate(NamedTuple):
    """Frames per second (B,) of what follows."""

    fps_B: AnyArray


class Video(NamedTuple):
    """Latent frames at one rate: ids (B, T, H, W), the leading `known_B` latent frames of them given.

    `start_B` is the number of the first latent frame within its video: 0 where the video begins (that latent frame is a
    single picture). `temporal_patch` frames make every later one.
    """

    ids_BTHW: AnyArray
    start_B: AnyArray
    fps_B: AnyArray
    known_B: AnyArray
    temporal_patch: int


class Vocabulary(NamedTuple):
    """One table of input tokens: video codes, then BEGIN and RATE, then text pieces."""

    video: int
    text: int

    @property
    def begin(self) -> int:
        return self.video

    @property
    def rate(self) -> int:
        return self.video + 1

    @property
    def first_text(self) -> int:
        return self.video + 2

    @property
    def size(self) -> int:
        return self.video + 2 + self.text


class Sequence(NamedTuple):
    """Slots of a batch, all (B, L), position (B, L, 3): what the trunk reads, and what it is asked.

    `token` the input's row in the table; `fps` above 0 in rate slots; `order` the place in a text, else -1;
    `target` the video code to predict where `generated`.
    """

    token: Int[Array, "b l"]
    fps: Float[Array, "b l"]
    order: Int[Array, "b l"]
    position: Float[Array, "b l 3"]
    block: Int[Array, "b l"]
    target: Int[Array, "b l"]
    generated: Bool[Array, "b l"]

    def slots(self, start: int | jax.Array, count: int) -> "Sequence":
        """`count` slots from `start` on."""
        return Sequence(*(jax.lax.dynamic_slice_in_dim(field, start, count, axis=1) for field in self))


def build(segments: list[Text | Rate | Video], vocabulary: Vocabulary, step: int = 1) -> Sequence:
    """Lays the segments out one after another; `step` tokens are generated at a time.

    Blocks rise from segment to segment. A text, a rate, the known part of a video are one block each; generated tokens
    are one block a step. For a text of 2, a rate, and a video of 4 tokens with 2 known::

        block   0 0 | 1 | 2 2 5 6
        input   a b | R | p q B s      p q are given; B is BEGIN; s and t are generated
        target  . . | . | . . s t
    """
    parts, block = [], 0
    for segment in segments:
        if isinstance(segment, Text):
            part, block = _text(segment, vocabulary, block)
        elif isinstance(segment, Rate):
            part, block = _rate(segment, vocabulary, block)
        else:
            part, block = _video(segment, vocabulary, block, step)
        parts.append(part)
    return Sequence(*(jnp.concatenate(fields, axis=1) for fields in zip(*parts, strict=True)))


def latent_seconds(latent_T: jax.Array, fps: jax.Array, temporal_patch: int) -> jax.Array:
    """When a latent frame's last frame is shown: latent frame j ends at frame j·temporal_patch, frame 0 at 0 s."""
    return latent_T * temporal_patch / fps


def _text(text: Text, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    ids = text.ids_BL
    (B, L), real = ids.shape, ids >= 0
    zero = jnp.zeros((B, L), jnp.int32)
    return Sequence(
        token=jnp.where(real, ids + vocabulary.first_text, 0).astype(jnp.int32),
        fps=jnp.zeros((B, L), jnp.float32),
        order=jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), (B, L)),
        position=jnp.zeros((B, L, 3), jnp.float32),
        block=jnp.where(real, block, NEVER).astype(jnp.int32),
        target=zero,
        generated=zero.astype(bool),
    ), block + 1


def _rate(rate: Rate, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    fps = rate.fps_B[:, None].astype(jnp.float32)
    zero = jnp.zeros(fps.shape, jnp.int32)
    return Sequence(
        token=zero + vocabulary.rate,
        fps=fps,
        order=zero - 1,
        position=jnp.zeros((*fps.shape, 3), jnp.float32),
        block=zero + block,
        target=zero,
        generated=zero.astype(bool),
    ), block + 1


def _video(video: Video, vocabulary: Vocabulary, block: int, step: int) -> tuple[Sequence, int]:
    B, T, H, W = video.ids_BTHW.shape
    if T * H * W % step or H * W % step:
        raise ValueError(f"{step} tokens a step don't divide the {H}x{W} of a latent frame")
    ids = video.ids_BTHW.reshape(B, T * H * W).astype(jnp.int32)
    slot_L = jnp.arange(T * H * W)
    frame_L, row_L, column_L = slot_L // (H * W), slot_L // W % H, slot_L % W
    generated = frame_L[None] >= video.known_B[:, None]
    # The token of the slot one step back where that was generated, else BEGIN.
    back = jnp.pad(jnp.where(generated, ids, vocabulary.begin), ((0, 0), (step, 0)), constant_values=vocabulary.begin)
    # A window in mid-video counts from 1, so that only a real first frame stands at 0 seconds.
    latent = frame_L[None] + jnp.minimum(video.start_B, 1)[:, None]
    seconds = latent_seconds(latent, video.fps_B[:, None], video.temporal_patch)
    place = jnp.broadcast_to(jnp.stack([row_L, column_L], axis=-1), (B, T * H * W, 2))
    return Sequence(
        token=jnp.where(generated, back[:, : T * H * W], ids),
        fps=jnp.zeros(ids.shape, jnp.float32),
        order=jnp.full(ids.shape, -1, jnp.int32),
        position=jnp.concatenate([seconds[..., None], place], axis=-1).astype(jnp.float32),
        block=jnp.where(generated, block + 1 + slot_L // step, block).astype(jnp.int32),
        target=ids,
        generated=generated,
    ), block + 2 + T * H * W // step
