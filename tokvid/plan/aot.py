"""Compiles a pod's programs ahead of time on this machine, which needs no TPU or GPU.

libtpu compiles for TPUs without one. There is nothing like it for GPUs, so their programs are compiled for as many
virtual CPUs: sharding and FLOPs are the same, temporaries and collectives are upper estimates.
"""

import contextlib
import dataclasses
import importlib.util
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tokvid.config import Recipe, Sampling, TransformerConfig
from tokvid.errors import UserError, did_you_mean
from tokvid.flops import CHIPS, Chip, chip_of
from tokvid.io.libtpu import pretend_tpu
from tokvid.sampling.decode import Request, generate
from tokvid.sharding import BATCH, make_mesh, on_mesh, shardings
from tokvid.train.state import abstract_state, make_step
from tokvid.train.transformer_step import TransformerTraining
from tokvid.train.windows import Share, batch_kinds
from tokvid.transformer.layout import condition_shape
from tokvid.transformer.model import Transformer
from tokvid.types import Clip, TokenBatch, token_batch

NODE = 8  # GPUs that NVLink joins
VIDEOS = 8  # sampled at once per copy of the weights


class DoesNotFit(Exception):
    """The program needs more memory than a device has; the message states both."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for, in one slice or several; `dims` are the dimensions of each slice's torus."""

    name: str
    chip: Chip
    dims: tuple[int, ...]
    devices: list[Any]

    @property
    def stand_in(self) -> bool:
        """Whether the devices only stand in for the chips."""
        return self.devices[0].platform == "cpu"


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its text, and the bytes of memory per device by kind.

    `least_bytes`: arguments and results, each read or written once.
    """

    text: str
    memory: dict[str, float]
    least_bytes: float
    seconds: float  # compile time


def topology(name: str, slices: int = 1) -> Topology:
    """`slices` slices of the topology `name`, such as "v5p:4x4x8", or the GPUs of a machine, such as "h100:8".

    UserError for an unknown name or, for TPUs, without libtpu.
    """
    kind, names = name.partition(":")[0], [chip.name for chip in CHIPS]
    if kind not in names:
        raise UserError(
            f"{did_you_mean(kind, names, 'chip')}; a topology is a chip and its sizes, such as v5p:4x4x8 or h100:8"
        )
    chip = next(chip for chip in CHIPS if chip.name == kind)
    if slices < 1 or (slices > 1 and not chip.network):
        raise UserError(f"{slices} slices of {kind}: give 1 or more, and only 1 if its network is unknown")
    return _tpus(name, slices) if chip.kinds[0].startswith("TPU") else _gpus(name, chip)


def _gpus(name: str, chip: Chip) -> Topology:
    sizes = name.partition(":")[2]
    if not re.fullmatch(r"[1-9]\d*", sizes) or int(sizes) > NODE:
        raise UserError(f"topology {name!r} should be a GPU and how many, 1 to {NODE}, such as h100:8")
    count = int(sizes)
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX has started already, maybe with as many
        jax.config.update("jax_num_cpu_devices", count)
    if len(jax.devices()) < count:
        raise UserError(f"{name} needs {count} virtual CPUs to compile for: export JAX_NUM_CPU_DEVICES={count}")
    return Topology(name, chip, (count,), jax.devices()[:count])


def _tpus(name: str, slices: int) -> Topology:
    sizes = name.partition(":")[2]
    dims = tuple(map(int, re.findall(r"\d+", sizes)))
    if not re.fullmatch(r"\d+(x\d+){1,2}", sizes) or 0 in dims:
        raise UserError(f"topology {name!r} should be a TPU and its sizes, such as v5p:4x4x8 or v6e:16x16")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning compiles with libtpu, which isn't installed: pip install 'tokvid[tpu]'")
    pretend_tpu()
    jax.config.update("jax_platforms", "cpu")
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        devices: Any = list(topologies.get_topology_desc(platform="tpu", topology_name=name, **several).devices)
    except Exception as error:  # libtpu raises various types for a shape that no pod has
        raise UserError(f"there is no topology {name}: {_first_line(error)}") from error
    chip = chip_of(devices[0].device_kind)
    if chip is None or len(devices) != slices * math.prod(dims):
        raise UserError(
            f"{name} has {len(devices)} devices of kind {devices[0].device_kind}, which `plan` doesn't support"
        )
    return Topology(name, chip, dims, devices)


def longest_kind(recipe: Recipe) -> Share:
    """The kind of batch with the most slots, which needs the most memory and time."""
    return max(batch_kinds(recipe.layouts, recipe.transformer), key=lambda each: each.windows * each.slots)


def training_program(recipe: Recipe, mesh: Mesh) -> Program:
    """The transformer's training step of its longest batches, as `train.loop` runs it. DoesNotFit if XLA runs out of
    memory."""
    training, config = TransformerTraining(recipe), recipe.train_transformer
    like, graph = abstract_state(training, config, mesh)
    batch = _laid_out(windows(recipe.transformer, config.batch, longest_kind(recipe).kind.conditions), mesh)
    program = _compile(make_step(training, config, mesh, like, graph), mesh, like, batch)
    parts = {"parameters": like.params, "optimizer": like.opt_state, "averaged parameters": like.ema}
    return _by_kind(program, {name: _bytes(part) for name, part in parts.items()})


def decoding_program(config: TransformerConfig, mesh: Mesh, sampling: Sampling) -> Program:
    """What makes one window of VIDEOS videos for each copy of the weights, with guidance."""
    graph, params = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        params,
        shardings(params, mesh),
    )
    videos, frames = VIDEOS * mesh.shape["data"] * mesh.shape["fsdp"], config.latent_frames
    batch = windows(config, videos)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), videos))
    guidance_BT = np.zeros((videos, frames), np.float32)
    window, negative, keys, guidance = _laid_out((batch, batch.text, keys, guidance_BT), mesh)
    count = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    options: dict[str, Any] = {"sampling": sampling, "guided": True}
    request = Request(window, negative, keys, guidance, known=count, tokens=count)
    program = _compile(generate, mesh, graph, params, request, **options)
    return _by_kind(program, {"parameters": _bytes(params)})


def decoding_mesh(config: TransformerConfig, target: Topology) -> Mesh:
    """The mesh with the most copies of the weights: each on the fewest chips where it takes a quarter of the memory."""
    params = nnx.eval_shape(lambda: nnx.state(Transformer(config, rngs=nnx.Rngs(0))))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    ways = [n for n in (1, 2, 4, 8, 16) if not config.heads % n and not len(target.devices) % n]
    fewest = next((n for n in ways if size / n <= target.chip.memory / 4), ways[-1])
    return make_mesh((-1, 1, fewest, 1), target.devices)


def windows(config: TransformerConfig, batch: int, names: Sequence[str] = ()) -> TokenBatch:
    """A batch of windows, empty, maybe with conditions: programs are compiled for its shapes."""
    zeros, ones = np.zeros(batch, np.int32), np.ones(batch, np.float32)
    text = np.zeros((batch, config.text_length), np.int32)
    if config.text_width:
        text = np.zeros((*text.shape, config.text_width), np.float16)
    shapes = [(batch, *condition_shape(config, name), config.subcodes) for name in names]
    conditions = [Clip(np.zeros(shape, np.int32), zeros, ones, zeros) for shape in shapes]
    return token_batch(
        tokens=np.zeros((batch, *config.latent, config.subcodes), np.int32),
        start=zeros,
        fps=ones,
        text=text,
        conditions=conditions,
    )


def _laid_out(tree: Any, mesh: Mesh) -> Any:
    place = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def _compile(function: Any, mesh: Mesh, *arguments: Any, **options: Any) -> tuple[Any, float]:
    began = time.monotonic()
    with on_mesh(mesh):
        lowered = function.trace(*arguments, **options).lower(lowering_platforms=(mesh.devices.flat[0].platform,))
    try:
        return lowered.compile(), time.monotonic() - began
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_first_line(error)) from error


def _by_kind(program: tuple[Any, float], arguments: dict[str, float]) -> Program:
    compiled, seconds = program
    analysis = compiled.memory_analysis()
    memory = arguments | {
        "batch and padding": analysis.argument_size_in_bytes - sum(arguments.values()),
        "temporaries": analysis.temp_size_in_bytes,
        "output": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,  # excluding outputs written in place
        "code": analysis.generated_code_size_in_bytes,
    }
    least = float(analysis.argument_size_in_bytes + analysis.output_size_in_bytes)
    return Program(compiled.as_text(), {name: float(size) for name, size in memory.items()}, least, seconds)


def _bytes(tree: Any) -> float:
    """Bytes per device."""
    return float(
        sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    )


def _first_line(error: Exception) -> str:
    """XLA's message without its error code and trace."""
    text = str(error).strip().splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    if match := re.search(r"(?i)(ran out of memory in memory space \w+)\. (used [\d.]+\w* of [\d.]+\w*)", text):
        return f"{match[1]}: {match[2]}"
    return text
