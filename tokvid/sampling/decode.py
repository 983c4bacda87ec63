"""From layouts to tokens: prefills the known slots, then generates the others over a static KV cache, in one jit."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Num

from tokvid.config import Sampling
from tokvid.nn.blocks import MATRICES
from tokvid.nn.cache import KVCache
from tokvid.nn.products import compute_dtype
from tokvid.sampling.methods import draw, guide, surest
from tokvid.sharding import platform
from tokvid.transformer.head import Near, Number, temperatures
from tokvid.transformer.layout import NOTHING, Sequence, in_order, lay_out, schedule, tokens_before
from tokvid.transformer.model import Transformer
from tokvid.types import AnyArray, TokenBatch

# The slots that a step runs where tokens are drawn one by one, of all samples together, but one of each at least. A CPU
# computes few at a time; where a step takes as long whatever it runs, more of them cost nothing.
AHEAD = {"cpu": 4}
AHEAD_ELSEWHERE = 8
# The matrices of heads, besides those of their layers.
HEADS = (("head", "kernel"), ("head", "enter"), ("head", "to_codes"))


class Carry(NamedTuple):
    """What the loops carry: the cache, and a window in the order of its slots.

    tokens (B, L, Q): those before `place` are known or generated, those before `guessed` what the last step drew there,
    given a token that was another one. means (B, L, Q, C): the mean latents of what each could have been.
    """

    cache: KVCache
    tokens: Int[Array, "b l q"]
    means: Float[Array, "b l q c"]
    place: Int[Array, ""]
    guessed: Int[Array, ""]


class Request(NamedTuple):
    """A window to generate; its `stride` and `drawn` are set by the sampling.

    Of each sample, `known` tokens are known, and the first `tokens` of the others are generated; the first `forced` of
    these are the batch's own, for weights that were not trained to see them as known. Samples may know more than
    `known` tokens, unless drawn in rounds; these are the batch's own, too. `guidance_BT` is the guidance scale of each
    latent frame; with guidance, each step also runs under the negative prompts `negative_BL`, in the form of the
    batch's `text`. Keys are derived by slot, fold_in(keys_B, slot), so a longer window begins with the same tokens.
    """

    batch: TokenBatch
    negative_BL: Num[AnyArray, "b l *e"]
    keys_B: Key[Array, " b"]
    guidance_BT: Float[AnyArray, "b t"]
    known: Int[AnyArray, ""]
    tokens: Int[AnyArray, ""]
    forced: Int[AnyArray, ""] | int = 0  # where tokens are drawn one by one or by rows


def prefill(model: Transformer, sequence: Sequence, known: Int[AnyArray, ""], *, stacked: bool) -> KVCache:
    """A cache in which the slots before a window's are written and, where some of its tokens are `known`, all of them.

    Slots that are generated are written again, each before a later step sees it. So one program serves any number of
    known tokens. It scans the layers, which compiles faster, whether the steps do so (`stacked`) or not. Nothing sees
    the slots that it may have beyond the sequence's.
    """
    sequence = sequence.padded(8 if platform() == "gpu" else 1)  # cuDNN takes even lengths
    layers, (batch, slots, _) = model.layers(True), sequence.token.shape
    empty = model.empty_cache(batch, slots, layers)

    def written(count: int) -> Callable[[], KVCache]:
        return lambda: cast(KVCache, model.run(sequence.slots(0, count), empty, 0, layers)[1])

    if platform() == "cpu":  # where small models gain nothing, and one more part to compile costs a second
        cache = written(slots)()
    else:
        before = slots - math.prod(model.config.latent)
        cache = jax.lax.cond(known > 0, written(slots), written(min(slots, before + -before % 8)))
    return cache if stacked else cache._replace(key=tuple(cache.key), value=tuple(cache.value))


def step(
    model: Transformer,
    sequence: Sequence,
    cache: KVCache,
    slot: int | Int[Array, ""],
    input_BLQ: Int[Array, "b l q"],
    layers: Any,
) -> tuple[Float[Array, "b l d"], KVCache]:
    """The head's input at the slots from `slot` on, computed from their input rows, and the cache with them written."""
    part = sequence.slots(slot, input_BLQ.shape[1])._replace(token=input_BLQ)
    hidden, longer = model.run(part, cache, slot, layers)
    return model.norm(hidden), cast(KVCache, longer)


