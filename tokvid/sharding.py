"""The whole sharding policy: the mesh, one table of logical axes → mesh axes, and the shardings of any state by it."""

import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tokvid.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")

# A parameter names its logical axes where it is made (nn/blocks.py); this is where each of them goes.
LOGICAL: dict[str, str | None] = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocabulary": "tensor",
}
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(shape: tuple[int, int, int, int]) -> Mesh:
    """The mesh over all devices; one entry may be -1 (what is left). UserError where the numbers don't multiply up."""
    devices, sizes = jax.device_count(), list(shape)
    others = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and others > 0:
        sizes[sizes.index(-1)] = devices // others
    if len(sizes) != len(AXES) or min(sizes) < 1 or math.prod(sizes) != devices:
        raise UserError(f"mesh {shape} over {AXES} doesn't fit {devices} device(s); use -1 for one axis to fill up")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition(logical: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where an array lies. Axes before the named ones (stacked layers) and those that don't divide are replicated."""
    names = [None] * (len(shape) - len(logical)) + [LOGICAL[name] if name else None for name in logical]
    used = [name for name in names if name]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {logical} put two dimensions on one mesh axis: {names}")
    return PartitionSpec(
        *(name if name and size % mesh.shape[name] == 0 else None for name, size in zip(names, shape, strict=True))
    )


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf: parameters and whatever mirrors them (Adam's moments, EMA) by their logical axes."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            if not jax.tree.leaves(leaf):  # masked: an optimizer that leaves this parameter to another
                return leaf
            logical = leaf.get_metadata().get("logical", ())
            return leaf.replace(NamedSharding(mesh, partition(logical, leaf.shape, mesh)))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's share of a batch (NumPy) → global arrays, split over the data and fsdp axes."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch)
