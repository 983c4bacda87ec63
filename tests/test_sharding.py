"""Where parameters and all that mirrors them lie; and that 8 devices train and sample as one does."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from tokvid.errors import UserError
from tokvid.sharding import AXES, LOGICAL, constrain, make_mesh, on_mesh, partition, platform

MESH = AbstractMesh((2, 2, 2, 1), AXES)
SHAPES = ((2, 2, 2, 1), (1, 2, 2, 2))  # each axis is in one or both
pytestmark = pytest.mark.timeout(900)  # `report` compiles for a minute and a half of CPU time, and machines are shared


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


@pytest.mark.parametrize("name", LOGICAL)
def test_every_row_of_the_table_splits_over_axes_of_the_mesh(name):
    axes = LOGICAL[name]
    assert set(axes) <= set(AXES) and len(set(axes)) == len(axes)
    assert partition((name,), (64,), MESH) == PartitionSpec(axes if len(axes) > 1 else (*axes, None)[0])


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match=r"\('heads', 'mlp'\).*one mesh axis.*'tensor'.*'tensor'"):
        partition(("heads", "mlp"), (4, 64), MESH)


def test_outside_of_a_mesh_nothing_is_constrained():
    x = np.ones((2, 3))
    assert constrain(x, "batch", "heads") is x and platform() == jax.default_backend()


def test_on_a_mesh_the_platform_is_that_of_its_devices():
    """As the oldest JAX that pyproject.toml allows must know it, too: scripts/oldest.sh."""
    with on_mesh(make_mesh((-1, 1, 1, 1))):
        assert platform() == jax.default_backend()


def test_the_mesh_fills_up_or_says_why_not():
    count = jax.device_count()
    assert make_mesh((-1, 1, 1, 1)).size == make_mesh((count, 1, 1, 1)).size == count
    assert make_mesh((1, -1, 1, 1)).shape["fsdp"] == count
    for shape in ((count + 1, 1, 1, 1), (-1, 0, 1, 1), (-1, -1, 1, 1), (-1, count + 1, 1, 1), (-2, 1, 1, 1), (count,)):
        with pytest.raises(UserError) as error:
            make_mesh(shape)
        assert str(shape) in str(error.value) and f"{count} device(s)" in str(error.value)


@dataclasses.dataclass(frozen=True)
class FakeTpu:
    """A chip of a 2x2 slice."""

    id: int
    platform: str = "tpu"
    device_kind: str = "fake"
    core_on_chip: int = 0

    slice_index = process_index = property(lambda self: self.id // 4)
    coords = property(lambda self: (self.id % 2, self.id % 4 // 2, 0))


def test_slices_lie_along_the_data_axis():
    eight = [FakeTpu(i) for i in range(8)]
    mesh = make_mesh((-1, 2, 2, 1), eight)
    assert mesh.devices.shape == (2, 2, 2, 1)
    for index in (0, 1):
        assert {device.slice_index for device in mesh.devices[index].ravel()} == {index}
    with pytest.raises(UserError, match=r"\(1, 4, 2, 1\).*2 slices.*data"):
        make_mesh((1, 4, 2, 1), eight)


@pytest.fixture(scope="module")
def eight_devices():
    """What `report` below found, in a process of its own: the number of devices is fixed when JAX starts."""
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
    flags += [
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_backend_optimization_level=0",
    ]  # nearly all is compiling
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ
        | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"complaints": done.stderr}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_mirrors_the_parameters_is_sharded_as_they_are(eight_devices, shape):
    for kind, places in eight_devices["places"][str(shape)].items():
        assert places["mu"] == places["nu"] == places["ema"] == places["params"], kind


def test_parameters_lie_where_the_table_says(eight_devices):
    places = eight_devices["places"][str((2, 2, 2, 1))]
    params = places["transformer"]["params"]
    assert params["blocks.attention.query"] == [[None, "fsdp", "tensor", None], 4]  # in 4 parts, each on 2 devices
    assert params["embedding"] == [["tensor", "fsdp"], 4]
    assert params["norm.scale"] == [[None], 1]
    assert places["subcodes"]["params"]["head.to_codes"] == [[None, "fsdp", "tensor"], 4]
    assert places["tokenizer"]["params"]["encoder.0.mlp.down"] == [["tensor", "fsdp"], 4]


@pytest.mark.parametrize(
    "kind, shape",
    [("transformer", shape) for shape in SHAPES]
    + [("tokenizer", shape) for shape in SHAPES]
    + [("subcodes", SHAPES[0])],
)
def test_training_on_eight_devices_is_training_on_one(eight_devices, kind, shape):
    """Context parallelism included, and a sequence of 17 slots that it doesn't divide."""
    found = eight_devices["trained"][kind][str(shape)]
    assert found["start"] == 0, "the random initialisation depends on the mesh"
    assert found["moved"] > 0.02, "the loss did not move"
    assert found["losses"] < 1e-5 and found["moments"] < 1e-5  # Adam's moments after a step are the gradients


