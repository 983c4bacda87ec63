"""Where parameters and all that mirrors them lie; and that a training step on 8 devices is the step on one."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from tokvid.errors import UserError
from tokvid.sharding import AXES, constrain, make_mesh, partition, platform

MESH = AbstractMesh((2, 2, 2, 1), AXES)


@pytest.mark.parametrize(
    "logical, shape, wanted",
    [
        (("embed", "heads", None), (32, 4, 8), PartitionSpec("fsdp", "tensor", None)),
        (("mlp", "embed"), (6, 64, 32), PartitionSpec(None, "tensor", "fsdp")),  # layers stacked in front
        (("embed", "kv_heads", None), (32, 1, 8), PartitionSpec("fsdp", None, None)),  # one head can't be split
        ((None, "embed"), (5, 33), PartitionSpec(None, None)),
        ((), (), PartitionSpec()),
        (("batch", "length", None), (8, 6, 32), PartitionSpec(("data", "fsdp"), "context", None)),
        (("batch", "length", "heads", None), (2, 6, 4, 8), PartitionSpec("data", "context", "tensor", None)),
        (("clips", None, "mlp"), (8, 6, 5), PartitionSpec(("data", "fsdp", "context"), None, None)),
    ],
)
def test_the_table_places_every_axis(logical, shape, wanted):
    assert partition(logical, shape, MESH) == wanted


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match=r"\('heads', 'mlp'\).*one mesh axis.*'tensor'.*'tensor'"):
        partition(("heads", "mlp"), (4, 64), MESH)


def test_outside_of_a_mesh_nothing_is_constrained():
    x = np.ones((2, 3))
    assert constrain(x, "batch", "heads") is x and platform() == jax.default_backend()


def test_the_mesh_fills_up_or_says_why_not():
    count = jax.device_count()
    assert make_mesh((-1, 1, 1, 1)).size == make_mesh((count, 1, 1, 1)).size == count
    assert make_mesh((1, -1, 1, 1)).shape["fsdp"] == count
    for shape in ((count + 1, 1, 1, 1), (-1, 0, 1, 1), (-1, -1, 1, 1), (-1, count + 1, 1, 1), (-2, 1, 1, 1), (count,)):
        with pytest.raises(UserError) as error:
            make_mesh(shape)
        assert str(shape) in str(error.value) and f"{count} device(s)" in str(error.value)


@pytest.fixture(scope="module")
def eight_devices():
    """What `report` below found, in a process of its own: the number of devices is fixed when JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_mirrors_the_parameters_is_sharded_as_they_are(eight_devices):
    for kind, places in eight_devices["places"].items():
        assert places["mu"] == places["nu"] == places["ema"] == places["params"], kind
    places = eight_devices["places"]["transformer"]["params"]
    assert places["blocks.attention.query"] == [[None, "fsdp", "tensor", None], 4]  # in 4 parts, each on 2 devices
    assert places["embedding"] == [["tensor", "fsdp"], 4]
    assert places["norm.scale"] == [[None], 1]
    places = eight_devices["places"]["tokenizer"]["params"]
    assert places["encoder.0.mlp.down"] == [["tensor", "fsdp"], 4]


def test_a_step_on_eight_devices_is_the_step_on_one(eight_devices):
    assert eight_devices["start"] == 0, "the random initialisation depends on the mesh"
    assert eight_devices["step"] > 1e-3, "some parameter did not move"
    assert eight_devices["metrics"] < 1e-5 and eight_devices["opt_state"] < 1e-5  # Adam's moments are the gradients
    # Relative to the step made: Adam steps by a gradient's sign, so where that is all but 0, it is all but chance.
    assert eight_devices["params"] < 1e-3


def report():
    """Prints, as JSON, where two small models' states lie on a (2, 2, 2, 1) mesh, and how far a step there is off."""
    import optax
    from flax import nnx

    from tokvid.config import TokenizerConfig, TrainConfig, TransformerConfig
    from tokvid.sharding import shard_batch
    from tokvid.tokenizer.cvivit import CViViT
    from tokvid.train.state import abstract_state, init_state, make_step
    from tokvid.train.tokenizer_step import TokenizerTask
    from tokvid.train.transformer_step import TransformerTask
    from tokvid.types import token_batch

    class TinyTransformer(TransformerTask):
        config = TransformerConfig(
            vocabulary=50, text_vocabulary=20, text_length=4, width=32, layers=2, heads=4, kv_heads=2, mlp=64
        )

        def __init__(self):
            pass  # no token cache: only the model and its loss

    class TinyTokenizer(TokenizerTask):
        def __init__(self):
            pass

        def make_model(self, rngs):
            return CViViT(
                TokenizerConfig(width=32, heads=2, mlp=64, encoder=("space",), decoder=("time",), quantizer="fsq"),
                rngs=rngs,
            )

    def flat(tree):
        return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(tree)}

    def places(state):
        """By kind and name, the mesh axis of each dimension, and in how many different parts the array lies."""

        def place(leaf):
            return [list(leaf.sharding.spec), leaf.size // math.prod(leaf.sharding.shard_shape(leaf.shape))]

        trees = {name: optax.tree_utils.tree_get(state.opt_state, name) for name in ("mu", "nu")}
        trees |= {"params": state.params, "ema": state.ema}
        return {kind: {name: place(leaf) for name, leaf in flat(tree).items()} for kind, tree in trees.items()}

    rng = np.random.default_rng(0)
    batch = token_batch(
        tokens=rng.integers(0, 50, (8, 3, 2, 2), np.int32),
        start=np.int32([0, 1] * 4),
        fps=np.float32([2, 4, 8, 4] * 2),
        text=rng.integers(-1, 20, (8, 4), np.int32),
        known=np.arange(3) < np.int32([0, 1, 2, 0] * 2)[:, None],
    )
    eight = make_mesh((2, 2, 2, 1))
    one = jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])
    config = TrainConfig(warmup=0, learning_rate=1e-2)  # no warm-up, whose first step is 0
    begun, after, found = {}, {}, {}
    for mesh in (eight, one):
        task = TinyTransformer()
        like, graph = abstract_state(task, config, mesh)
        state = init_state(task, config, like)
        begun[mesh.size] = jax.tree.map(np.asarray, state)
        if mesh is eight:
            found["transformer"] = places(state)
        state, metrics = make_step(task, config, mesh, like, graph)(state, shard_batch(batch, mesh))
        after[mesh.size] = jax.tree.map(np.asarray, (state, metrics))
    tokenizer = TinyTokenizer()
    found["tokenizer"] = places(abstract_state(tokenizer, config, eight)[0])

    def apart(left, right, than):
        """The largest norm of a difference among the leaves, relative to that of `than`."""
        pairs = zip(*map(jax.tree.leaves, (left, right, than)), strict=True)
        return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(c), 1e-9)) for a, b, c in pairs)

    (state8, metrics8), (state1, metrics1) = after[8], after[1]
    step = jax.tree.map(np.subtract, state1.params, begun[1].params)
    found = {
        "places": found,
        "start": apart(begun[8], begun[1], begun[1]),
        "step": min(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(step)),
        "metrics": apart(metrics8, metrics1, metrics1),
        "opt_state": apart(state8.opt_state, state1.opt_state, state1.opt_state),
        "params": apart(state8.params, state1.params, step),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    report()
