"""LoRA (Hu et al. 2021): frozen matrices of attention and MLP, each with a trained update of low rank, a @ b.

The rest of the program never sees it: the training's loss and `weights.load` add the updates to the matrices, which
gives a plain transformer again.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokvid.config import TransformerConfig
from tokvid.nn.blocks import MATRICES, weight
from tokvid.nn.frozen import freeze
from tokvid.sharding import constrain
from tokvid.transformer.model import Transformer


class LoRA(nnx.Module):
    """A frozen transformer, and the updates of its matrices by their names."""

    def __init__(self, config: TransformerConfig, rank: int, *, rngs: nnx.Rngs):
        self.transformer = Transformer(config, rngs=rngs)
        freeze(self.transformer, ("",))
        self.updates: nnx.Dict = nnx.Dict({})
        for path, leaf in nnx.to_flat_state(nnx.state(self.transformer)):
            if path[-1] in MATRICES:
                self.updates[_name(path)] = _Update(leaf, MATRICES[path[-1]], rank, rngs=rngs)

    def merged(self) -> Transformer:
        """A transformer with the updates added to its matrices."""
        graph, state = nnx.split(self.transformer)
        leaves = nnx.to_flat_state(state)
        return nnx.merge(
            graph, nnx.from_flat_state([(path, self._updated(_name(path), leaf)) for path, leaf in leaves])
        )

    def _updated(self, name: str, leaf: nnx.Variable) -> nnx.Variable:
        if name not in self.updates:
            return leaf
        update = self.updates[name]
        added = constrain(product(name, update.a[...], update.b[...]), *_axes(leaf))
        return leaf.replace(leaf[...] + added)


class _Update(nnx.Module):
    """The factors of a matrix's update: a (…, inputs, R), random, and b (…, R, outputs), zero at first."""

    def __init__(self, matrix: nnx.Variable, axes: tuple[int, int], rank: int, *, rngs: nnx.Rngs):
        inputs, outputs = axes
        stack, logical = len(matrix.shape) - inputs - outputs, _axes(matrix)
        before, into, out = matrix.shape[:stack], matrix.shape[stack : stack + inputs], matrix.shape[-outputs:]
        self.a = weight(rngs, (*before, *into, rank), math.prod(into), (*logical[stack : stack + inputs], None))
        self.b = weight(rngs, (*before, rank, *out), 1, (None, *logical[-outputs:]), gain=0.0)


def product_shape(name: str, a: Any, b: Any) -> tuple[int, ...]:
    """The shape of the update of the matrix `name`. ValueError if its factors don't fit."""
    inputs, outputs = MATRICES[name.rpartition(".")[2]]
    *before, rank = a.shape[: -inputs - 1] + a.shape[-1:]
    if b.shape[:-outputs] != (*before, rank):  # einsum would repeat an axis of length 1
        raise ValueError(f"its factors have shapes {a.shape} and {b.shape}")
    return (*a.shape[:-1], *b.shape[-outputs:])


def product(name: str, a: Any, b: Any) -> Any:
    """The update of the matrix `name`, by its factors; NumPy's or JAX's arrays. ValueError if they don't fit."""
    product_shape(name, a, b)
    inputs, outputs = MATRICES[name.rpartition(".")[2]]
    into, out = "ij"[:inputs], "xy"[:outputs]
    einsum = np.einsum if isinstance(a, np.ndarray) else jnp.einsum
    return einsum(f"...{into}r,...r{out}->...{into}{out}", a, b)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _axes(matrix: nnx.Variable) -> tuple[str | None, ...]:
    """The logical axes, one for each of the array's."""
    logical = matrix.get_metadata()["logical"]
    return (None,) * (len(matrix.shape) - len(logical)) + tuple(logical)