def test_nothing_is_replicated_for_want_of_a_better_way(eight_devices):
    assert "nvoluntary" not in eight_devices["complaints"]


def test_a_checkpoint_is_restored_on_any_mesh(eight_devices):
    assert eight_devices["restored"] == {str(shape): True for shape in SHAPES}


def test_a_batch_sampled_on_a_mesh_has_the_tokens_of_one_device(eight_devices):
    assert eight_devices["sampled"]["same"] and eight_devices["sampled"]["different_tokens"] > 10
    assert eight_devices["sampled"]["parts"] == 4  # of the embedding: it was on the mesh


def test_videos_of_different_devices_have_nothing_to_say_to_one_another(eight_devices):
    assert eight_devices["sampled"]["exchanged"] == []


def report():
    """Prints, as JSON, what two small models' states and losses are on meshes of one device and of eight."""
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from tokvid.config import Recipe, Sampling, TokenizerConfig, TrainConfig, TransformerConfig
    from tokvid.plan.work import work
    from tokvid.sampling.decode import Request, generate
    from tokvid.sharding import BATCH, placed, running_on, shard_batch
    from tokvid.tokenizer.cvivit import CViViT
    from tokvid.train.checkpoints import Checkpoints
    from tokvid.train.state import abstract_state, init_state, make_step
    from tokvid.train.tokenizer_step import Players, TokenizerTraining
    from tokvid.train.transformer_step import TransformerTraining
    from tokvid.types import VideoBatch, token_batch

    class TinyTransformer(TransformerTraining):
        config = TransformerConfig(
            vocabulary=50, text_vocabulary=20, text_length=4, width=32, layers=2, heads=4, kv_heads=2, mlp=64,
            dtype="float32",
        )  # fmt: skip

        recipe = Recipe()

        def __init__(self):
            pass  # no token cache: only the model and its loss

    class TinySubcodes(TinyTransformer):
        name = "subcodes"
        config = dataclasses.replace(TinyTransformer.config, subcodes=3, layers=1, head_width=24, head_layers=1)

    class TinyTokenizer(TokenizerTraining):
        config = TokenizerConfig(
            size=(16, 16), width=32, heads=2, mlp=64, encoder=("space",), decoder=("time",), quantizer="fsq",
            dtype="float32",
        )  # fmt: skip
        recipe = Recipe()

        def __init__(self):
            pass

        def make_model(self, rngs):
            return Players(CViViT(self.config, rngs=rngs), None, None)

    def flat(tree):
        return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(tree)}

    def place(leaf):
        """The mesh axis of each dimension, and in how many different parts the array lies."""
        return [list(leaf.sharding.spec), leaf.size // math.prod(leaf.sharding.shard_shape(leaf.shape))]

    def places(state):
        """By kind and name."""
        trees = {name: optax.tree_utils.tree_get(state.opt_state, name) for name in ("mu", "nu")}
        trees |= {"params": state.params, "ema": state.ema}
        return {
            kind: {name.removeprefix("tokenizer."): place(leaf) for name, leaf in flat(tree).items()}
            for kind, tree in trees.items()
        }

    def apart(left, right):
        """The largest norm of a difference among the leaves, relative to that of `right`."""
        pairs = zip(*map(jax.tree.leaves, (left, right)), strict=True)
        return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-9)) for a, b in pairs)

    rng = np.random.default_rng(0)
    windows = token_batch(
        tokens=rng.integers(0, 50, (8, 3, 2, 2, 1), np.int32),
        start=np.int32([0, 1] * 4),
        fps=np.float32([2, 4, 8, 4] * 2),
        text=rng.integers(-1, 20, (8, 4), np.int32),
        known=np.arange(3) < np.int32([0, 1, 2, 0] * 2)[:, None],
    )
    subcodes = windows._replace(tokens=rng.integers(0, 50, (8, 3, 2, 2, 3), np.int32))
    clips = VideoBatch(
        video=rng.integers(0, 256, (8, 3, 16, 16, 3)).astype(np.uint8),
        fps=np.full(8, 2, np.float32),
        images=np.zeros((8, 0, 16, 16, 3), np.uint8),
        text=np.zeros((8, 0), np.int32),
    )
    one = jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])
    meshes = {"one": one} | {str(shape): make_mesh(shape) for shape in SHAPES}
    config = TrainConfig(warmup=0, learning_rate=1e-3, steps=50)  # no warm-up, whose first step is 0
    found = {"places": {name: {} for name in meshes}, "trained": {}, "restored": {}}
    likes, ends = {}, {}
    tasks = (TinyTokenizer(), clips, 10), (TinySubcodes(), subcodes, 10), (TinyTransformer(), windows, 50)
    for training, batch, steps in tasks:
        runs = {}
        for name, mesh in meshes.items():
            if training.name == "subcodes" and name not in ("one", str(SHAPES[0])):
                continue  # they differ in the head alone
            likes[name], graph = abstract_state(training, config, mesh)
            state = init_state(training, config, likes[name])
            begun, step, losses = (
                jax.tree.map(np.asarray, state),
                make_step(training, config, mesh, likes[name], graph),
                [],
            )
            for number in range(steps):
                state, metrics = step(state, shard_batch(batch, mesh))
                losses.append(float(metrics["loss"]))
                if number == 0:
                    found["places"][name][training.name] = places(state)
                    moments = jax.tree.map(np.asarray, state.opt_state)
            runs[name], ends[name] = (begun, moments, np.array(losses)), state
        begun1, moments1, losses1 = runs.pop("one")
        found["trained"][training.name] = {
            name: {
                "start": apart(begun, begun1),
                "moments": apart(moments, moments1),
                "losses": float(np.max(np.abs(losses - losses1) / losses1)),
                "moved": float(abs(losses[-1] - losses[0])),
            }
            for name, (begun, moments, losses) in runs.items()
        }
    with tempfile.TemporaryDirectory() as folder:  # the transformer's: each on the mesh after it
        others = [*meshes][1:] + [*meshes][:1]
        for name, other in zip(meshes, others, strict=True):
            if name == "one":
                continue
            with Checkpoints(Path(folder) / name, 1, {}) as checkpoints:
                checkpoints.save(50, ends[name], {})
                checkpoints.wait()
                _, state, _ = checkpoints.restore(likes[other])
            same = jax.tree.map(lambda a, b: np.array_equal(a, b), state, ends[name])
            there = jax.tree.map(lambda a, b: a.sharding == b.sharding, state, likes[other])
            found["restored"][name] = all(jax.tree.leaves((same, there)))

    guidance_BT, no_text, keys_B = np.full((8, 3), 2, np.float32), np.full((8, 4), -1, np.int32), jnp.arange(8)
    known_BTHW = np.broadcast_to(np.arange(3)[:, None, None] < 1, (8, 3, 2, 2))
    asked = windows._replace(known=known_BTHW), no_text, jax.vmap(jax.random.key)(keys_B), guidance_BT
    how = {"sampling": Sampling(top_k=5), "guided": True}

    def sample():
        params = placed(jax.tree.map(np.asarray, ends["one"].params))
        return np.asarray(generate(graph, params, Request(*asked, np.int32(4), np.int32(8)), **how)), params

    alone, _ = sample()
    with running_on(make_mesh((2, 2, 2, 1))):
        spread, params = sample()
        parts = place(flat(params)["embedding"])[1]
    data = make_mesh((8, 1, 1, 1))
    with running_on(data):
        asked, copies = jax.device_put(asked, NamedSharding(data, BATCH)), placed(params)
        request = Request(*asked, np.int32(4), np.int32(8))
        program = generate.lower(graph, copies, request, **how | {"sampling": Sampling()}).compile().as_text()
    found["sampled"] = {
        "exchanged": [f"{each.kind} {each.source}" for each in work(program, 8).collectives],
        "same": np.array_equal(alone, spread),
        "different_tokens": len(np.unique(alone)),
        "parts": parts,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    report()
