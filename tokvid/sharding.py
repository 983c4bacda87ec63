"""The sharding policy: the mesh, and one table of logical axes → mesh axes for parameters, states and activations."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tokvid.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")

# Parameters name their logical axes where they are created, activations where they are computed (nn/blocks.py); this
# table maps the names to mesh axes. The width of activations has no name, because it is not sharded.
LOGICAL: dict[str, tuple[str, ...]] = {
    "embed": ("fsdp",),  # the width of parameters, gathered where it is used
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocabulary": ("tensor",),
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "clips": ("data", "fsdp", "context"),  # the batch of a model whose sequences are too short to shard
}
BATCH = PartitionSpec(LOGICAL["batch"])


def make_mesh(shape: tuple[int, int, int, int], among: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices, or over those in `among`; one entry may be -1 (the remaining devices).

    Slices of TPUs (DCN between them, ICI inside) lie along the data axis, which communicates least. UserError if the
    product of `shape` isn't the number of devices.
    """
    among = jax.devices() if among is None else among
    devices, sizes = len(among), list(shape)
    others = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and others > 0:
        sizes[sizes.index(-1)] = devices // others
    if len(sizes) != len(AXES) or min(sizes) < 1 or math.prod(sizes) != devices:
        raise UserError(f"mesh {shape} over {AXES} doesn't fit {devices} device(s); use -1 for one axis to fill up")
    types = (AxisType.Auto,) * len(AXES)
    # Ahead-of-time devices of a single slice have no slice_index.
    slices = len({getattr(device, "slice_index", 0) for device in among}) if among[0].platform == "tpu" else 1
    if slices == 1:
        try:
            return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=among)
        except NotImplementedError:  # an entry isn't a product of whole axes of the TPUs' torus
            placed = create_device_mesh(tuple(sizes), among, allow_split_physical_axes=True)
            return Mesh(placed, AXES, axis_types=types)
    if sizes[0] % slices:
        raise UserError(
            f"mesh {shape} over {AXES}: the {slices} slices lie along data, so {sizes[0]} should be a multiple of them"
        )
    inside = (sizes[0] // slices, *sizes[1:])
    return Mesh(
        create_hybrid_device_mesh(inside, (slices, 1, 1, 1), among, allow_split_physical_axes=True),
        AXES,
        axis_types=types,
    )


def partition(logical: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The PartitionSpec of an array. Axes before the named ones (stacked layers) are replicated.

    Of several mesh axes, a dimension is split over the longest prefix that divides it.
    """
    names = [()] * (len(shape) - len(logical)) + [LOGICAL[name] if name else () for name in logical]
    used = [name for several in names for name in several]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {logical} put two dimensions on one mesh axis: {names}")

    def place(several: tuple[str, ...], size: int) -> str | tuple[str, ...] | None:
        while several and size % math.prod(mesh.shape[name] for name in several):
            several = several[:-1]
        return several if len(several) > 1 else several[0] if several else None

    return PartitionSpec(*(place(several, size) for several, size in zip(names, shape, strict=True)))


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Functions traced inside are sharded on this mesh; without it, they run on the devices of their arguments."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def running_on(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Computations inside, such as sampling, run on this mesh: weights when they are loaded, then everything else."""
    return jax.set_mesh(mesh)


def settings_here() -> Callable[[], contextlib.AbstractContextManager]:
    """What gives another thread the settings of JAX that hold here by a `with` statement, which are a thread's own."""
    settings: Any = jax.config
    device, precision = settings.jax_default_device, settings.jax_default_matmul_precision

    @contextlib.contextmanager
    def there() -> Iterator[None]:
        with jax.default_device(device), jax.default_matmul_precision(precision):
            yield

    return there


def current_mesh() -> AbstractMesh | None:
    """The mesh of the current trace; None without a mesh or with a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 else None


def platform() -> str:
    """The platform of the current trace, which may differ from this machine's: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def parts(logical: str) -> int:
    """The number of devices over which the current mesh splits a logical axis."""
    mesh = current_mesh()
    return math.prod(mesh.shape[name] for name in LOGICAL[logical]) if mesh else 1


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """x, constrained to the mesh by one logical axis per dimension. Without a mesh, x."""
    mesh = current_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, partition(logical, x.shape, mesh))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf: parameters and their mirrors (Adam's moments, EMA) by their logical axes."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            if not jax.tree.leaves(leaf):  # masked: another optimizer updates this parameter
                return leaf
            logical = leaf.get_metadata().get("logical", ())
            return leaf.replace(NamedSharding(mesh, partition(logical, leaf.shape, mesh)))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def placed(tree: Any) -> Any:
    """A tree of variables, moved to the current mesh if there is one."""
    mesh = jax.sharding.get_mesh()
    return tree if mesh.empty else jax.device_put(tree, shardings(tree, mesh))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's part of a batch (NumPy) → global arrays, split over the data and fsdp axes."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch)
