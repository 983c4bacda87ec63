"""One trunk, every task a layout: all facts about layouts, for training and sampling alike.

A layout is an ordered list of segments. Each becomes slots with an input token, a position in (seconds, row, column), a
block number for attention, and a flag for generated slots. Tasks differ only in their layouts:

    text → video            [text][rate] <clip>
    image + text → video    [text][rate][first frame] <rest of the clip>
    continuation            [text][rate][last K latent frames] <next latent frames>
    infilling               [text][rate][any tokens] <the others>
    from another video      [text][its rate][condition][rate][last K latent frames] <next latent frames>

Known slots hold their own token and come first. A generated slot holds the token generated one step before it (BEGIN
for the first) but has its own position, and its output predicts its own token. With a stride of several tokens, the
slots of a step share a block and look one step back, so rows are drawn in parallel. Where the stride is a whole latent
frame, it is drawn in rounds (MaskGIT): drawn slots hold their own token, the others BEGIN.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from tokvid.config import TransformerConfig
from tokvid.errors import UserError
from tokvid.nn.visibility import NEVER
from tokvid.tasks.conditions import CONDITIONS
from tokvid.types import AnyArray, Clip, Codes, TokenBatch, stride_of

NOTHING = -1  # no row of the table: adds nothing to a slot's input; no token
AT_ONCE = 1e-3  # seconds: latent frames that end closer together end at once


class Text(NamedTuple):
    """A prompt: ids (B, L), padded with -1; all padding is no text."""

    ids_BL: Int[AnyArray, "b l"]


class States(NamedTuple):
    """A prompt as a T5's hidden states (B, L, E), padded with zeros; all padding is no text."""

    states_BLE: Float[AnyArray, "b l e"]


class Rate(NamedTuple):
    """Frames per second (B,) of the video that follows."""

    fps_B: Float[AnyArray, " b"]


class Video(NamedTuple):
    """Latent frames at one rate: ids (B, T, H, W, Q), -1 for padding, shown at `seconds_BT`.

    Tokens in `known_BTHW` are known, the others generated, `stride_B` at once: 1, some rows, or a whole latent frame,
    of which `drawn_BTHW` are fixed already. `slower_BTHWQ` are the tokens of a slower video at the same places.
    """

    ids_BTHWQ: Int[AnyArray, "b t h w q"]
    seconds_BT: Float[AnyArray, "b t"]
    known_BTHW: Bool[AnyArray, "b t h w"]
    stride_B: Int[AnyArray, " b"]
    drawn_BTHW: Bool[AnyArray, "b t h w"]
    slower_BTHWQ: Int[AnyArray, "b t h w q"]


class Condition(NamedTuple):
    """A known video: ids and seconds as in `Video`; a token covers `spread` x `spread` tokens of the clip.

    `number_B` is the number of its embedding, 0 for none.
    """

    ids_BTHWQ: Int[AnyArray, "b t h w q"]
    seconds_BT: Float[AnyArray, "b t"]
    number_B: Int[AnyArray, " b"]
    spread: int = 1


Segment = Text | States | Rate | Video | Condition


