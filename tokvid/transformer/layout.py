"""The one idea: one trunk, every task is a layout. Training and sampling both build their sequences here.

A layout is an ordered list of segments. Each becomes slots with an input token, a position in (seconds, row, column), a
block number for attention, and a loss weight. Tasks differ in nothing else:

    text → video            [text][rate] <clip>
    image + text → video    [text][rate][first frame] <rest of the clip>
    continuation            [text][rate][last K latent frames] <next latent frames>
    infilling               [text][rate][any latent frames] <the others>
    interpolation           [text][rate][coarse clip][finer rate][last K latent frames] <next fine latent frames>

Known slots hold their own token and come first. A generated slot holds the token generated one step before it (BEGIN
at first) but has its own position: it is asked "what stands here?", and its output predicts its own token. With `step`
tokens generated at once, a step's slots share a block and look one step back, so rows are drawn in parallel. Where a
step is a whole latent frame, it is drawn in rounds (MaskGIT): slots that are drawn hold their own token, others BEGIN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokvid.nn.visibility import NEVER
from tokvid.types import AnyArray, Codes

NOTHING = -1  # a row of no table: adds nothing to a slot's input


class Text(NamedTuple):
    """A prompt: ids (B, L), padded with -1. All padding means no text."""

    ids_BL: AnyArray


class Rate(NamedTuple):
    """Frames per second (B,) of what follows."""

    fps_B: AnyArray


class Video(NamedTuple):
    """Latent frames at one rate: ids (B, T, H, W, Q), -1 where there is nothing, each shown at `seconds_BT`.

    Those in `known_BT` are given, the others generated, `step_B` tokens at once: 1, some rows, or a whole latent frame,
    of which `drawn_BTHW` stand already.
    """

    ids_BTHWQ: AnyArray
    seconds_BT: AnyArray
    known_BT: AnyArray
    step_B: AnyArray
    drawn_BTHW: AnyArray


class Vocabulary(NamedTuple):
    """One table of input tokens: video codes, each sub-code's after the other's, then BEGIN and RATE, then text pieces.

    A slot's input is the sum of its rows: one for each sub-code of a video token, else a single one.
    """

    codes: Codes
    text: int

    @property
    def begin(self) -> int:
        return self.codes.per_token * self.codes.vocabulary

    @property
    def rate(self) -> int:
        return self.begin + 1

    @property
    def first_text(self) -> int:
        return self.begin + 2

    @property
    def size(self) -> int:
        return self.first_text + self.text

    def of_video(self, ids_Q: AnyArray) -> jax.Array:
        """Sub-codes (..., Q) → their rows."""
        return jnp.asarray(ids_Q) + self.codes.vocabulary * jnp.arange(self.codes.per_token)

    def alone(self, row: AnyArray) -> jax.Array:
        """A row each (...) → (..., Q): nothing beside it."""
        row = jnp.asarray(row, jnp.int32)[..., None]
        return jnp.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, self.codes.per_token - 1)], constant_values=NOTHING)


class Sequence(NamedTuple):
    """Slots of a batch, all (B, L), position (B, L, 3), token and target (B, L, Q): what the trunk reads and is asked.

    `token` the input's rows in the table; `fps` above 0 in rate slots; `order` the place in a text, else -1; `step` how
    many tokens are generated together with this one, 0 where it is known; `target` the video code to predict where
    `generated`.
    """

    token: Int[Array, "b l q"]
    fps: Float[Array, "b l"]
    order: Int[Array, "b l"]
    step: Int[Array, "b l"]
    position: Float[Array, "b l 3"]
    block: Int[Array, "b l"]
    target: Int[Array, "b l q"]
    generated: Bool[Array, "b l"]

    def slots(self, start: int | jax.Array, count: int) -> "Sequence":
        """`count` slots from `start` on."""
        return Sequence(*(jax.lax.dynamic_slice_in_dim(field, start, count, axis=1) for field in self))

    def padded(self, multiple: int) -> "Sequence":
        """With slots at the end that nothing sees, so that their number is a multiple."""
        if not (more := -self.token.shape[1] % multiple):
            return self
        longer = (jnp.pad(field, ((0, 0), (0, more), *[(0, 0)] * (field.ndim - 2))) for field in self)
        block_BL = jnp.pad(self.block, ((0, 0), (0, more)), constant_values=NEVER)
        return Sequence(*longer)._replace(block=block_BL)


def build(segments: list[Text | Rate | Video], vocabulary: Vocabulary) -> Sequence:
    """Lays the segments out one after another.

    Blocks rise from segment to segment. A text, a rate, the known part of a video are one block each; generated tokens
    are one block a step. For a text of 2, a rate, and a video of 4 tokens with 2 known::

        block   0 0 | 1 | 2 2 3 4
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
            part, block = _video(segment, vocabulary, block)
        parts.append(part)
    return Sequence(*(jnp.concatenate(fields, axis=1) for fields in zip(*parts, strict=True)))


