"""The trunk: a decoder-only transformer over layouts (docs/design.md). One forward pass trains and samples."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tokvid.config import TransformerConfig
from tokvid.nn.blocks import Block, BlockShape, Linear, RMSNorm, rematerialised, weight
from tokvid.nn.cache import KVCache, empty_cache, write_blocks, write_layer
from tokvid.nn.position import fourier_features, rotation
from tokvid.nn.products import compute_dtype
from tokvid.nn.visibility import Blocks
from tokvid.sharding import constrain, parts, platform
from tokvid.transformer.head import make_head
from tokvid.transformer.layout import NOTHING, Sequence, vocabulary_of

OCTAVES = 8  # Fourier features per axis
MOST_CONDITIONS = 32  # with an embedding each; spare ones are for fine-tuning


class Transformer(nnx.Module):
    """Sequences of slots → hidden states, from which `head` predicts each slot's video token."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vocabulary = vocabulary_of(config)
        D = config.width
        self.embedding = weight(rngs, (self.vocabulary.size, D), 1, ("vocabulary", "embed"), gain=0.5)
        self.text_order = weight(rngs, (config.text_length, D), 1, (None, "embed"), gain=0.5)
        self.place = Linear(3 * 2 * OCTAVES, D, (None, "embed"), rngs=rngs)
        self.rate = Linear(2 * OCTAVES, D, (None, "embed"), rngs=rngs)
        # The stride's embedding, under its name in saved weights.
        self.step = Linear(2 * OCTAVES, D, (None, "embed"), rngs=rngs)
        if config.text_width:
            self.text_norm = RMSNorm(config.text_width)
            self.text = Linear(config.text_width, D, (None, "embed"), rngs=rngs)
        if config.conditions:
            self.condition = weight(rngs, (MOST_CONDITIONS, D), 1, (None, "embed"), gain=0.5)
        shape = BlockShape(D, config.heads, config.kv_heads, config.mlp, config.layers, config.dtype, config.attention)
        # Stacked on a leading axis, scanned or not, so that all checkpoints have one shape.
        stack = nnx.vmap(lambda key: Block(shape, rngs=nnx.Rngs(key)), in_axes=0, out_axes=0)
        self.blocks = stack(jax.random.split(rngs.params(), config.layers))
        self.norm = RMSNorm(D)
        self.head = make_head(config, rngs=rngs)

    def __call__(self, sequence: Sequence) -> Float[Array, "b l d"]:
        """The whole sequence at once: normed hidden states (B, L, D) of every slot, for `head`."""
        hidden, _ = self.run(sequence, None, 0)
        return self.norm(hidden)

    def layers(self, scanned: bool | None = None) -> Any:
        """The layers' parameters, for `run`: stacked where they are scanned (default: as in the config), else a list.

        A loop of steps calls this once, outside, so that the stack isn't split again at every step.
        """
        layers = nnx.split(self.blocks)[1]
        scanned = self.config.scan_layers if scanned is None else scanned
        return layers if scanned else _unstack(layers, self.config.layers)

    def run(
        self, sequence: Sequence, cache: KVCache | None, slot: int | Int[Array, ""], layers: Any = None
    ) -> tuple[Float[Array, "b l d"], KVCache | None]:
        """The slots of a sequence from `slot` on → hidden states (B, L, D), and the cache with these slots written.

        Without a cache, the slots are the whole sequence and see one another; with one, they see the slots in it.
        """
        c, count = self.config, sequence.token.shape[1]
        if cache is None:  # for context parallelism and kernels; 8 slots fill a tile of registers
            sequence = sequence.padded(parts("length") * (1 if platform() == "cpu" else 8))
        ticks_BLA = sequence.position * jnp.asarray([c.ticks_per_second, 1.0, 1.0])
        x_BLD = self._embed(sequence, ticks_BLA)
        turn = rotation(ticks_BLA, c.width // c.heads)
        key_block_BS = sequence.block if cache is None else write_blocks(cache.block, sequence.block, slot)
        blocks = Blocks(sequence.block, key_block_BS)
        graph, layers = nnx.graphdef(self.blocks), layers or self.layers()

        def layer(carry, inputs):
            x_BLD, past = carry
            params, number = inputs

            def remember(key_BLKE, value_BLKE):
                nonlocal past
                if past is None:
                    return key_BLKE, value_BLKE
                past, layer_cache = write_layer(past, key_BLKE, value_BLKE, number, slot)
                return layer_cache

            x_BLD = nnx.merge(graph, params)(x_BLD, turn, blocks, remember)
            return (x_BLD, past), None

        body = rematerialised(layer, c.remat if cache is None else "none")  # with a cache there is no backward pass
        carry = (x_BLD, None if cache is None else (cache.key, cache.value))
        if isinstance(layers, list):
            for number, params in enumerate(layers):
                carry, _ = body(carry, (params, number))
        else:
            carry, _ = jax.lax.scan(body, carry, (layers, jnp.arange(c.layers)))
        x_BLD, past = carry
        return x_BLD[:, :count], None if past is None else KVCache(past[0], past[1], key_block_BS)

    def empty_cache(self, batch: int, slots: int, layers: Any) -> KVCache:
        """A cache for sequences of at most `slots` slots, for `run` with these `layers()`."""
        c, stacked = self.config, not isinstance(layers, list)
        # XLA's CPU backend writes a slot of a 16-bit cache by converting all of it to float32 and back.
        dtype = "float32" if platform() == "cpu" else compute_dtype(c.dtype)
        return empty_cache(c.layers, batch, slots, c.kv_heads, c.width // c.heads, dtype, stacked)

    def _embed(self, sequence: Sequence, ticks_BLA: Float[Array, "b l a"]) -> Float[Array, "b l d"]:
        # Whole rows are gathered from the table's shards: for parts of rows, XLA would replicate the table.
        table = constrain(self.embedding[...], "vocabulary", None)
        rows_BLQD = table[jnp.maximum(sequence.token, 0)]
        if self.vocabulary.codes.per_token > 1 or self.config.text_width:
            rows_BLQD = jnp.where(sequence.token[..., None] == NOTHING, 0, rows_BLQD)
        x_BLD = constrain(rows_BLQD.sum(axis=2), "batch", "length", None)
        order = constrain(self.text_order[...], None, None)[jnp.maximum(sequence.order, 0)]
        x_BLD += jnp.where(sequence.order[..., None] >= 0, order, 0)
        if self.config.text_width:
            x_BLD += jnp.where(sequence.order[..., None] >= 0, self.text(self.text_norm(sequence.state)), 0)
        x_BLD += self.place(fourier_features(ticks_BLA, OCTAVES))
        # Rates are embedded as numbers, so a rate between two trained ones lies between their embeddings.
        for layer, number in ((self.rate, sequence.fps), (self.step, sequence.stride)):
            octave = jnp.log2(jnp.maximum(number.astype(jnp.float32), 1e-3))[..., None]
            x_BLD += jnp.where(number[..., None] > 0, layer(fourier_features(octave, OCTAVES, shortest=4.0)), 0)
        if self.config.conditions:
            embedding = constrain(self.condition[...], None, None)[jnp.maximum(sequence.condition - 1, 0)]
            x_BLD += jnp.where(sequence.condition[..., None] > 0, embedding, 0)
        return constrain(x_BLD, "batch", "length", None)


def _unstack(layers: nnx.State, count: int) -> list[nnx.State]:
    """A list of layers. `split` costs one concatenation in the backward pass; indexing would add full-size zeros."""
    leaves, tree = jax.tree.flatten(layers)
    pieces = [[piece[0] for piece in jax.lax.split(leaf, (1,) * count)] for leaf in leaves]
    return [jax.tree.unflatten(tree, [piece[i] for piece in pieces]) for i in range(count)]