class Vocabulary(NamedTuple):
    """The table of input tokens: video codes, sub-code by sub-code, then BEGIN and RATE, then text pieces.

    A slot's input is a sum of rows: one for each sub-code of a video token, a single one otherwise.
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

    def of_video(self, ids_Q: Int[AnyArray, "*n q"]) -> Int[Array, "*n q"]:
        """Sub-codes (..., Q) → their rows."""
        return jnp.asarray(ids_Q) + self.codes.vocabulary * jnp.arange(self.codes.per_token)

    def alone(self, row: int | Int[AnyArray, "*n"]) -> Int[Array, "*n {self.codes.per_token}"]:
        """Single rows (...) → (..., Q), padded with NOTHING."""
        row = jnp.asarray(row, jnp.int32)[..., None]
        return jnp.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, self.codes.per_token - 1)], constant_values=NOTHING)


class Sequence(NamedTuple):
    """Slots of a batch, all (B, L), position (B, L, 3), token and target (B, L, Q): the trunk's inputs and targets.

    `token`: the input's rows in the table; `fps`: above 0 in rate slots; `order`: the place in a text, else -1;
    `stride`: the number of tokens in this one's step, 0 for known tokens; `condition`: the number of a condition's
    embedding, else 0; `state` (B, L, E): a T5's hidden states, E 0 without one; `target`: the video code to predict
    where `generated`; `previous`: the slot, among its segment's, of the token at the same place one latent frame
    before, else -1; `slower` (B, L, Q): the token at the same place in a slower video that is given, in its latent
    frame that ends with this one or next after it, else -1.
    """

    token: Int[Array, "b l q"]
    fps: Float[Array, "b l"]
    order: Int[Array, "b l"]
    stride: Int[Array, "b l"]
    condition: Int[Array, "b l"]
    state: Float[Array, "b l e"]
    position: Float[Array, "b l 3"]
    block: Int[Array, "b l"]
    target: Int[Array, "b l q"]
    generated: Bool[Array, "b l"]
    previous: Int[Array, "b l"]
    slower: Int[Array, "b l q"]

    def slots(self, start: int | Int[Array, ""], count: int) -> "Sequence":
        """`count` slots from `start` on."""
        return Sequence(*(jax.lax.dynamic_slice_in_dim(field, start, count, axis=1) for field in self))

    def padded(self, multiple: int) -> "Sequence":
        """Padded to a multiple of slots with ones that nothing sees."""
        if not (more := -self.token.shape[1] % multiple):
            return self
        longer = (jnp.pad(field, ((0, 0), (0, more), *[(0, 0)] * (field.ndim - 2))) for field in self)
        block_BL = jnp.pad(self.block, ((0, 0), (0, more)), constant_values=NEVER)
        return Sequence(*longer)._replace(block=block_BL)


def lay_out(config: TransformerConfig, batch: TokenBatch) -> Sequence:
    """The layout of any task; tasks differ in the known tokens, the conditions and the stride."""
    if batch.text.shape[1] > config.text_length:  # XLA would clamp the places beyond to the last
        raise UserError(f"{batch.text.shape[1]} text tokens are too many: the model reads at most {config.text_length}")
    segments: list[Segment] = [States(batch.text) if batch.text.ndim == 3 else Text(batch.text)]
    seconds_BT, slower_BTHWQ = _seconds(config, batch, batch), jnp.full(batch.tokens.shape, NOTHING)
    for clip in batch.conditions:
        spread, its_seconds_BT = batch.tokens.shape[2] // clip.tokens.shape[2], _seconds(config, batch, clip)
        segments += [Rate(clip.fps), Condition(clip.tokens, its_seconds_BT, clip.condition, spread)]
        if spread == 1:
            slower_BTHWQ = jnp.maximum(slower_BTHWQ, _at_once(clip, its_seconds_BT, seconds_BT))
    segments += [
        Rate(batch.fps),
        Video(batch.tokens, seconds_BT, batch.known, batch.stride, batch.drawn, slower_BTHWQ),
    ]
    return build(segments, vocabulary_of(config))


def clip_slots(batch: TokenBatch) -> slice:
    """The slots of the batch's window in its sequence. Text, rates and conditions are never predicted."""
    return slice(-math.prod(batch.tokens.shape[1:4]), None)


def slot_count(
    config: TransformerConfig, frames: int | None = None, conditions: Several[tuple[int, int, int]] = ()
) -> int:
    """The slots of a window of `frames` latent frames (default: the config's) with conditions of shapes (T, H, W)."""
    whole, rows, columns = config.latent
    beside = sum(1 + math.prod(shape) for shape in conditions)
    return config.text_length + beside + 1 + (frames or whole) * rows * columns


def condition_shape(config: TransformerConfig, name: str) -> tuple[int, int, int]:
    """The latent frames, rows and columns of a condition that a window sees."""
    condition, (frames, rows, columns) = CONDITIONS[name], config.latent
    return condition.span(0, frames)[1], rows // condition.smaller, columns // condition.smaller


def condition_number(config: TransformerConfig, name: str) -> int:
    """The number of a condition's embedding, 0 for none."""
    return config.conditions.index(name) + 1 if name in config.conditions else 0


class Schedule(NamedTuple):
    """The steps that draw a window's tokens: the first `lead` one by one, then `stride` at each step."""

    lead: AnyArray
    stride: int


def schedule(latent: tuple[int, int, int], rows: int, given: AnyArray) -> Schedule:
    """The schedule that draws `rows` rows at once (0: token by token); `given`: whether any token is known."""
    stride = stride_of(rows, latent)
    return Schedule(_lead(stride, given, latent), stride)


def _lead(stride: AnyArray, given: AnyArray, latent: tuple[int, ...]) -> AnyArray:
    """The tokens drawn one by one before rows are: a video's first rows, as many as a step's, which have none above."""
    _, H, W = latent
    return stride * ((stride > 1) & (stride < H * W) & (given == 0))


