"""Heads: from a slot's hidden state to its token. To add one: a class with this interface, chosen in `make_head`.

Interface: `scores(hidden, target, near, temperature)` for training and likelihoods, those of what is drawn at a
temperature where one is given; `draw(hidden, choose, near)` for sampling, where `choose` turns the logits of one
sub-code into ids, and may note more of them. Only a head with `copies` reads `near`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tokvid.config import Sampling, TransformerConfig
from tokvid.nn.blocks import BlockShape, RMSNorm, SwiGLU, weight
from tokvid.nn.products import compute_dtype, project
from tokvid.sharding import constrain
from tokvid.transformer.layout import NOTHING

Number = int | Int[Array, ""]  # of a sub-code
Choose = Callable[[Number, Float[Array, "b l v"]], tuple[Int[Array, "b l"], Any]]  # (number, logits) → ids, notes


class Near(NamedTuple):
    """The tokens (B, L, Q) at the same places as those to draw, `NOTHING` for none.

    `previous`: one latent frame before; `slower`: in a slower video that is given, in the latent frame that ends with
    the one to draw or next after it.
    """

    previous: Int[Array, "b l q"]
    slower: Int[Array, "b l q"]


class Scores(NamedTuple):
    """Scores of targets, (B, L) each, summed over sub-codes.

    `log_likelihood` in nats; `normaliser`, the squared logarithm of the softmax's sum; `right`, the share of sub-codes
    that have the highest logit.
    """

    log_likelihood: Float[Array, "b l"]
    normaliser: Float[Array, "b l"]
    right: Float[Array, "b l"]


def temperatures(number_BL: Int[Array, "b l"], sampling: Sampling, config: TransformerConfig) -> Float[Array, "b l"]:
    """The temperatures at which slots are drawn, by the numbers of their latent frames in the video."""
    later = config.later_temperature if sampling.later_temperature is None else sampling.later_temperature
    later = sampling.temperature if later is None else later
    return jnp.where(number_BL == 0, jnp.float32(sampling.temperature), jnp.float32(later))


def make_head(config: TransformerConfig, *, rngs: nnx.Rngs) -> "FlatHead | SubcodeHead":
    """A softmax over all codes where a token is a single code, else a head over its sub-codes."""
    return FlatHead(config, rngs=rngs) if config.subcodes == 1 else SubcodeHead(config, rngs=rngs)


class Copy(nnx.Module):
    """A gate for each sub-code that adds to the logit of the code that a token at the same place has.

    In real video most places stand still. With the gate, they need not be told apart by the hidden state: it is a
    pointer network's mixture (See et al. 2017, section 2.2) with a single place to point to.
    """

    def __init__(self, subcodes: int, width: int, bias: float, *, rngs: nnx.Rngs, gain: float = 1.0):
        self.kernel = weight(rngs, (subcodes, width), width, (None, "embed"), gain)
        self.bias = nnx.Param(jnp.full(subcodes, bias, jnp.float32), logical=(None,))

    def __call__(
        self, logits_BLV: Float[Array, "b l v"], x_BLW: Float[Array, "b l w"], q: Number, ids_BL: Int[Array, "b l"]
    ) -> Float[Array, "b l v"]:
        """The logits of the q-th sub-code, from the last hidden state; none changes where the id is `NOTHING`."""
        gate_BL = x_BLW @ self.kernel[...][q] + self.bias[...][q]
        same_BLV = ids_BL[..., None] == jnp.arange(logits_BLV.shape[-1])
        return logits_BLV + jnp.where(same_BLV, gate_BL[..., None], 0)


class FlatHead(nnx.Module):
    """One matrix: logits over all codes."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.kernel = weight(rngs, (config.width, config.vocabulary), config.width, ("embed", "vocabulary"))
        self.copy, self.copy_slower = _gates(config, 1, config.width, rngs)
        self.dtype = config.dtype

    def logits(self, hidden_BLD: Float[Array, "b l d"], near: Near | None = None) -> Float[Array, "b l v"]:
        """Logits (B, L, V), float32."""
        logits_BLV = project(hidden_BLD.astype(compute_dtype(self.dtype)), self.kernel[...], out=jnp.float32)
        logits_BLV = constrain(logits_BLV, "batch", "length", "vocabulary")
        return logits_BLV if near is None else _raised(self, logits_BLV, hidden_BLD, 0, near)

    def scores(
        self,
        hidden_BLD: Float[Array, "b l d"],
        target_BLQ: Int[Array, "b l 1"],
        near: Near,
        temperature_BL: Float[Array, "b l"] | None = None,
    ) -> Scores:
        """The scores of the targets' only sub-code."""
        return _scores(self.logits(hidden_BLD, near)[:, :, None], target_BLQ, temperature_BL)

    def draw(self, hidden_BLD: Float[Array, "b l d"], choose: Choose, near: Near) -> tuple[Int[Array, "b l 1"], Any]:
        """The ids that `choose` draws from the logits, and its notes, with an axis for the sub-code in front."""
        ids_BL, notes = choose(0, self.logits(hidden_BLD, near))
        return ids_BL[..., None], jax.tree.map(lambda note: note[None], notes)