@functools.partial(jax.jit, static_argnames=("graph", "sampling", "guided"))
def generate(
    graph: nnx.GraphDef, params: nnx.State, request: Request, *, sampling: Sampling, guided: bool
) -> Int[Array, "b t h w q"]:
    """The tokens of a window: the known ones and the generated ones; 0 elsewhere."""
    return _filled(graph, params, request, None, sampling, guided)[0]


@functools.partial(jax.jit, static_argnames=("graph", "sampling", "guided"))
def generate_means(
    graph: nnx.GraphDef,
    params: nnx.State,
    request: Request,
    latents_VC: Float[AnyArray, "v c"],
    *,
    sampling: Sampling,
    guided: bool,
) -> tuple[Int[Array, "b t h w q"], Float[Array, "b t h w q c"]]:
    """As `generate`, and the mean latents of each sub-code, given those before it; `latents_VC` are those of the codes.

    Where much is uncertain, the mean is nearer to the truth than any code (the least squares estimate).
    """
    return _filled(graph, params, request, jnp.asarray(latents_VC), sampling, guided)


def _filled(
    graph: nnx.GraphDef,
    params: nnx.State,
    request: Request,
    latents_VC: Float[Array, "v c"] | None,
    sampling: Sampling,
    guided: bool,
) -> tuple[Int[Array, "b t h w q"], Float[Array, "b t h w q c"]]:
    model: Transformer = nnx.merge(graph, params)
    if platform() != "cpu":  # where nothing is gained
        model = nnx.merge(graph, _rounded(params, compute_dtype(model.config.dtype)))
    if latents_VC is None:
        latents_VC = jnp.zeros((model.config.vocabulary, 0))
    batch = request.batch
    B, T, H, W, Q = batch.tokens.shape
    known = jnp.asarray(request.known)
    plan = schedule((T, H, W), sampling.rows, known > 0)
    stride_B, drawn_BTHW = jnp.full(B, plan.stride), jnp.zeros((B, T, H, W), bool)
    batch = batch._replace(stride=stride_B, drawn=drawn_BTHW, known=jnp.asarray(batch.known))
    doubled = batch
    if guided:  # each window twice, side by side on one device, the second time under the negative prompt
        doubled = jax.tree.map(
            lambda *pair: jnp.stack(pair, axis=1).reshape(2 * B, *pair[0].shape[1:]),
            batch,
            batch._replace(text=request.negative_BL),
        )
    order_BL = in_order(batch.known)
    sequence = lay_out(model.config, doubled)
    # Unrolled layers read the cache in attention's layout: on TPUs, generating rows takes a quarter of the memory
    # traffic (docs/pods.md). Single tokens gain nothing, and unrolled layers take longer to compile.
    layers = model.layers(model.config.scan_layers and not sampling.rows)
    scale_BL = jnp.take_along_axis(jnp.asarray(request.guidance_BT), order_BL // (H * W), axis=1)
    scales = scale_BL if guided else None
    number_BL = order_BL // (H * W) + jnp.asarray(batch.start)[:, None]
    limit_BL = jnp.where(number_BL == 0, sampling.guidance_limit, jnp.inf) if sampling.guidance_limit else None
    chance = (request.keys_B, scales, temperatures(number_BL, sampling, model.config), limit_BL)
    drawer = _Drawer(model, sequence, layers, *chance, known, sampling, latents_VC, request.forced)
    target_BLQ = sequence.target[:: 2 if guided else 1, -T * H * W :]
    cache = prefill(model, sequence, known, stacked=not isinstance(layers, list))
    carry = Carry(cache, target_BLQ, latents_VC[target_BLQ], known, known)
    end = known + request.tokens
    if plan.stride == H * W:
        carry = _until(end, drawer.in_rounds(H * W), carry)
    elif plan.stride == 1:
        width = min(max(1, AHEAD.get(platform(), AHEAD_ELSEWHERE) // B), T * H * W)
        carry = _until(end, drawer.at_once(width, guessing=width > 1), carry)
    else:
        carry = _until(known + jnp.minimum(plan.lead, request.tokens), drawer.at_once(1), carry)
        carry = _until(end - (request.tokens - plan.lead) % plan.stride, drawer.at_once(plan.stride), carry)
    is_new_L = jnp.arange(T * H * W) < jnp.minimum(carry.place, end)

    def in_place(slots_BL: jax.Array) -> jax.Array:
        slots_BL = jnp.where(jnp.expand_dims(is_new_L, range(1, slots_BL.ndim - 1)), slots_BL, 0)
        return jax.vmap(lambda each, order_L: jnp.zeros_like(each).at[order_L].set(each))(slots_BL, order_BL)

    tokens_BLQ, means_BLQC = in_place(carry.tokens), in_place(carry.means)
    return tokens_BLQ.reshape(B, T, H, W, Q), means_BLQC.reshape(B, T, H, W, Q, -1)


def _rounded(params: nnx.State, dtype: str) -> nnx.State:
    """The parameters, with matrices in the type that they are multiplied in.

    A step reads all of them, and XLA moves nothing out of a loop on GPUs: every step would read float32, write bfloat16
    and read that again, four times as many bytes.
    """

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        names = tuple(key.key for key in path if hasattr(key, "key"))
        return leaf.astype(dtype) if names[-1] in MATRICES or names in HEADS else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def _until(end: jax.Array, body: Callable[[Carry], Carry], carry: Carry) -> Carry:
    return jax.lax.while_loop(lambda carry: carry.place < end, body, carry)


@dataclasses.dataclass(frozen=True)
class _Drawer:
    """Bodies of the loops that generate a window's slots.

    With `scale_BL`, the guidance scale of each slot of the window, the sequence has every window twice: under its text,
    and under the negative prompt. `temperature_BL` and `limit_BL`, of guidance, are those of each slot.
    """

    model: Transformer
    sequence: Sequence
    layers: Any
    keys_B: Key[Array, " b"]
    scale_BL: Float[Array, "b l"] | None
    temperature_BL: Float[Array, "b l"]
    limit_BL: Float[Array, "b l"] | None
    known: jax.Array
    sampling: Sampling
    latents_VC: Float[Array, "v c"]
    forced: int | jax.Array = 0

    @property
    def count(self) -> int:
        """The slots of the window, which are the sequence's last."""
        return math.prod(self.model.config.latent)

    def at_once(self, width: int, guessing: bool = False) -> Callable[[Carry], Carry]:
        """Draws `width` tokens, each at a slot whose input is the token one step before it.

        Where that one is drawn in the same step, `guessing`, it is guessed, and what follows the first wrong guess is
        drawn again. Each slot has its own key, so the tokens are those that are drawn one by one (speculative decoding,
        as Jacobi iterations: Teng et al. 2024, "Accelerating auto-regressive text-to-image generation with
        training-free speculative Jacobi decoding"). Slots that a sample knows keep their own tokens, and where its
        steps begin, so does BEGIN.
        """

        def body(carry: Carry) -> Carry:
            place = jnp.minimum(carry.place, self.count - width)  # the last step may draw some tokens again
            place_L, vocabulary = place + jnp.arange(width), self.model.vocabulary
            slots = jax.tree.map(lambda each: each[:: 1 if self.scale_BL is None else 2], self._slots(place, width))
            is_own_BL1 = (~slots.generated | (place_L < self.known + self.forced))[..., None]
            tokens_BLQ, was_BLQ = carry.tokens, _part(carry.tokens, place, width)
            if guessing:
                is_guess_BL1 = ~is_own_BL1 & (place_L >= carry.guessed)[:, None]
                was_BLQ = jnp.where(is_guess_BL1, self._guess(carry, slots.previous), was_BLQ)
                tokens_BLQ = _written(tokens_BLQ, was_BLQ, place)
            before_BL = jnp.maximum(place_L - slots.stride, 0)
            rows_BLQ = vocabulary.of_video(jnp.take_along_axis(tokens_BLQ, before_BL[..., None], axis=1))
            is_laid_out_BL = ~slots.generated | (slots.token[..., 0] == vocabulary.begin)
            input_BLQ = jnp.where(is_laid_out_BL[..., None], slots.token, rows_BLQ)
            hidden_BLD, cache = self._run(carry.cache, place, input_BLQ)
            drawn_BLQ, _, drawn_BLQC = self._sample(hidden_BLD, place, self._keys(place, width), tokens_BLQ)
            drawn_BLQ = jnp.where(is_own_BL1, slots.target, drawn_BLQ)
            drawn_BLQC = jnp.where(is_own_BL1[..., None], self.latents_VC[slots.target], drawn_BLQC)
            stands_L1 = (place_L < carry.place)[:, None]  # whatever rounding says, or a step might go back
            drawn_BLQ = jnp.where(stands_L1, was_BLQ, drawn_BLQ)
            drawn_BLQC = jnp.where(stands_L1[..., None], _part(carry.means, place, width), drawn_BLQC)
            valid: jax.Array | int = width
            if guessing:
                is_right_BL = jnp.all(drawn_BLQ == was_BLQ, axis=-1)[:, :-1]
                valid = 1 + jnp.min(jnp.sum(jnp.cumprod(is_right_BL, axis=1), axis=1))
            written = _written(tokens_BLQ, drawn_BLQ, place), _written(carry.means, drawn_BLQC, place)
            return Carry(cache, *written, place + valid, place + width)

        return body

    def _guess(self, carry: Carry, previous_BL: jax.Array) -> jax.Array:
        """The tokens at the same places one latent frame before; where there is none, the last token."""
        config, last_B1Q = self.model.config, _part(carry.tokens, jnp.maximum(carry.place - 1, 0), 1)
        before_BLQ = tokens_before(carry.tokens, previous_BL)
        guess_BLQ = jnp.where(before_BLQ == NOTHING, last_B1Q, before_BLQ)
        return guess_BLQ.at[..., config.generated or config.subcodes :].set(config.silent)

    def in_rounds(self, size: int) -> Callable[[Carry], Carry]:
        """Draws a latent frame of `size` tokens: each round keeps the most confident ones and draws the others anew."""

        def body(carry: Carry) -> Carry:
            (B, _, Q, C), place, vocabulary = carry.means.shape, carry.place, self.model.vocabulary

            def one_round(number: jax.Array, frame: tuple) -> tuple:
                cache, frame_BLQ, frame_BLQC, stands_BL = frame
                rows_BLQ = jnp.where(stands_BL[..., None], vocabulary.of_video(frame_BLQ), self._begin_Q)
                hidden_BLD, cache = self._run(cache, place, rows_BLQ)
                keys_BL = _folded(self._keys(place, size), number)
                drawn_BLQ, likelihood_BL, drawn_BLQC = self._sample(hidden_BLD, place, keys_BL, carry.tokens)
                frame_BLQ = jnp.where(stands_BL[..., None], frame_BLQ, drawn_BLQ)
                frame_BLQC = jnp.where(stands_BL[..., None, None], frame_BLQC, drawn_BLQC)
                done = (number + 1) / self.sampling.rounds
                stands_BL = surest(keys_BL[:, 0], likelihood_BL, stands_BL, done, self.sampling)
                return cache, frame_BLQ, frame_BLQC, stands_BL

            none_BLQ = jnp.zeros((B, size, Q), jnp.int32)
            start = (carry.cache, none_BLQ, jnp.zeros((B, size, Q, C)), jnp.zeros((B, size), bool))
            cache, frame_BLQ, frame_BLQC, _ = jax.lax.fori_loop(0, self.sampling.rounds, one_round, start)
            _, cache = self._run(cache, place, vocabulary.of_video(frame_BLQ))  # the next frames see all of this one
            written = _written(carry.tokens, frame_BLQ, place), _written(carry.means, frame_BLQC, place)
            return Carry(cache, *written, place + size, place + size)

        return body

    def _slots(self, place: jax.Array, width: int) -> Sequence:
        return self.sequence.slots(self._first + place, width)

    @property
    def _first(self) -> int:
        """The window's first slot."""
        return self.sequence.token.shape[1] - self.count

    @property
    def _begin_Q(self) -> jax.Array:
        return self.model.vocabulary.alone(self.model.vocabulary.begin)

    def _near(self, place: jax.Array, width: int, tokens_BLQ: jax.Array) -> Near:
        """The tokens at the same places as those of `width` slots."""
        slots = self._slots(place, width)
        if not self.model.config.copies:
            return Near(jnp.full_like(slots.slower, NOTHING), slots.slower)
        if self.scale_BL is not None:
            tokens_BLQ = jnp.repeat(tokens_BLQ, 2, axis=0)
        return Near(tokens_before(tokens_BLQ, slots.previous), slots.slower)

    def _keys(self, place: jax.Array, width: int) -> jax.Array:
        number_L = self._first + place + jnp.arange(width)
        return jax.vmap(lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(number_L))(self.keys_B)

    def _run(self, cache: KVCache, place: jax.Array, input_BLQ: jax.Array) -> tuple[jax.Array, KVCache]:
        """Runs the slots from `place` on; with guidance, under both texts."""
        input_BLQ = input_BLQ if self.scale_BL is None else jnp.repeat(input_BLQ, 2, axis=0)
        return step(self.model, self.sequence, cache, self._first + place, input_BLQ, self.layers)

    def _sample(
        self, hidden_BLD: jax.Array, place: jax.Array, keys_BL: jax.Array, tokens_BLQ: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draws the tokens (B, L, Q) of the slots from `place` on.

        Also returns their log-likelihoods (B, L), and the mean latents (B, L, Q, C) of what they could have been.
        `tokens_BLQ` are the window's.
        """
        guided, width = self.scale_BL is not None, hidden_BLD.shape[1]

        def choose(number: Number, logits_BLV: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            """Ids, and their log-likelihoods and the mean latents."""
            if self.scale_BL is not None:
                limit_BL = None if self.limit_BL is None else _part(self.limit_BL, place, width)
                scale_BL = _part(self.scale_BL, place, width)
                logits_BLV = guide(logits_BLV[0::2], logits_BLV[1::2], scale_BL, limit_BL)
            keys = jnp.where(jnp.equal(number, 0), keys_BL, _folded(keys_BL, number))
            ids_BL = draw(keys, logits_BLV, self.sampling, _part(self.temperature_BL, place, width))
            log_share_BLV = jax.nn.log_softmax(logits_BLV)
            likelihood_BL = jnp.take_along_axis(log_share_BLV, ids_BL[..., None], axis=-1)[..., 0]
            mean_BLC = jnp.matmul(jnp.exp(log_share_BLV), self.latents_VC, precision="highest")
            return jnp.repeat(ids_BL, 2, axis=0) if guided else ids_BL, (likelihood_BL, mean_BLC)

        near = self._near(place, width, tokens_BLQ)
        ids_BLQ, (likelihood_QBL, means_QBLC) = self.model.head.draw(hidden_BLD, choose, near)
        ids_BLQ = ids_BLQ[:: 2 if guided else 1]
        silent_BLQC = self.latents_VC[ids_BLQ[..., len(means_QBLC) :]]
        return (
            ids_BLQ,
            likelihood_QBL.sum(axis=0),
            jnp.concatenate([jnp.moveaxis(means_QBLC, 0, 2), silent_BLQC], axis=2),
        )


def _part(of_slots: jax.Array, place: jax.Array, width: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(of_slots, place, width, axis=1)


def _written(of_slots: jax.Array, new: jax.Array, place: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(of_slots, new, place, axis=1)


def _folded(keys_BL: jax.Array, number: Number) -> jax.Array:
    return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))(keys_BL)