def in_order(known_BTHW: Bool[AnyArray, "b t h w"]) -> Int[Array, "b t*h*w"]:
    """The tokens of a window (B, L) in the order of their slots: known ones first, generated ones last."""
    return jnp.argsort(~jnp.asarray(known_BTHW).reshape(len(known_BTHW), -1), axis=1, stable=True)


def vocabulary_of(config: TransformerConfig) -> Vocabulary:
    """The table of input tokens for a config."""
    return Vocabulary(Codes(config.vocabulary, config.subcodes), 0 if config.text_width else config.text_vocabulary)


def build(segments: Several[Segment], vocabulary: Vocabulary) -> Sequence:
    """Lays segments out one after another.

    Blocks rise from segment to segment. A text, a rate, a condition and the known part of a video are one block each;
    the generated tokens of a step are one. For a text of 2, a rate, and a video of 4 tokens with 2 known::

        block   0 0 | 1 | 2 2 3 4
        input   a b | R | p q B s      p and q are known; B is BEGIN; s and t are generated
        target  . . | . | . . s t
    """
    parts, block = [], 0
    for segment in segments:
        part, more = _SLOTS[type(segment)](segment, vocabulary, block)
        parts.append(part)
        block += more
    width = max(part.state.shape[2] for part in parts)  # only a text has states
    wider = [((0, 0), (0, 0), (0, width - part.state.shape[2])) for part in parts]
    parts = [part._replace(state=jnp.pad(part.state, pads)) for part, pads in zip(parts, wider, strict=True)]
    return Sequence(*(jnp.concatenate(fields, axis=1) for fields in zip(*parts, strict=True)))


def as_generated(
    config: TransformerConfig, tokens_XQ: Int[np.ndarray, "*x q"], known_X: Bool[np.ndarray, "*x"]
) -> Int[np.ndarray, "*x q"]:
    """Tokens of real video, on the host; those that aren't known have only the sub-codes that are generated.

    A real first frame has more of them. Absent tokens (-1) stay absent.
    """
    if not config.generated:
        return tokens_XQ
    silent_XQ = (np.arange(config.subcodes) >= config.generated) & ~known_X[..., None] & (tokens_XQ >= 0)
    return np.where(silent_XQ, np.int32(config.silent), tokens_XQ)


def tokens_before(target_BSQ: Int[AnyArray, "b s q"], previous_BL: Int[AnyArray, "b l"]) -> Int[Array, "b l q"]:
    """The tokens one latent frame before those of some slots, from all tokens of a window in its slots; -1 for none."""
    ids_BLQ = jnp.take_along_axis(target_BSQ, jnp.maximum(previous_BL, 0)[..., None], axis=1)
    return jnp.where(previous_BL[..., None] >= 0, ids_BLQ, NOTHING)


def stalled(tokens_BTHWQ: Int[AnyArray, "b t h w q"], most: float, key: PRNGKeyArray) -> Int[Array, "b t h w q"]:
    """Videos in which some tokens have stopped: they are those of the latent frame before, which may have stopped, too.

    A model whose head copies makes this error above all others, and then takes the scene for a still one. Trained to
    continue such videos with the true tokens, it moves on. At most `most` of a sample's tokens stop, a random share; in
    half of the samples, whole latent frames do. What is absent stays absent.
    """
    B, T, H, W, _ = tokens_BTHWQ.shape
    share_key, kind_key, frame_key, token_key = jax.random.split(key, 4)
    share_B1 = jax.random.uniform(share_key, (B, 1), maxval=most)
    frames_BT = jax.random.uniform(frame_key, (B, T)) < share_B1
    tokens_BTHW = jax.random.uniform(token_key, (B, T, H, W)) < share_B1[..., None, None]
    whole_B111 = jax.random.bernoulli(kind_key, shape=(B, 1, 1, 1))
    stops_BTHW = jnp.where(whole_B111, frames_BT[..., None, None], tokens_BTHW)
    seen = [jnp.asarray(tokens_BTHWQ)[:, 0]]
    for t in range(1, T):  # a window has few
        present_BHWQ = (tokens_BTHWQ[:, t] >= 0) & (seen[-1] >= 0)
        seen.append(jnp.where(stops_BTHW[:, t, ..., None] & present_BHWQ, seen[-1], tokens_BTHWQ[:, t]))
    return jnp.stack(seen, axis=1)