def corrupted(sequence: Sequence, video: int, most: float, vocabulary: Vocabulary, key: jax.Array) -> Sequence:
    """With some input tokens of the last `video` slots replaced by those that another sample of the batch has there.

    What is sampled goes on from tokens of its own making, which are worse than those it was trained on; a model that
    has seen wrong ones doesn't let errors grow (Infinity, section 3.3). The share rises from 0 at the clip's beginning
    to a random number of at most `most`, each sample's own, at its end. Targets stay.
    """
    token_BLQ = sequence.token[:, -video:]
    share_key, slot_key = jax.random.split(key)
    share_B1 = jax.random.uniform(share_key, (len(token_BLQ), 1), maxval=most)
    drawn_BL = jax.random.uniform(slot_key, token_BLQ.shape[:2]) < share_B1 * jnp.linspace(0, 1, video)
    others_BLQ = jnp.roll(token_BLQ, 1, axis=0)
    both_BL = (token_BLQ[..., 0] < vocabulary.begin) & (others_BLQ[..., 0] < vocabulary.begin)
    replaced_BLQ = jnp.where((drawn_BL & both_BL)[..., None], others_BLQ, token_BLQ)
    return sequence._replace(token=jnp.concatenate([sequence.token[:, :-video], replaced_BLQ], axis=1))


def latent_seconds(latent_T: jax.Array, fps: jax.Array, temporal_patch: int) -> jax.Array:
    """When a latent frame's last frame is shown: latent frame j ends at frame j·temporal_patch, frame 0 at 0 s."""
    return latent_T * temporal_patch / fps


def _text(text: Text, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    ids = text.ids_BL
    (B, L), real = ids.shape, ids >= 0
    zero = jnp.zeros((B, L), jnp.int32)
    return Sequence(
        token=vocabulary.alone(jnp.where(real, ids + vocabulary.first_text, 0)),
        fps=jnp.zeros((B, L), jnp.float32),
        order=jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), (B, L)),
        step=zero,
        position=jnp.zeros((B, L, 3), jnp.float32),
        block=jnp.where(real, block, NEVER).astype(jnp.int32),
        target=jnp.zeros((B, L, vocabulary.codes.per_token), jnp.int32),
        generated=zero.astype(bool),
    ), block + 1


def _rate(rate: Rate, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    fps = rate.fps_B[:, None].astype(jnp.float32)
    zero = jnp.zeros(fps.shape, jnp.int32)
    return Sequence(
        token=vocabulary.alone(zero + vocabulary.rate),
        fps=fps,
        order=zero - 1,
        step=zero,
        position=jnp.zeros((*fps.shape, 3), jnp.float32),
        block=zero + block,
        target=jnp.zeros((*fps.shape, vocabulary.codes.per_token), jnp.int32),
        generated=zero.astype(bool),
    ), block + 1


def _video(video: Video, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    B, T, H, W, _ = video.ids_BTHWQ.shape
    # Known latent frames first: whichever they are, what is generated is the end of the sequence.
    frame_BT = jnp.argsort(~video.known_BT, axis=1, stable=True)

    def in_order(x_BTHW: AnyArray) -> jax.Array:
        of = frame_BT.reshape(B, T, *[1] * (x_BTHW.ndim - 2))
        return jnp.take_along_axis(jnp.asarray(x_BTHW), of, axis=1).reshape(B, T * H * W, *x_BTHW.shape[4:])

    ids, slot_L, step_B1 = in_order(video.ids_BTHWQ), jnp.arange(T * H * W), jnp.asarray(video.step_B)[:, None]
    rank = slot_L - H * W * video.known_BT.sum(axis=1, keepdims=True)  # among what is generated; below 0: known
    # The first row of a video has no row above it, so rows wait until it is drawn token by token.
    lead_B1 = jnp.where((step_B1 > 1) & (step_B1 < H * W) & ~video.known_BT.any(axis=1, keepdims=True), W, 0)
    step = jnp.where(rank < lead_B1, 1, step_B1)
    number = jnp.where(rank < lead_B1, rank, lead_B1 + (rank - lead_B1) // step_B1)  # of the step
    rows = vocabulary.of_video(jnp.maximum(ids, 0))
    before = jnp.take_along_axis(rows, jnp.maximum(slot_L - step, 0)[..., None], axis=1)
    drawn = in_order(video.drawn_BTHW) & (step_B1 == H * W)
    begin = vocabulary.alone(jnp.full(rank.shape, vocabulary.begin))
    asked = jnp.where(((rank >= step) & (step_B1 < H * W))[..., None], before, begin)
    known, there = rank < 0, ids[..., 0] >= 0
    seconds = jnp.repeat(jnp.take_along_axis(jnp.asarray(video.seconds_BT), frame_BT, axis=1), H * W, axis=1)
    place = jnp.broadcast_to(jnp.stack([slot_L // W % H, slot_L % W], axis=-1), (B, T * H * W, 2))
    return Sequence(
        token=jnp.where((known | drawn)[..., None], rows, asked).astype(jnp.int32),
        fps=jnp.zeros(rank.shape, jnp.float32),
        order=jnp.full(rank.shape, -1, jnp.int32),
        step=jnp.where(known, 0, step).astype(jnp.int32),
        position=jnp.concatenate([seconds[..., None], place], axis=-1).astype(jnp.float32),
        block=jnp.where(there, jnp.where(known, block, block + 1 + number), NEVER).astype(jnp.int32),
        target=jnp.maximum(ids, 0).astype(jnp.int32),
        generated=~known & ~drawn,
    ), block + 1 + T * H * W
