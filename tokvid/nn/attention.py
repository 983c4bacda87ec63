"""Attention as pure functions, and the one place that chooses the implementation. Masks are in `visibility.py`.

To add an implementation: a function with `_xla`'s signature, an entry in IMPLEMENTATIONS, its rules in `_refusal`.
"""

import functools
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tokvid.errors import UserError, did_you_mean
from tokvid.nn.blockwise import blockwise
from tokvid.nn.visibility import Blocks, block_mask
from tokvid.sharding import LOGICAL, current_mesh, partition, parts, platform

LONG = {"cpu": 128}  # queries from which "auto" doesn't compute all scores at once
LONG_ELSEWHERE = 1024


def attend(
    query_BLNE: Float[Array, "b l n e"],
    key_BSKE: Float[Array, "b s k e"],
    value_BSKE: Float[Array, "b s k e"],
    blocks: Blocks | None = None,
    implementation: str = "auto",
    axes: tuple[str, str | None] = ("batch", "length"),
) -> Float[Array, "b l n e"]:
    """Scaled dot-product attention; N query heads share K key/value heads (N a multiple of K). Softmax in float32.

    Without `blocks`, every query sees every key. Padding's output is finite but meaningless. The implementations (any
    other name is a UserError):

    - "xla": any device; materialises the scores (B, N, L, S).
    - "blockwise": `nn/blockwise.py`, any device; a tile of scores at a time, hidden tiles skipped.
    - "cudnn": NVIDIA GPUs from Ampere on, 16-bit types; no scores in memory, but with `blocks` a mask (B, 1, L, S).
    - "tpu": `nn/flash.py`, a kernel that builds the mask from block numbers; interpreted on other devices, for tests.
    - "auto": chosen by target device and lengths.

    On a mesh, batch and heads stay sharded (`axes` are the logical axes of B and L). Where the length is sharded
    (context parallelism), each device keeps its queries and gathers all keys and values.
    """
    L, _, E = query_BLNE.shape[1:]
    name = _choose(implementation, platform(), str(query_BLNE.dtype), L, key_BSKE.shape[1], E, blocks is not None)
    attention = IMPLEMENTATIONS[name]
    batch, length = axes
    if length and L % parts(length):  # a decoding step: every device has all of its few queries
        length = None
    # XLA partitions its own operations, but not a kernel.
    if current_mesh() is None or (name == "xla" and (length is None or parts(length) == 1)):
        return attention(query_BLNE, key_BSKE, value_BSKE, blocks)
    return _on_each_device(attention, query_BLNE, key_BSKE, value_BSKE, blocks, (batch, length))


Attend = Callable[[jax.Array, jax.Array, jax.Array, Blocks | None], jax.Array]


