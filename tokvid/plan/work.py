"""The work of a compiled program, from its HLO text: FLOPs, memory traffic and collectives, over all loop iterations.

XLA's own cost analysis counts a loop's body once, so a model with scanned layers would appear to have a single layer.
Here every instruction counts as often as it runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tokvid.plan.hlo import Computation, Instruction, Shape, called, field, groups_of, number, numbers, parse, users

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# These neither read nor write memory: they name, group or finish other instructions.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "iota", "add-dependency", "opt-barrier", "domain", "async-update"),
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices. `size` is that of the whole array, after a gather or before a scatter, in bytes.

    `groups` are the device numbers that exchange, `times` the number of runs, `source` JAX's name for the operation.
    Between slices (`network`), every device exchanges with its counterparts, and the groups consist of slices.
    """

    kind: str
    size: float
    groups: tuple[tuple[int, ...], ...]
    times: int
    source: str
    network: bool = False

    @property
    def sent(self) -> float:
        """Least bytes that each device sends, over all runs."""
        most = max((len(group) for group in self.groups), default=1)
        if most < 2:
            return 0.0
        share = {"collective-permute": 1.0, "all-reduce": 2 * (most - 1) / most}.get(self.kind, (most - 1) / most)
        return share * self.size * self.times


@dataclasses.dataclass(frozen=True)
class Work:
    """One device's work in a run of the program; `bytes` are read from and written to HBM."""

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]


def work(text: str, devices: int, trips: Sequence[int] = ()) -> Work:
    """Adds up a compiled program for `devices` devices.

    `trips` are the trip counts of data-dependent loops, in order (default: one each). Of a conditional's branches, the
    first one counts: where sampling has one, of a window in which nothing is known.
    """
    computations, entry = parse(text)
    unknown = iter(trips)
    flops = moved = 0.0
    collectives: dict[Any, Collective] = {}
    for name, times, fused in _executed(computations, entry, unknown):
        computation = computations[name]
        for each in computation.values():
            flops += times * _flops(each, computation)
            if not fused:
                moved += times * _moved(each, computation, computations)
            if collective := _collective(each, computation, devices, times):
                # A collective that overlaps several fused instructions appears in each, with the same channel.
                mark = (name, each.name) if not fused else (field(each.text, r"channel_id=(\d+)") or each.name, times)
                if fused and (collective.kind, mark) not in collectives:
                    moved += times * _exchanged(each, collective, computation)
                collectives[collective.kind, mark] = collective
    return Work(flops, moved, tuple(collectives.values()))


def _executed(
    computations: dict[str, Computation], entry: str, unknown: Iterator[int]
) -> Iterator[tuple[str, int, bool]]:
    """Each computation that runs: its name, its number of runs, and whether it is part of a fused instruction."""

    def walk(name: str, times: int, fused: bool) -> Iterator[tuple[str, int, bool]]:
        yield name, times, fused
        for each in computations.get(name, {}).values():
            others = called(each)
            if each.opcode == "while":
                rounds = _rounds(each, computations)
                rounds = next(unknown, 1) if rounds is None else rounds
                yield from walk(others["body"][0], times * rounds, fused)
            elif each.opcode == "conditional":
                (first, *_), *_ = others.values()
                yield from walk(first, times, fused)
            elif each.opcode == "call" or each.opcode.endswith("-start"):
                for names in others.values():
                    for other in names:
                        yield from walk(other, times, fused)
            elif "calls" in others:
                yield from walk(others["calls"][0], times, True)

    return walk(entry, 1, False)