class SubcodeHead(nnx.Module):
    """One sub-code after another, each from the hidden state and the sum of embeddings of those before it.

    Autoregressive within the slot, as RQ-Transformer (Lee et al. 2022), so the likelihood is exact and the trunk runs
    once a slot. A few gated layers replace attention, which is slow over so few positions. Each sub-code has an
    embedding table of its own, so a sum tells them apart. "independent" leaves these embeddings out: each sub-code is
    drawn without regard to the others.

    With `copies`, the token before is embedded as well, and for each sub-code drawn already, whether it has stayed;
    with `copies_slower`, so is the slower video's, by the same table on another scale. Where only the first sub-codes
    are `generated`, the others have the code `silent`.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        D, W, V = config.width, config.head_width, config.vocabulary
        G = config.generated or config.subcodes
        self.enter = weight(rngs, (D, G, W), D, ("embed", None, None))
        shape = BlockShape(W, 1, 1, 8 * W // 3 // 8 * 8, config.head_layers, config.dtype)
        self.norms = nnx.List([RMSNorm(W) for _ in range(config.head_layers)])
        self.layers = nnx.List([SwiGLU(shape, rngs=rngs) for _ in range(config.head_layers)])
        self.last_norm = RMSNorm(W)
        self.to_codes = weight(rngs, (G, W, V), W, (None, "embed", "vocabulary"))
        if config.head == "autoregressive":
            self.before = weight(rngs, (G - 1, V, W), 1, (None, None, "embed"), gain=0.5)
        self.copy, self.copy_slower = _gates(config, G, W, rngs)
        if config.copies:
            self.previous = weight(rngs, (config.subcodes, V, W), 1, (None, None, "embed"), gain=0.5)
            if config.head == "autoregressive":
                self.stayed = weight(rngs, (G - 1, W), 1, (None, "embed"), gain=0.5)
        if config.copies_slower:  # nothing at first, so that trained weights can go on with it
            self.slower_scale = nnx.Param(jnp.zeros(W, jnp.float32), logical=("embed",))
            if config.head == "autoregressive":
                self.agreed = nnx.Param(jnp.zeros((G - 1, W), jnp.float32), logical=(None, "embed"))
        self.generated, self.subcodes, self.silent = G, config.subcodes, config.silent
        self.autoregressive, self.dtype = config.head == "autoregressive", config.dtype

    def scores(
        self,
        hidden_BLD: Float[Array, "b l d"],
        target_BLQ: Int[Array, "b l q"],
        near: Near,
        temperature_BL: Float[Array, "b l"] | None = None,
    ) -> Scores:
        """The scores of all generated sub-codes at once, each conditioned on the true ones before it."""
        x_BLQW = self._enter(hidden_BLD, near)
        if self.autoregressive:
            first = slice(self.generated - 1)
            others = Near(*(ids_BLQ[..., first] for ids_BLQ in near))
            rows_BLQW = self._before(jnp.arange(self.generated - 1), target_BLQ[..., first], others)
            x_BLQW += jnp.pad(jnp.cumsum(rows_BLQW, axis=2), ((0, 0), (0, 0), (1, 0), (0, 0)))
        x_BLQW = self._deepen(x_BLQW)
        logits = [self._logits(x_BLQW[:, :, q], q, near) for q in range(self.generated)]
        return _scores(jnp.stack(logits, axis=2), target_BLQ[..., : self.generated], temperature_BL)

    def draw(self, hidden_BLD: Float[Array, "b l d"], choose: Choose, near: Near) -> tuple[Int[Array, "b l q"], Any]:
        """The ids that `choose` draws from the logits, one sub-code after another, and its notes, (generated, …)."""
        x_BLQW = self._enter(hidden_BLD, near)

        def one(before_BLW: jax.Array, q: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            x_BLW = self._deepen(x_BLQW[:, :, q] + before_BLW)
            ids_BL, notes = choose(q, self._logits(x_BLW, q, near))
            if self.autoregressive and self.generated > 1:
                row = jnp.minimum(q, self.generated - 2)  # nothing comes after the last one
                before_BLW += self._before(row, ids_BL, Near(*(ids_BLQ[..., row] for ids_BLQ in near)))
            return before_BLW, (ids_BL, notes)

        # Unrolled, a window of eight sub-codes takes a quarter longer to compile.
        _, (ids_QBL, notes) = jax.lax.scan(one, jnp.zeros_like(x_BLQW[:, :, 0]), jnp.arange(self.generated))
        silent = ((0, 0), (0, 0), (0, self.subcodes - self.generated))
        return jnp.pad(jnp.moveaxis(ids_QBL, 0, -1), silent, constant_values=self.silent), notes

    def _enter(self, hidden_BLD: Float[Array, "b l d"], near: Near) -> Float[Array, "b l g w"]:
        narrow_BLD = hidden_BLD.astype(compute_dtype(self.dtype))
        x_BLQW = constrain(project(narrow_BLD, self.enter[...], out=jnp.float32), "batch", "length", None, None)
        if self.copy is not None:
            x_BLQW += self._embedded(near.previous)
        if self.copy_slower is not None:
            x_BLQW += self.slower_scale[...] * self._embedded(near.slower)
        return x_BLQW

    def _embedded(self, ids_BLQ: Int[Array, "b l q"]) -> Float[Array, "b l 1 w"]:
        """The sum over sub-codes of a nearby token's rows; 0 for none."""
        rows_BLQW = self._rows(self.previous, jnp.arange(self.subcodes), jnp.maximum(ids_BLQ, 0))
        return jnp.where(ids_BLQ[..., None] > NOTHING, rows_BLQW, 0).sum(axis=2, keepdims=True)

    def _before(self, q: int | jax.Array, ids: jax.Array, near: Near) -> jax.Array:
        """What later sub-codes learn of the q-th ones: their embeddings, and whether they are those of tokens near."""
        rows = self._rows(self.before, q, ids)
        if self.copy is not None:
            rows += jnp.where((ids == near.previous)[..., None], self.stayed[...][q], 0)
        if self.copy_slower is not None:
            rows += jnp.where((ids == near.slower)[..., None], self.agreed[...][q], 0)
        return rows

    def _rows(self, table: nnx.Param, q: int | jax.Array, ids: jax.Array) -> jax.Array:
        """Rows of the q-th sub-codes, gathered whole: XLA would replicate the table for parts of rows."""
        rows = constrain(table[...], None, None, None)[q, ids]
        return constrain(rows, "batch", "length", *[None] * (rows.ndim - 2))

    def _deepen(self, x: jax.Array) -> jax.Array:
        """Applies the gated layers to (…, W) of any sub-code."""
        shape, x_BLW = x.shape, x.reshape(len(x), -1, x.shape[-1])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x_BLW += layer(norm(x_BLW).astype(compute_dtype(self.dtype)))
        return self.last_norm(x_BLW).reshape(shape)

    def _logits(self, x_BLW: jax.Array, q: Number, near: Near) -> Float[Array, "b l v"]:
        logits_BLV = project(x_BLW.astype(compute_dtype(self.dtype)), self.to_codes[...][q], out=jnp.float32)
        logits_BLV = constrain(logits_BLV, "batch", "length", "vocabulary")
        return _raised(self, logits_BLV, x_BLW, q, near)