def _xla(query_BLNE: jax.Array, key_BSKE: jax.Array, value_BSKE: jax.Array, blocks: Blocks | None) -> jax.Array:
    kv_heads, (heads, width) = key_BSKE.shape[2], query_BLNE.shape[2:]
    query_BLKGE = query_BLNE.reshape(*query_BLNE.shape[:2], kv_heads, heads // kv_heads, width)
    # Heads in front throughout: XLA's CPU backend is up to twice as fast as when the products transpose.
    query_BKGLE = query_BLKGE.transpose(0, 2, 3, 1, 4)
    scores_BKGLS = jnp.einsum("bkgle,bske->bkgls", query_BKGLE, key_BSKE, preferred_element_type=jnp.float32)
    scores_BKGLS *= width**-0.5
    if blocks is not None:
        scores_BKGLS += jnp.where(block_mask(*blocks), 0.0, -1e30)[:, None, None]
    # Dividing by the softmax's sum after mixing the values divides fewer elements.
    scores_BKGLS -= jax.lax.stop_gradient(jnp.max(scores_BKGLS, axis=-1, keepdims=True))
    weights_BKGLS = jnp.exp(scores_BKGLS)
    sum_BKGL1 = jnp.sum(weights_BKGLS, axis=-1, keepdims=True)
    mixed_BKGLE = jnp.einsum(
        "bkgls,bske->bkgle", weights_BKGLS.astype(value_BSKE.dtype), value_BSKE, preferred_element_type=jnp.float32
    )
    mixed_BLKGE = (mixed_BKGLE / sum_BKGL1).astype(query_BLNE.dtype).transpose(0, 3, 1, 2, 4)
    return mixed_BLKGE.reshape(query_BLNE.shape)


def _cudnn(query_BLNE: jax.Array, key_BSKE: jax.Array, value_BSKE: jax.Array, blocks: Blocks | None) -> jax.Array:
    mask_BNLS = None if blocks is None else block_mask(*blocks)[:, None]
    return jax.nn.dot_product_attention(query_BLNE, key_BSKE, value_BSKE, mask=mask_BNLS, implementation="cudnn")


def _tpu(query_BLNE: jax.Array, key_BSKE: jax.Array, value_BSKE: jax.Array, blocks: Blocks | None) -> jax.Array:
    from tokvid.nn.flash import flash  # late: Pallas takes a second to import

    if blocks is None:
        blocks = Blocks(jnp.zeros((1, query_BLNE.shape[1]), jnp.int32), jnp.zeros((1, key_BSKE.shape[1]), jnp.int32))
    return flash(query_BLNE, key_BSKE, value_BSKE, *blocks, interpret=platform() != "tpu")


IMPLEMENTATIONS: dict[str, Attend] = {
    "xla": _xla,
    "blockwise": blockwise,
    "cudnn": _cudnn,
    "tpu": _tpu,
}


def _on_each_device(
    attention: Attend,
    query_BLNE: jax.Array,
    key_BSKE: jax.Array,
    value_BSKE: jax.Array,
    blocks: Blocks | None,
    axes: tuple[str, str | None],
) -> jax.Array:
    """Each device attends with its shard of the batch, the heads and the queries.

    Where mesh axes don't divide the batch or the heads, all devices compute all of them.
    """
    mesh, split, (N, K) = current_mesh(), parts("heads"), (query_BLNE.shape[2], key_BSKE.shape[2])
    assert mesh is not None
    heads = "heads" if N % split == 0 else None
    if heads:  # each device needs the key heads of its query heads, copied where there are too few
        key_BSKE, value_BSKE = (jnp.repeat(x, split // math.gcd(split, K), axis=2) for x in (key_BSKE, value_BSKE))
    window = None if blocks is None else blocks.window
    queries = (query_BLNE, None if blocks is None else blocks.query_BL)
    keys = (key_BSKE, value_BSKE, None if blocks is None else blocks.key_BS)
    places = jax.tree.map(lambda x: partition((*axes, heads, None)[: x.ndim], x.shape, mesh), (queries, keys))
    across = LOGICAL[axes[1]] if axes[1] and places[1][0][1] else None

    def local(queries: tuple, keys: tuple) -> jax.Array:
        if across:
            keys = jax.tree.map(lambda x: jax.lax.all_gather(x, across, axis=1, tiled=True), keys)
        (query, query_block), (key, value, key_block) = queries, keys
        return attention(query, key, value, None if blocks is None else Blocks(query_block, key_block, window))

    divided = jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=places[0][0], check_vma=False)
    return divided(queries, keys)


@functools.cache  # logs each choice once
def _choose(requested: str, platform: str, dtype: str, queries: int, keys: int, width: int, masked: bool) -> str:
    """The implementation's name. UserError where the requested one cannot run."""
    if requested != "auto":
        if requested not in IMPLEMENTATIONS:
            raise UserError(did_you_mean(requested, ("auto", *IMPLEMENTATIONS), "attention implementation"))
        if why := _refusal(requested, platform, dtype, queries, keys, width, masked):
            raise UserError(f'attention "{requested}" {why}; use "auto" or another of {", ".join(IMPLEMENTATIONS)}')
        return requested
    kernel = {"gpu": "cudnn", "tpu": "tpu"}.get(platform)
    short = queries < 128 or keys < 128  # a decoding step, or one patch's history: a kernel saves nothing
    if kernel and not short and not _refusal(kernel, platform, dtype, queries, keys, width, masked):
        chosen = kernel
    else:
        chosen = "blockwise" if queries >= LONG.get(platform, LONG_ELSEWHERE) else "xla"
    log = logging.getLogger(__name__)
    log.info("attention: %s (%s, %s, %d queries, %d keys of width %d)", chosen, platform, dtype, queries, keys, width)
    return chosen


def _refusal(name: str, platform: str, dtype: str, queries: int, keys: int, width: int, masked: bool) -> str:
    """The reason why an implementation cannot run, or "". cuDNN's rules are those of its flash attention."""
    if name == "cudnn":
        if platform != "gpu":
            return f"needs an NVIDIA GPU, this is a {platform}"
        if float(getattr(jax.local_devices()[0], "compute_capability", "8.0")) < 8:
            return "needs an Ampere GPU or a later one"
        if dtype not in ("bfloat16", "float16"):
            return f"needs 16-bit types, not {dtype}; set dtype to bfloat16"
        if width % 8 or width > 128:
            return f"needs heads whose width is a multiple of 8 and at most 128, not {width}"
        if masked and (queries % 2 or keys % 2):
            return f"needs even lengths where there is a mask, not {queries} and {keys}"
    return ""
