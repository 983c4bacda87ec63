"""Parses a compiled program's HLO text into instructions, and the attributes of an instruction."""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|branch_computations|false_computation)=(\{[^}]*\}|%?[\w.\-]+)")


class Shape(NamedTuple):
    """One array's type and, if present, its layout: dimensions from minor to major, the tile, the memory space."""

    kind: str
    dims: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    space: int  # 0 is the device's main memory, HBM; others are on the chip

    @property
    def size(self) -> float:
        """Bytes of its elements."""
        return math.prod(self.dims) * _width(self.kind)

    @property
    def moved(self) -> float:
        """Bytes of HBM, padded to whole tiles; 0 in other memory spaces."""
        if self.space:
            return 0.0
        dims = list(self.dims)
        for axis, tile in zip(self.order, reversed(self.tile), strict=False):
            dims[axis] = -(-dims[axis] // tile) * tile
        return math.prod(dims) * _width(self.kind)


class Instruction(NamedTuple):
    """One line: its results, its operands, and the rest as text."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    text: str
    root: bool


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """All computations of a module by name, and the name of the entry computation."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.endswith("{") and (match := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            current = computations.setdefault(match[2], {})
            entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    operands = tuple(re.findall(r"%([\w.\-]+)", line[opening:closing])) or tuple(
        re.findall(r"[\w.\-]+", line[opening:closing]) if line[end:opening].strip() != "constant" else ()
    )
    return Instruction(
        match[2], shapes_of(line[start:end]), line[end:opening].strip(), operands, line[opening:], bool(match[1])
    )


def shapes_of(text: str) -> tuple[Shape, ...]:
    """The arrays of a type: one, or those of a tuple."""

    def shape(match: re.Match[str]) -> Shape:
        kind, dims, layout = match[1], match[2], match[3] or ""
        order, _, rest = layout.partition(":")
        tile, space = re.search(r"T\(([\d,]+)\)", rest), re.search(r"S\((\d+)\)", rest)
        return Shape(
            kind, numbers(dims), numbers(order), numbers(tile[1]) if tile else (), int(space[1]) if space else 0
        )

    return tuple(map(shape, _SHAPE.finditer(text)))


def called(instruction: Instruction) -> dict[str, list[str]]:
    """The computations that an instruction runs, by attribute."""
    return {key: re.findall(r"[\w.\-]+", value) for key, value in _CALLED.findall(instruction.text)}


def users(name: str, fused: Computation) -> Iterator[Instruction]:
    """The users of an instruction, looking through bitcasts."""
    for user in fused.values():
        if name in user.operands:
            if user.opcode == "bitcast":
                yield from (it._replace(operands=tuple(name if o == user.name else o for o in it.operands))
                            for it in users(user.name, fused))  # fmt: skip
            else:
                yield user


def groups_of(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of devices that communicate, in any of XLA's notations; by default, one group of all."""
    if match := re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", text):
        return tuple(numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", match[1]))
    if match := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", text):
        return tuple(numbers(group) for group in re.findall(r"\{([\d,]+)\}", match[1]))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _rows(_iota(numbers(match[2]), numbers(match[3])).reshape(numbers(match[1])))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\)\)?)? ?\{([^}]*)\}", text):
        return _mesh_groups(match[1], match[2] or "", match[3])
    return (tuple(range(devices)),)


def _mesh_groups(axes: str, order: str, among: str) -> tuple[tuple[int, ...], ...]:
    """`'a'=4,'b'=2` and `'b'`: devices that differ only in b. `'a':(2)2` is part of an axis: 2, after 2."""
    names, sizes = zip(*((name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)), strict=True)
    ids = np.arange(math.prod(sizes))
    if match := re.search(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+))?", order):
        ids = _iota(numbers(match[2] or match[1]), numbers(match[3] or "")).ravel()
    grid, chosen = ids.reshape(sizes), []
    split: list[int] = []
    for name, size in zip(names, sizes, strict=True):
        part = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", among)
        if part is None or not part[1]:
            chosen += [len(split)] * (part is not None)
            split.append(size)
        else:
            before, count = int(part[1]), int(part[2])
            chosen.append(len(split) + 1)
            split += [before, count, size // before // count]
    grid = np.moveaxis(grid.reshape(split), chosen, range(-len(chosen), 0))
    return _rows(grid.reshape(-1, math.prod(split[axis] for axis in chosen)))


def _iota(dims: tuple[int, ...], turned: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(dims)).reshape(dims).transpose(turned or None)


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in ids.reshape(-1, ids.shape[-1]).tolist())


def _closing(text: str, start: int) -> int:
    """The position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text) - 1


def numbers(text: str | None) -> tuple[int, ...]:
    """All integers in a text."""
    return tuple(map(int, re.findall(r"\d+", text or "")))


def number(parameter: Instruction) -> int:
    """The operand index of a parameter."""
    return int(field(parameter.text, r"\((\d+)\)"))


def field(text: str, pattern: str) -> str:
    """The pattern's first group in a text, or ""."""
    match = re.search(pattern, text)
    return match[1] if match else ""


@functools.cache
def _width(kind: str) -> float:
    """Bytes per element of a type: bf16, f32, pred, s4, f8e4m3fn …"""
    bits = re.search(r"\d+", kind)
    return int(bits[0]) / 8 if bits else 1.0 if kind == "pred" else 0.0