def corrupted(sequence: Sequence, clip: slice, most: float, vocabulary: Vocabulary, key: PRNGKeyArray) -> Sequence:
    """Some input tokens of the `clip_slots` replaced by another sample's; targets stay.

    Sampling continues from generated tokens, which are worse than the true ones seen in training; a model trained with
    wrong tokens doesn't let errors grow (Infinity, section 3.3). The share of replaced tokens rises from 0 at the
    clip's beginning to a random number of at most `most` at its end, drawn for each sample. A head that copies still
    sees the true tokens before.
    """
    token_BLQ = sequence.token[:, clip]
    share_key, slot_key = jax.random.split(key)
    share_B1 = jax.random.uniform(share_key, (len(token_BLQ), 1), maxval=most)
    drawn_BL = jax.random.uniform(slot_key, token_BLQ.shape[:2]) < share_B1 * jnp.linspace(0, 1, token_BLQ.shape[1])
    others_BLQ = jnp.roll(token_BLQ, 1, axis=0)
    both_BL = (token_BLQ[..., 0] < vocabulary.begin) & (others_BLQ[..., 0] < vocabulary.begin)
    replaced_BLQ = jnp.where((drawn_BL & both_BL)[..., None], others_BLQ, token_BLQ)
    return sequence._replace(token=sequence.token.at[:, clip].set(replaced_BLQ))


def latent_seconds(
    latent_T: Num[AnyArray, "*#n"], fps: float | Num[AnyArray, "*#n"], temporal_patch: int
) -> Num[AnyArray, "*#n"]:
    """The time of a latent frame's last frame: latent frame j ends at frame j·temporal_patch, frame 0 is at 0 s."""
    return latent_T * temporal_patch / fps


def _seconds(config: TransformerConfig, batch: TokenBatch, clip: Clip | TokenBatch) -> Float[AnyArray, "b t"]:
    """The times of the latent frames (B, T) of the window itself or of a condition.

    A window in mid-video counts from 1, so that only a video's first frame stands at 0 seconds.
    """
    number_BT = clip.start[:, None] + jnp.arange(clip.tokens.shape[1])
    before_B1 = jnp.maximum(batch.start - 1, 0)[:, None]
    before = latent_seconds(before_B1, batch.fps[:, None], config.temporal_patch)
    return latent_seconds(number_BT, clip.fps[:, None], config.temporal_patch) - before


def _at_once(
    clip: Clip, its_seconds_BS: Float[AnyArray, "b s"], seconds_BT: Float[AnyArray, "b t"]
) -> Int[Array, "b t h w q"]:
    """The tokens of a condition in the latent frames that end at these seconds or next after them; -1 for none.

    A condition with an embedding looks otherwise than the window: it has none of its tokens.
    """
    ends_BTS = its_seconds_BS[:, None] >= seconds_BT[:, :, None] - AT_ONCE
    if clip.tokens.shape[1] == 1:  # a picture is there all the time
        ends_BTS = jnp.ones_like(ends_BTS)
    frame_BT111 = jnp.argmax(ends_BTS, axis=2)[..., None, None, None]
    ids_BTHWQ = jnp.take_along_axis(jnp.asarray(clip.tokens), frame_BT111, axis=1)
    looks_alike_BT = ends_BTS.any(axis=2) & (clip.condition == 0)[:, None]
    return jnp.where(looks_alike_BT[..., None, None, None], ids_BTHWQ, NOTHING)


def _slots(token_BLQ: Int[Array, "b l q"], block_BL: int | Int[AnyArray, "b l"], **fields: AnyArray) -> Sequence:
    """Known slots with the defaults for all but `fields`."""
    zero = jnp.zeros(token_BLQ.shape[:2], jnp.int32)
    defaults = {
        "fps": jnp.zeros(zero.shape, jnp.float32),
        "order": zero - 1,
        "stride": zero,
        "condition": zero,
        "state": jnp.zeros((*zero.shape, 0), jnp.float32),
        "position": jnp.zeros((*zero.shape, 3), jnp.float32),
        "target": jnp.zeros_like(token_BLQ),
        "generated": zero.astype(bool),
        "previous": zero - 1,
        "slower": jnp.full(token_BLQ.shape, NOTHING),
    }
    return Sequence(token=token_BLQ.astype(jnp.int32), block=(zero + block_BL).astype(jnp.int32), **(defaults | fields))