def _gates(config: TransformerConfig, subcodes: int, width: int, rngs: nnx.Rngs) -> tuple[Copy | None, Copy | None]:
    """The gates for the token before and for the slower video's, where the config has them."""
    # At first, each code is as likely to stay as not, and the slower video changes nothing.
    before = Copy(subcodes, width, math.log(config.vocabulary), rngs=rngs) if config.copies else None
    return before, Copy(subcodes, width, 0.0, rngs=rngs, gain=0.0) if config.copies_slower else None


def _raised(
    head: FlatHead | SubcodeHead, logits_BLV: Float[Array, "b l v"], x_BLW: Float[Array, "b l w"], q: Number, near: Near
) -> Float[Array, "b l v"]:
    """Logits of the q-th sub-code after the gates."""
    for gate, ids_BLQ in zip((head.copy, head.copy_slower), near, strict=True):
        logits_BLV = logits_BLV if gate is None else gate(logits_BLV, x_BLW, q, ids_BLQ[..., q])
    return logits_BLV


def _scores(
    logits_BLQV: Float[Array, "b l q v"], target_BLQ: Int[Array, "b l q"], temperature_BL: Float[Array, "b l"] | None
) -> Scores:
    if temperature_BL is not None:
        logits_BLQV /= temperature_BL[..., None, None]
    normaliser_BLQ = jax.nn.logsumexp(logits_BLQV, axis=-1)
    chosen_BLQ = jnp.take_along_axis(logits_BLQV, target_BLQ[..., None], axis=-1)[..., 0]
    right_BLQ = chosen_BLQ >= jnp.max(logits_BLQV, axis=-1)
    return Scores(
        jnp.sum(chosen_BLQ - normaliser_BLQ, axis=-1),
        jnp.sum(jnp.square(normaliser_BLQ), axis=-1),
        jnp.mean(right_BLQ, axis=-1),
    )
