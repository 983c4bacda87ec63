"""Attention as pure functions: one mask rule for every task, one place where the implementation is chosen."""

import functools
import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tokvid.errors import UserError, did_you_mean
from tokvid.sharding import platform

IMPLEMENTATIONS = ("auto", "xla", "cudnn")
NEVER = 2**30  # the block number of padding: later than every query, so nothing but padding sees it


def block_mask(
    query_block_BL: Int[Array, "b l"], key_block_BS: Int[Array, "b s"], window: int | None = None
) -> Bool[Array, "b l s"]:
    """Token i sees token j iff block[j] <= block[i]; with a window also block[j] > block[i] - window.

    Equal numbers see each other (text, a given clip, a row decoded at once); rising numbers are causal. For a text of
    two tokens, a padding token and two generated tokens, block = [0 0 . 1 2] with `.` for NEVER::

        0 0 . 1 2
        1 1 0 0 0   text sees all of the text
        1 1 0 0 0
        1 1 1 1 1   padding sees everything and is seen by none (its output is never used)
        1 1 0 1 0   the first generated token
        1 1 0 1 1   the second
    """
    query, key = query_block_BL[:, :, None], key_block_BS[:, None, :]
    mask_BLS = key <= query
    return mask_BLS if window is None else mask_BLS & (key > query - window)


def attend(
    query_BLNE: Float[Array, "b l n e"],
    key_BSKE: Float[Array, "b s k e"],
    value_BSKE: Float[Array, "b s k e"],
    mask_BLS: Bool[Array, "b l s"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "b l n e"]:
    """Scaled dot-product attention; N query heads share K key/value heads (N a multiple of K). Softmax in float32.

    `implementation` is "xla", "cudnn" (NVIDIA, 16-bit types, head width a multiple of 8) or "auto".
    """
    heads, kv_heads, width = query_BLNE.shape[2], key_BSKE.shape[2], query_BLNE.shape[3]
    if implementation == "auto":
        implementation = _choose(platform(), str(query_BLNE.dtype), width)
    if implementation == "cudnn":
        mask_BNLS = None if mask_BLS is None else mask_BLS[:, None]
        return jax.nn.dot_product_attention(query_BLNE, key_BSKE, value_BSKE, mask=mask_BNLS, implementation="cudnn")
    if implementation != "xla":
        raise UserError(did_you_mean(implementation, IMPLEMENTATIONS, "attention implementation"))
    query_BLKGE = query_BLNE.reshape(*query_BLNE.shape[:2], kv_heads, heads // kv_heads, width)
    scores_BKGLS = jnp.einsum("blkge,bske->bkgls", query_BLKGE, key_BSKE, preferred_element_type=jnp.float32)
    scores_BKGLS *= width**-0.5
    if mask_BLS is not None:
        scores_BKGLS += jnp.where(mask_BLS, 0.0, -1e30)[:, None, None]
    # The softmax is divided by its sum only after the values are mixed, where there is less to divide.
    scores_BKGLS -= jax.lax.stop_gradient(jnp.max(scores_BKGLS, axis=-1, keepdims=True))
    weights_BKGLS = jnp.exp(scores_BKGLS)
    sum_BLKG1 = jnp.einsum("bkgls->blkg", weights_BKGLS)[..., None]
    mixed_BLKGE = jnp.einsum(
        "bkgls,bske->blkge", weights_BKGLS.astype(value_BSKE.dtype), value_BSKE, preferred_element_type=jnp.float32
    )
    return (mixed_BLKGE / sum_BLKG1).astype(value_BSKE.dtype).reshape(query_BLNE.shape)


@functools.cache  # once per kind of call, so that the log says it once
def _choose(backend: str, dtype: str, width: int) -> str:
    cudnn = backend == "gpu" and dtype in ("bfloat16", "float16") and width % 8 == 0
    chosen = "cudnn" if cudnn else "xla"
    logging.getLogger(__name__).info("attention: %s (%s, %s, head width %d)", chosen, backend, dtype, width)
    return chosen
