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
from tokvid.nn.cache import KVCache
from tokvid.sampling.methods import draw, guide, surest
from tokvid.transformer.head import Near, temperatures
from tokvid.transformer.layout import NOTHING, Sequence, in_order, lay_out, schedule, tokens_before
from tokvid.transformer.model import Transformer
from tokvid.types import AnyArray, TokenBatch

# The cache; the tokens (B, L, Q) generated so far, and the mean latents (B, L, Q, C) of what each could have been.
Carry = tuple[KVCache, jax.Array, jax.Array]


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


def prefill(model: Transformer, sequence: Sequence, layers: Any) -> KVCache:
    """A cache with all slots of a sequence written.

    Those that are generated are written again, each before a later step sees it. So one program serves any number of
    known tokens.
    """
    cache = model.empty_cache(sequence.token.shape[0], sequence.token.shape[1], layers)
    return cast(KVCache, model.run(sequence, cache, 0, layers)[1])


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
    none_BLQ = jnp.zeros((B, T * H * W, Q), jnp.int32)
    carry = prefill(model, sequence, layers), none_BLQ, jnp.zeros((*none_BLQ.shape, latents_VC.shape[-1]))
    if plan.stride == H * W:
        carry = jax.lax.fori_loop(0, request.tokens // (H * W), drawer.in_rounds(H * W), carry)
    else:
        if plan.stride > 1:
            carry = jax.lax.fori_loop(0, jnp.minimum(plan.lead, request.tokens), drawer.at_once(1, 0), carry)
        steps = (request.tokens - plan.lead) // plan.stride
        carry = jax.lax.fori_loop(0, steps, drawer.at_once(plan.stride, plan.lead), carry)
    tokens_BLQ = jnp.asarray(batch.tokens, jnp.int32).reshape(B, T * H * W, Q)

    def filled(given: jax.Array, order_L: jax.Array, new: jax.Array) -> jax.Array:
        is_given = jnp.expand_dims(jnp.arange(len(order_L)) < known, range(1, given.ndim))
        return given.at[order_L].set(jnp.where(is_given, given[order_L], jnp.roll(new, known, axis=0)))

    pairs = ((tokens_BLQ, carry[1]), (latents_VC[tokens_BLQ], carry[2]))
    tokens_BLQ, means_BLQC = (jax.vmap(filled)(given, order_BL, new) for given, new in pairs)
    return tokens_BLQ.reshape(B, T, H, W, Q), means_BLQC.reshape(B, T, H, W, Q, -1)


@dataclasses.dataclass(frozen=True)
class _Drawer:
    """Bodies of the loops that generate the slots of a window after its `known` ones; their numbers are ranks.

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
    def first(self) -> jax.Array:
        """The first generated slot."""
        return self.sequence.token.shape[1] - math.prod(self.model.config.latent) + self.known

    def at_once(self, width: int, start: int | jax.Array) -> Callable[[jax.Array, Carry], Carry]:
        """Draws `width` tokens, each at a slot whose input is the token one step before it.

        Slots that a sample knows keep their own tokens, and where its steps begin, so does BEGIN.
        """

        def body(i: jax.Array, carry: Carry) -> Carry:
            cache, tokens_BLQ, means_BLQC = carry
            rank = start + i * width
            rank_L, vocabulary = rank + jnp.arange(width), self.model.vocabulary
            slots = jax.tree.map(lambda each: each[:: 1 if self.scale_BL is None else 2], self._slots(rank, width))
            before_BL = jnp.maximum(rank_L - slots.stride, 0)
            rows_BLQ = vocabulary.of_video(jnp.take_along_axis(tokens_BLQ, before_BL[..., None], axis=1))
            is_laid_out_BL = ~slots.generated | (slots.token[..., 0] == vocabulary.begin)
            input_BLQ = jnp.where(is_laid_out_BL[..., None], slots.token, rows_BLQ)
            hidden_BLD, cache = self._run(cache, rank, input_BLQ)
            drawn_BLQ, _, drawn_BLQC = self._sample(hidden_BLD, rank, self._keys(rank), tokens_BLQ)
            is_own_BL1, own_BLQ = (~slots.generated | (rank_L < self.forced))[..., None], slots.target
            drawn_BLQ = jnp.where(is_own_BL1, own_BLQ, drawn_BLQ)
            drawn_BLQC = jnp.where(is_own_BL1[..., None], self.latents_VC[own_BLQ], drawn_BLQC)
            return cache, *_written((tokens_BLQ, means_BLQC), (drawn_BLQ, drawn_BLQC), rank)

        return body

    def in_rounds(self, size: int) -> Callable[[jax.Array, Carry], Carry]:
        """Draws a latent frame of `size` tokens: each round keeps the most confident ones and draws the others anew."""

        def body(i: jax.Array, carry: Carry) -> Carry:
            cache, tokens_BLQ, means_BLQC = carry
            B, _, Q, C = means_BLQC.shape
            rank, vocabulary = i * size, self.model.vocabulary

            def one_round(number: jax.Array, carry: tuple) -> tuple:
                cache, frame_BLQ, frame_BLQC, stands_BL = carry
                rows_BLQ = jnp.where(stands_BL[..., None], vocabulary.of_video(frame_BLQ), self._begin_Q)
                hidden_BLD, cache = self._run(cache, rank, rows_BLQ)
                keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(self._keys(rank), number)
                drawn_BLQ, likelihood_BL, drawn_BLQC = self._sample(hidden_BLD, rank, keys_B, tokens_BLQ)
                frame_BLQ = jnp.where(stands_BL[..., None], frame_BLQ, drawn_BLQ)
                frame_BLQC = jnp.where(stands_BL[..., None, None], frame_BLQC, drawn_BLQC)
                done = (number + 1) / self.sampling.rounds
                return cache, frame_BLQ, frame_BLQC, surest(keys_B, likelihood_BL, stands_BL, done, self.sampling)

            none_BLQ = jnp.zeros((B, size, Q), jnp.int32)
            start = (cache, none_BLQ, jnp.zeros((B, size, Q, C)), jnp.zeros((B, size), bool))
            cache, frame_BLQ, frame_BLQC, _ = jax.lax.fori_loop(0, self.sampling.rounds, one_round, start)
            _, cache = self._run(cache, rank, vocabulary.of_video(frame_BLQ))  # the next frames see all of this one
            return cache, *_written((tokens_BLQ, means_BLQC), (frame_BLQ, frame_BLQC), rank)

        return body

    def _slots(self, rank: jax.Array, width: int) -> Sequence:
        return self.sequence.slots(self.first + rank, width)

    @property
    def _begin_Q(self) -> jax.Array:
        return self.model.vocabulary.alone(self.model.vocabulary.begin)

    def _near(self, rank: jax.Array, width: int, tokens_BLQ: jax.Array) -> Near:
        """The tokens at the places of `width` slots: those before are known ones or generated ones."""
        L, slots = tokens_BLQ.shape[1], self._slots(rank, width)
        if not self.model.config.copies:
            return Near(jnp.full_like(slots.slower, NOTHING), slots.slower)
        if self.scale_BL is not None:
            tokens_BLQ = jnp.repeat(tokens_BLQ, 2, axis=0)
        known_L1 = (jnp.arange(L) < self.known)[:, None]
        all_BLQ = jnp.where(known_L1, self.sequence.target[:, -L:], jnp.roll(tokens_BLQ, self.known, axis=1))
        return Near(tokens_before(all_BLQ, slots.previous), slots.slower)

    def _keys(self, rank: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(self.keys_B, self.first + rank)

    def _run(self, cache: KVCache, rank: jax.Array, input_BLQ: jax.Array) -> tuple[jax.Array, KVCache]:
        """Runs the slots from the `rank`-th generated one on; with guidance, under both texts."""
        input_BLQ = input_BLQ if self.scale_BL is None else jnp.repeat(input_BLQ, 2, axis=0)
        return step(self.model, self.sequence, cache, self.first + rank, input_BLQ, self.layers)

    def _sample(
        self, hidden_BLD: jax.Array, rank: jax.Array, keys_B: jax.Array, tokens_BLQ: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draws the tokens (B, L, Q) of the slots from the `rank`-th on.

        Also returns their log-likelihoods (B, L), and the mean latents (B, L, Q, C) of what they could have been.
        `tokens_BLQ` are those generated so far.
        """
        likelihoods, means, guided = [], [], self.scale_BL is not None
        near = self._near(rank, hidden_BLD.shape[1], tokens_BLQ)

        def choose(number: int, logits_BLV: jax.Array) -> jax.Array:
            if self.scale_BL is not None:
                slot = self.known + rank
                limit_B = None if self.limit_BL is None else self.limit_BL[:, slot]
                logits_BLV = guide(logits_BLV[0::2], logits_BLV[1::2], self.scale_BL[:, slot], limit_B)
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number) if number else keys_B
            ids_BL = draw(keys, logits_BLV, self.sampling, self.temperature_BL[:, self.known + rank])
            log_share_BLV = jax.nn.log_softmax(logits_BLV)
            likelihoods.append(jnp.take_along_axis(log_share_BLV, ids_BL[..., None], axis=-1)[..., 0])
            means.append(jnp.matmul(jnp.exp(log_share_BLV), self.latents_VC, precision="highest"))
            return jnp.repeat(ids_BL, 2, axis=0) if guided else ids_BL

        ids_BLQ = self.model.head.draw(hidden_BLD, choose, near)[:: 2 if guided else 1]
        means += [self.latents_VC[ids_BLQ[..., q]] for q in range(len(means), ids_BLQ.shape[-1])]  # silent ones
        return ids_BLQ, sum(likelihoods, jnp.zeros(())), jnp.stack(means, axis=2)


def _written(
    all_of: tuple[jax.Array, jax.Array], new: tuple[jax.Array, jax.Array], rank: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both arrays with the new ones in the place of their slots from `rank` on."""
    tokens, means = (jax.lax.dynamic_update_slice_in_dim(*pair, rank, axis=1) for pair in zip(all_of, new, strict=True))
    return tokens, means
