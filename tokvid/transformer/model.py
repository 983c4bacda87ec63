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
MOST_CONDITIONS = 32  # of which each has an embedding; there is room, so that more can be fine-tuned


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
        # Of the stride; the name is that of saved weights.
        self.step = Linear(2 * OCTAVES, D, (None, "embed"), rngs=rngs)
        if config.conditions:
            self.condition = weight(rngs, (MOST_CONDITIONS, D), 1, (None, "embed"), gain=0.5)
        shape = BlockShape(D, config.heads, config.kv_heads, config.mlp, config.layers, config.dtype, config.attention)
        # Stacked on a leading axis, however the layers are then run, so that every checkpoint has one shape.
        stack = nnx.vmap(lambda key: Block(shape, rngs=nnx.Rngs(key)), in_axes=0, out_axes=0)
        self.blocks = stack(jax.random.split(rngs.params(), config.layers))
        self.norm = RMSNorm(D)
        self.head = make_head(config, rngs=rngs)

    def __call__(self, sequence: Sequence) -> Float[Array, "b l d"]:
        """The whole sequence at once: hidden states (B, L, D), normed, of every slot, for `head`."""
        hidden, _ = self.run(sequence, None, 0)
        return self.norm(hidden)

    def layers(self, scanned: bool | None = None) -> Any:
        """The layers' parameters as `run` goes through them: stacked where they are scanned, else a list.

        `scanned` as in the config, unless said. Called outside of a loop of steps and given to `run`, they aren't cut
        apart anew at every step.
        """
        layers = nnx.split(self.blocks)[1]
        scanned = self.config.scan_layers if scanned is None else scanned
        return layers if scanned else _unstack(layers, self.config.layers)

    def run(
        self, sequence: Sequence, cache: KVCache | None, slot: int | Int[Array, ""], layers: Any = None
    ) -> tuple[Float[Array, "b l d"], KVCache | None]:
        """Slots `slot`… of a sequence → hidden states (B, L, D) and the cache with these slots written.

        Without a cache the slots are the whole sequence and see one another; with one they see what it holds.
        """
        c, asked = self.config, sequence.token.shape[1]
        if cache is None:  # as context parallelism and kernels want it; 8 slots fill a tile of registers
            sequence = sequence.padded(parts("length") * (1 if platform() == "cpu" else 8))
        ticks_BLA = sequence.position * jnp.asarray([c.ticks_per_second, 1.0, 1.0])
        x_BLD = self._embed(sequence, ticks_BLA)
        turn = rotation(ticks_BLA, c.width // c.heads)
        seen_BS = sequence.block if cache is None else write_blocks(cache.block, sequence.block, slot)
        blocks = Blocks(sequence.block, seen_BS)
        graph, layers = nnx.graphdef(self.blocks), layers or self.layers()

        def layer(carry, inputs):
            x_BLD, past = carry
            params, number = inputs

            def remember(key_BLKE, value_BLKE):
                nonlocal past
                if past is None:
                    return key_BLKE, value_BLKE
                past, here = write_layer(past, key_BLKE, value_BLKE, number, slot)
                return here

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
        return x_BLD[:, :asked], None if past is None else KVCache(past[0], past[1], seen_BS)

    def empty_cache(self, batch: int, slots: int, layers: Any) -> KVCache:
        """A cache for sequences of at most `slots` slots, as `run` needs it for these `layers()`."""
        c, stacked = self.config, not isinstance(layers, list)
        return empty_cache(c.layers, batch, slots, c.kv_heads, c.width // c.heads, compute_dtype(c.dtype), stacked)

    def _embed(self, sequence: Sequence, ticks_BLA: Float[Array, "b l a"]) -> Float[Array, "b l d"]:
        # Whole rows are gathered from the table's parts, not parts of rows that XLA would then have to replicate.
        table = constrain(self.embedding[...], "vocabulary", None)
        rows_BLQD = table[jnp.maximum(sequence.token, 0)]
        if self.vocabulary.codes.per_token > 1:
            rows_BLQD = jnp.where(sequence.token[..., None] == NOTHING, 0, rows_BLQD)
        x_BLD = constrain(rows_BLQD.sum(axis=2), "batch", "length", None)
        order = constrain(self.text_order[...], None, None)[jnp.maximum(sequence.order, 0)]
        x_BLD += jnp.where(sequence.order[..., None] >= 0, order, 0)
        x_BLD += self.place(fourier_features(ticks_BLA, OCTAVES))
        # A rate is a number, not a name: rates between those trained on lie between their embeddings.
        for layer, number in ((self.rate, sequence.fps), (self.step, sequence.stride)):
            octave = jnp.log2(jnp.maximum(number.astype(jnp.float32), 1e-3))[..., None]
            x_BLD += jnp.where(number[..., None] > 0, layer(fourier_features(octave, OCTAVES, shortest=4.0)), 0)
        if self.config.conditions:
            kinds = constrain(self.condition[...], None, None)[jnp.maximum(sequence.condition - 1, 0)]
            x_BLD += jnp.where(sequence.condition[..., None] > 0, kinds, 0)
        return constrain(x_BLD, "batch", "length", None)


def _unstack(layers: nnx.State, count: int) -> list[nnx.State]:
    """Layer by layer. `split` costs one concatenation in the backward pass; indexing would add full-size zeros."""
    leaves, tree = jax.tree.flatten(layers)
    pieces = [[piece[0] for piece in jax.lax.split(leaf, (1,) * count)] for leaf in leaves]
    return [jax.tree.unflatten(tree, [piece[i] for piece in pieces]) for i in range(count)]
