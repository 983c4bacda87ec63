"""Heads: from a slot's hidden state to its token. To add one: a class with this interface, chosen in `make_head`.

Interface: `scores(hidden, target)` for training and likelihoods; `draw(hidden, choose)` for sampling, where `choose`
turns the logits of one sub-code into ids.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tokvid.config import TransformerConfig
from tokvid.nn.blocks import BlockShape, RMSNorm, SwiGLU, weight
from tokvid.nn.products import compute_dtype, project
from tokvid.sharding import constrain

Choose = Callable[[int, Float[Array, "b l v"]], Int[Array, "b l"]]  # (number of the sub-code, its logits) → ids


class Scores(NamedTuple):
    """Scores of targets, (B, L) each, summed over sub-codes.

    `log_likelihood` in nats; `normaliser`, the squared logarithm of the softmax's sum; `right`, the share of sub-codes
    that have the highest logit.
    """

    log_likelihood: Float[Array, "b l"]
    normaliser: Float[Array, "b l"]
    right: Float[Array, "b l"]


def make_head(config: TransformerConfig, *, rngs: nnx.Rngs) -> "FlatHead | SubcodeHead":
    """A softmax over all codes where a token is a single code, else a head over its sub-codes."""
    return FlatHead(config, rngs=rngs) if config.subcodes == 1 else SubcodeHead(config, rngs=rngs)


class FlatHead(nnx.Module):
    """One matrix: logits over all codes."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.kernel = weight(rngs, (config.width, config.vocabulary), config.width, ("embed", "vocabulary"))
        self.dtype = config.dtype

    def logits(self, hidden_BLD: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """Logits (B, L, V), float32."""
        logits_BLV = project(hidden_BLD.astype(compute_dtype(self.dtype)), self.kernel[...], out=jnp.float32)
        return constrain(logits_BLV, "batch", "length", "vocabulary")

    def scores(self, hidden_BLD: Float[Array, "b l d"], target_BLQ: Int[Array, "b l 1"]) -> Scores:
        """The scores of the targets' only sub-code."""
        return _scores(self.logits(hidden_BLD)[:, :, None], target_BLQ)

    def draw(self, hidden_BLD: Float[Array, "b l d"], choose: Choose) -> Int[Array, "b l 1"]:
        """The ids that `choose` draws from the logits."""
        return choose(0, self.logits(hidden_BLD))[..., None]


class SubcodeHead(nnx.Module):
    """One sub-code after another, each from the hidden state and the sum of embeddings of those before it.

    Autoregressive within the slot, as RQ-Transformer (Lee et al. 2022), so the likelihood is exact and the trunk runs
    once a slot. A few gated layers replace attention, which is slow over so few positions. Each sub-code has an
    embedding table of its own, so a sum tells them apart. "independent" leaves these embeddings out: each sub-code is
    drawn without regard to the others.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        D, W, Q, V = config.width, config.head_width, config.subcodes, config.vocabulary
        self.enter = weight(rngs, (D, Q, W), D, ("embed", None, None))
        shape = BlockShape(W, 1, 1, 8 * W // 3 // 8 * 8, config.head_layers, config.dtype)
        self.norms = nnx.List([RMSNorm(W) for _ in range(config.head_layers)])
        self.layers = nnx.List([SwiGLU(shape, rngs=rngs) for _ in range(config.head_layers)])
        self.last_norm = RMSNorm(W)
        self.to_codes = weight(rngs, (Q, W, V), W, (None, "embed", "vocabulary"))
        if config.head == "autoregressive":
            self.before = weight(rngs, (Q - 1, V, W), 1, (None, None, "embed"), gain=0.5)
        self.codes, self.autoregressive, self.dtype = (V, Q), config.head == "autoregressive", config.dtype

    def scores(self, hidden_BLD: Float[Array, "b l d"], target_BLQ: Int[Array, "b l q"]) -> Scores:
        """The scores of all sub-codes at once, each conditioned on the true ones before it."""
        x_BLQW = self._enter(hidden_BLD)
        if self.autoregressive:
            rows_BLQW = self._before(jnp.arange(self.codes[1] - 1), target_BLQ[..., :-1])
            x_BLQW += jnp.pad(jnp.cumsum(rows_BLQW, axis=2), ((0, 0), (0, 0), (1, 0), (0, 0)))
        x_BLQW = self._deepen(x_BLQW)
        logits = [self._logits(x_BLQW[:, :, q], q) for q in range(self.codes[1])]
        return _scores(jnp.stack(logits, axis=2), target_BLQ)

    def draw(self, hidden_BLD: Float[Array, "b l d"], choose: Choose) -> Int[Array, "b l q"]:
        """The ids that `choose` draws from the logits, one sub-code after another."""
        x_BLQW, ids = self._enter(hidden_BLD), []
        before_BLW = jnp.zeros_like(x_BLQW[:, :, 0])
        for q in range(self.codes[1]):
            x_BLW = self._deepen(x_BLQW[:, :, q] + before_BLW)
            ids.append(choose(q, self._logits(x_BLW, q)))
            if self.autoregressive and q + 1 < self.codes[1]:
                before_BLW += self._before(q, ids[-1])
        return jnp.stack(ids, axis=-1)

    def _enter(self, hidden_BLD: Float[Array, "b l d"]) -> Float[Array, "b l q w"]:
        narrow_BLD = hidden_BLD.astype(compute_dtype(self.dtype))
        return constrain(project(narrow_BLD, self.enter[...], out=jnp.float32), "batch", "length", None, None)

    def _before(self, q: int | jax.Array, ids: jax.Array) -> jax.Array:
        """Embeddings of the q-th sub-codes, gathered as whole rows: XLA would replicate the table for parts of rows."""
        rows = constrain(self.before[...], None, None, None)[q, ids]
        return constrain(rows, "batch", "length", *[None] * (rows.ndim - 2))

    def _deepen(self, x: jax.Array) -> jax.Array:
        """Applies the gated layers to (…, W) of any sub-code."""
        shape, x_BLW = x.shape, x.reshape(len(x), -1, x.shape[-1])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x_BLW += layer(norm(x_BLW).astype(compute_dtype(self.dtype)))
        return self.last_norm(x_BLW).reshape(shape)

    def _logits(self, x_BLW: jax.Array, q: int) -> Float[Array, "b l v"]:
        logits_BLV = project(x_BLW.astype(compute_dtype(self.dtype)), self.to_codes[...][q], out=jnp.float32)
        return constrain(logits_BLV, "batch", "length", "vocabulary")


def _scores(logits_BLQV: Float[Array, "b l q v"], target_BLQ: Int[Array, "b l q"]) -> Scores:
    normaliser_BLQ = jax.nn.logsumexp(logits_BLQV, axis=-1)
    chosen_BLQ = jnp.take_along_axis(logits_BLQV, target_BLQ[..., None], axis=-1)[..., 0]
    right_BLQ = chosen_BLQ >= jnp.max(logits_BLQV, axis=-1)
    return Scores(
        jnp.sum(chosen_BLQ - normaliser_BLQ, axis=-1),
        jnp.sum(jnp.square(normaliser_BLQ), axis=-1),
        jnp.mean(right_BLQ, axis=-1),
    )
