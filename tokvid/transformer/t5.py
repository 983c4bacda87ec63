"""The encoder of T5 (Raffel et al. 2020, arXiv:1910.10683), v1.0 and v1.1, and of mT5: token ids to hidden states.

It is frozen here: its weights come from elsewhere (tokvid/text/t5.py), and everything is computed in float32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from tokvid.config import T5Config
from tokvid.nn.blocks import RMSNorm, weight


class T5(nnx.Module):
    """Ids (B, L), padded with -1, to hidden states (B, L, D), padded with zeros."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = weight(rngs, (config.vocabulary, config.width), 1, ("vocabulary", "embed"))
        self.nearness = weight(rngs, (config.buckets, config.heads), 1, (None, "heads"))  # shared by all layers
        stack = nnx.vmap(lambda key: T5Layer(config, rngs=nnx.Rngs(key)), in_axes=0, out_axes=0)
        self.blocks = stack(jax.random.split(rngs.params(), config.layers))
        self.norm = RMSNorm(config.width)

    def __call__(self, ids_BL: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        config, length = self.config, ids_BL.shape[1]
        distance_LS = np.arange(length) - np.arange(length)[:, None]
        nearness_LSN = self.nearness[...][bucket_of(distance_LS, config.buckets, config.farthest)]
        real_BL = ids_BL >= 0
        hidden_BS = jnp.where(real_BL, 0, jnp.finfo(jnp.float32).min)  # not -inf: a text may be all padding
        bias_BNLS = nearness_LSN.transpose(2, 0, 1)[None] + hidden_BS[:, None, None]
        graph, layers = nnx.split(self.blocks)
        with jax.default_matmul_precision("float32"):
            x_BLD = self.embedding[...][jnp.maximum(ids_BL, 0)]
            x_BLD, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graph, layer)(x, bias_BNLS), None), x_BLD, layers)
        return jnp.where(real_BL[..., None], self.norm(x_BLD), 0)


class T5Layer(nnx.Module):
    """Attention, whose scores are not scaled, and an MLP, each of normed input and added to it. There are no biases."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        D, N, E, F = config.width, config.heads, config.head_width, config.mlp
        self.attention_norm, self.mlp_norm = RMSNorm(D), RMSNorm(D)
        self.query = weight(rngs, (D, N, E), D, ("embed", "heads", None))
        self.key = weight(rngs, (D, N, E), D, ("embed", "heads", None))
        self.value = weight(rngs, (D, N, E), D, ("embed", "heads", None))
        self.out = weight(rngs, (N, E, D), N * E, ("heads", None, "embed"))
        if config.gated:
            self.gate = weight(rngs, (D, F), D, ("embed", "mlp"))
        self.up = weight(rngs, (D, F), D, ("embed", "mlp"))
        self.down = weight(rngs, (F, D), F, ("mlp", "embed"))
        self.gated = config.gated

    def __call__(self, x_BLD: Float[Array, "b l d"], bias_BNLS: Float[Array, "b n l s"]) -> Float[Array, "b l d"]:
        normed_BLD = self.attention_norm(x_BLD)
        query, key, value = (
            jnp.einsum("bld,dne->blne", normed_BLD, matrix[...]) for matrix in (self.query, self.key, self.value)
        )
        share_BNLS = jax.nn.softmax(jnp.einsum("blne,bsne->bnls", query, key) + bias_BNLS, axis=-1)
        mixed_BLNE = jnp.einsum("bnls,bsne->blne", share_BNLS, value)
        x_BLD += jnp.einsum("blne,ned->bld", mixed_BLNE, self.out[...])
        normed_BLD = self.mlp_norm(x_BLD)
        up_BLF = normed_BLD @ self.up[...]
        inner_BLF = jax.nn.gelu(normed_BLD @ self.gate[...]) * up_BLF if self.gated else jax.nn.relu(up_BLF)
        return x_BLD + inner_BLF @ self.down[...]


def bucket_of(distance_LS: Int[np.ndarray, "l s"], buckets: int, farthest: int) -> Int[np.ndarray, "l s"]:
    """The bucket of each distance, key minus query: half of the buckets are for keys before the query.

    In each half, the first half is for one distance each, the others for logarithmically growing ranges of distances,
    and the last one for `farthest` and all beyond.
    """
    half = buckets // 2
    exact = half // 2
    away_LS = np.abs(distance_LS)
    ratio_LS = np.maximum(away_LS, 1).astype(np.float32) / np.float32(exact)
    steps_LS = np.log(ratio_LS) / np.float32(math.log(farthest / exact)) * np.float32(half - exact)
    far_LS = np.minimum(exact + steps_LS.astype(np.int64), half - 1)
    return half * (distance_LS > 0) + np.where(away_LS < exact, away_LS, far_LS)