def _text(text: Text, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    ids, real = text.ids_BL, text.ids_BL >= 0
    token = vocabulary.alone(jnp.where(real, ids + vocabulary.first_text, 0))
    order = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    return _slots(token, jnp.where(real, block, NEVER), order=order), 1


def _states(text: States, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    state_BLE = jnp.asarray(text.states_BLE, jnp.float32)
    block_BL = jnp.where(jnp.any(state_BLE != 0, axis=-1), block, NEVER)
    token = vocabulary.alone(jnp.full(block_BL.shape, NOTHING))
    order = jnp.broadcast_to(jnp.arange(block_BL.shape[1], dtype=jnp.int32), block_BL.shape)
    return _slots(token, block_BL, order=order, state=state_BLE), 1


def _rate(rate: Rate, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    fps = rate.fps_B[:, None].astype(jnp.float32)
    return _slots(vocabulary.alone(jnp.full(fps.shape, vocabulary.rate)), block, fps=fps), 1


def _condition(condition: Condition, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    B, T, H, W, Q = condition.ids_BTHWQ.shape
    ids = jnp.asarray(condition.ids_BTHWQ).reshape(B, T * H * W, Q)
    number = jnp.broadcast_to(jnp.asarray(condition.number_B)[:, None], ids.shape[:2])
    block_BL = jnp.where(ids[..., 0] >= 0, block, NEVER)
    position = _positions(condition.seconds_BT, (H, W), condition.spread)
    return _slots(vocabulary.of_video(jnp.maximum(ids, 0)), block_BL, condition=number, position=position), 1


def _positions(
    seconds_BT: Float[AnyArray, "b t"], grid: tuple[int, int], spread: int | Int[Array, ""] = 1
) -> Float[Array, "b l 3"]:
    """(B, T·H·W, 3): seconds, row and column of every token, at its middle where it is larger."""
    B, T = seconds_BT.shape
    row_H, column_W = (spread * jnp.arange(size) + (spread - 1) / 2 for size in grid)
    axes = jnp.asarray(seconds_BT)[:, :, None, None], row_H[None, None, :, None], column_W[None, None, None]
    places = [jnp.broadcast_to(axis, (B, T, *grid)) for axis in axes]
    return jnp.stack(places, axis=-1).reshape(B, -1, 3).astype(jnp.float32)


def _video(video: Video, vocabulary: Vocabulary, block: int) -> tuple[Sequence, int]:
    B, T, H, W, Q = video.ids_BTHWQ.shape
    L = T * H * W
    order_BL = in_order(video.known_BTHW)

    def ordered(x_BLC: AnyArray) -> jax.Array:
        return jnp.take_along_axis(x_BLC, order_BL[..., None], axis=1)

    ids, slot_L = ordered(video.ids_BTHWQ.reshape(B, L, Q)), jnp.arange(L)
    stride_B1 = jnp.asarray(video.stride_B)[:, None]
    known_B1 = video.known_BTHW.reshape(B, L).sum(axis=1, keepdims=True)
    rank = slot_L - known_B1  # among the generated slots; below 0: known
    lead_B1 = _lead(stride_B1, known_B1, (T, H, W))
    stride = jnp.where(rank < lead_B1, 1, stride_B1)
    number = jnp.where(rank < lead_B1, rank, lead_B1 + (rank - lead_B1) // stride_B1)  # of the step
    rows = vocabulary.of_video(jnp.maximum(ids, 0))
    before = jnp.take_along_axis(rows, jnp.maximum(slot_L - stride, 0)[..., None], axis=1)
    drawn = ordered(video.drawn_BTHW.reshape(B, L, 1))[..., 0] & (stride_B1 == H * W)
    begin = vocabulary.alone(jnp.full(rank.shape, vocabulary.begin))
    shifted = jnp.where(((rank >= stride) & (stride_B1 < H * W))[..., None], before, begin)
    known, present = rank < 0, ids[..., 0] >= 0
    slot_of_place = jnp.argsort(order_BL, axis=1)
    previous = jnp.take_along_axis(slot_of_place, jnp.maximum(order_BL - H * W, 0), axis=1)
    earlier = (order_BL >= H * W) & (jnp.take_along_axis(ids[..., 0], previous, axis=1) >= 0)
    return _slots(
        jnp.where((known | drawn)[..., None], rows, shifted),
        jnp.where(present, jnp.where(known, block, block + 1 + number), NEVER),
        stride=jnp.where(known, 0, stride).astype(jnp.int32),
        position=ordered(_positions(video.seconds_BT, (H, W))),
        target=jnp.maximum(ids, 0).astype(jnp.int32),
        generated=~known & ~drawn,
        previous=jnp.where(earlier, previous, -1).astype(jnp.int32),
        slower=ordered(video.slower_BTHWQ.reshape(B, L, Q)),
    ), 1 + L


_SLOTS: dict[type, Callable[..., tuple[Sequence, int]]] = {
    Text: _text,
    States: _states,
    Rate: _rate,
    Condition: _condition,
    Video: _video,
}