def _rounds(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    """A loop's trip count, from XLA or from the one constant in its condition; None if it depends on data."""
    if match := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(match[1])
    pending, bounds = [called(loop)["condition"][0]], []
    while pending:
        for each in computations[pending.pop()].values():
            pending += [name for names in called(each).values() for name in names]
            if each.opcode == "constant" and (number := re.match(r"\((\d+)\)", each.text)):
                bounds.append(int(number[1]))
    return bounds[0] if len(bounds) == 1 else None


# FLOPs


def _flops(each: Instruction, computation: Computation) -> float:
    """FLOPs of a matrix multiplication (on TPUs written as a convolution), or of a kernel with a cost estimate."""
    if each.opcode == "dot":
        left = computation[each.operands[0]].shapes[0]
        axes = numbers(field(each.text, r"lhs_contracting_dims=\{([\d,]*)\}"))
        return 2.0 * math.prod(each.shapes[0].dims) * math.prod(left.dims[axis] for axis in axes)
    if each.opcode == "convolution":
        return _convolution_flops(each, *(computation[name].shapes[0] for name in each.operands[:2]))
    if each.opcode == "custom-call" and (match := re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', each.text)):
        return float(match[1])
    return 0.0


def _convolution_flops(each: Instruction, left: Shape, right: Shape) -> float:
    """Two per pair of multiplied elements; padding and dilation holes don't count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.text)
    if not labels:
        return 0.0
    inputs, kernel, outputs = labels[1], labels[2], labels[3]
    window = field(each.text, r"window=\{([^}]*)\}")
    settings = dict(part.split("=") for part in window.split())
    spatial = sum(label.isdigit() for label in kernel)

    def setting(name: str, default: str) -> list[str]:
        return settings.get(name, "x".join([default] * spatial)).split("x")

    met = 1.0
    rows = zip(*(setting(n, d) for n, d in _WINDOW), strict=True) if spatial else ()
    for axis, (size, stride, pad, spread, holes, _) in enumerate(rows):
        where_o = np.arange(each.shapes[0].dims[outputs.index(str(axis))])[:, None] * int(stride)
        where_ow = where_o - int(pad.split("_")[0]) + np.arange(int(size)) * int(holes)
        length = left.dims[inputs.index(str(axis))]
        met *= np.count_nonzero((where_ow >= 0) & (where_ow % int(spread) == 0) & (where_ow // int(spread) < length))
    channels = right.dims[kernel.index("i")] * right.dims[kernel.index("o")]
    groups = int(field(each.text, r"batch_group_count=(\d+)") or 1)
    return 2.0 * met * channels * left.dims[inputs.index("b")] / groups


_WINDOW = (
    ("size", "1"),
    ("stride", "1"),
    ("pad", "0_0"),
    ("lhs_dilate", "1"),
    ("rhs_dilate", "1"),
    ("rhs_reversal", "0"),
)


# Memory


def _moved(each: Instruction, computation: Computation, computations: dict[str, Computation]) -> float:
    """Bytes that an instruction reads from and writes to HBM. A slice of an array touches only the slice."""
    if each.opcode in _FREE or each.opcode.endswith("-done"):
        return 0.0
    reads = [computation[name] for name in each.operands if name in computation]
    if each.opcode in ("copy-start", *(f"{kind}-start" for kind in COLLECTIVES)):
        return _bytes(each.shapes)  # these list both source and destination
    if each.opcode == "fusion":
        fused = computations[called(each)["calls"][0]]
        inside = {number(it): it for it in fused.values() if it.opcode == "parameter"}
        read = sum(_read_within(inside[i], whole, fused, computations) for i, whole in enumerate(reads) if i in inside)
        root = next(it for it in fused.values() if it.root)
        return read + _written_within(root, each.shapes, fused, computations)
    if each.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _bytes(each.shapes)
    if each.opcode == "dynamic-update-slice":
        return 2 * _bytes(reads[1].shapes)
    return sum(_bytes(it.shapes) for it in reads) + _bytes(each.shapes)


def _read_within(
    parameter: Instruction, whole: Instruction, fused: Computation, computations: dict[str, Computation]
) -> float:
    """Bytes of an operand that a fused instruction reads: all, or only the slices taken inside the fusion."""
    if not _bytes(whole.shapes):
        return 0.0
    sliced = 0.0
    for user in users(parameter.name, fused):
        if user.opcode in ("tuple", *COLLECTIVES):
            continue  # only forwarded, or counted with the collective
        if user.opcode in ("dynamic-slice", "gather", "slice") and user.operands[0] == parameter.name:
            sliced += user.shapes[0].size
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue  # written in place
        elif user.opcode == "fusion":
            inner = computations[called(user)["calls"][0]]
            for it in inner.values():
                if it.opcode == "parameter" and user.operands[number(it)] == parameter.name:
                    sliced += _read_within(it, whole, inner, computations)
        else:
            return _bytes(whole.shapes)
    return min(sliced, _bytes(whole.shapes))


def _written_within(
    root: Instruction, results: tuple[Shape, ...], fused: Computation, computations: dict[str, Computation]
) -> float:
    """Bytes that a fused instruction writes: its results, or only the update of an array changed in place."""
    if root.opcode == "tuple":
        parts = (fused[name] for name in root.operands)
        return sum(
            _written_within(part, (shape,), fused, computations) for part, shape in zip(parts, results, strict=False)
        )
    while root.opcode == "bitcast" and root.operands[0] in fused:
        root = fused[root.operands[0]]
    if root.opcode == "fusion":
        inner = computations[called(root)["calls"][0]]
        return _written_within(next(it for it in inner.values() if it.root), results, inner, computations)
    if root.opcode in ("parameter", *COLLECTIVES):
        return 0.0  # as in `_read_within`
    if root.opcode == "dynamic-update-slice" and _bytes(results):
        return fused[root.operands[1]].shapes[0].size
    return _bytes(results)


def _bytes(shapes: tuple[Shape, ...]) -> float:
    return sum(shape.moved for shape in shapes)


# Collectives


def _collective(each: Instruction, computation: Computation, devices: int, times: int) -> Collective | None:
    if each.opcode == "send":
        return _between_slices(each, computation, times)
    kind = each.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    reads = [shape.size for name in each.operands for shape in computation[name].shapes]
    size = sum(reads)
    groups = groups_of(each.text, devices)
    if kind == "all-gather":
        size *= len(groups[0])
    elif kind == "all-reduce" and _scattered(each, computation):
        kind = "reduce-scatter"  # TPU compilers fuse it from the two
    source = field(each.text, r'op_name="([^"]*)"')
    return Collective(kind, size, groups, times, source)


def _between_slices(each: Instruction, computation: Computation, times: int) -> Collective | None:
    """The collective between slices that a `send` to the TPU's host starts, if any."""
    kind = field(each.text, r'_xla_megascale_transfer_type="(\w+)"').lower().replace("_", "-")
    if not kind:
        return None
    kind = {"one-to-one": "collective-permute"}.get(kind, kind)
    slices = numbers(field(each.text, r'_xla_megascale_target="\{([\d,]+)\}')) or (0, 1)  # pairs of devices
    size = sum(shape.size for shape in computation[each.operands[0]].shapes)
    size *= len(slices) if kind == "all-gather" else 1
    return Collective(kind, size, (slices,), times, field(each.text, r'_rendezvous="([^"]*)"'), network=True)


def _exchanged(each: Instruction, collective: Collective, computation: Computation) -> float:
    """Bytes of HBM that a collective within a fused instruction reads and writes."""
    read = sum(_bytes(computation[name].shapes) for name in each.operands)
    return read + (0.0 if collective.kind == "reduce-scatter" else _bytes(each.shapes))


def _scattered(each: Instruction, computation: Computation) -> bool:
    """Whether each device keeps only its own part of the reduced array."""
    consumers = list(users(each.name, computation))
    return bool(consumers) and all(user.opcode == "dynamic-slice" and user.root for user in consumers)
