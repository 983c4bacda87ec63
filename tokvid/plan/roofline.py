"""The roofline of a compiled program: lower bounds on the time of each part of a chip (Williams et al. 2009)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from tokvid.flops import Chip
from tokvid.plan.aot import Program, Topology
from tokvid.plan.work import Collective, Work, work

SHOWN = 5  # collectives


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds on the seconds of a run, one per resource."""

    compute: float
    memory: float
    interconnect: float
    network: float = 0.0  # between slices

    @property
    def seconds(self) -> float:
        """The bound with perfect overlap."""
        return max(dataclasses.astuple(self))

    @property
    def bound(self) -> str:
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def judge(program: Program, target: Topology, mesh: Mesh, flops: float, trips: Sequence[int] = ()) -> dict[str, Any]:
    """A program's memory, work, roofline and MFU, as JSON values. `flops` are the model's, over all devices."""
    devices: Any = mesh.devices.flat
    chip = target.chip
    coordinates = [(i,) if target.stand_in else tuple(device.coords) for i, device in enumerate(devices)]
    done = work(program.text, len(coordinates), trips)
    if target.stand_in:  # another compiler fuses other things; weights and states move in any case
        done = dataclasses.replace(done, bytes=program.least_bytes * max(1, sum(trips)))
    times = [(each, seconds_of(each, coordinates, target)) for each in done.collectives]
    inside, between = (sum(seconds for each, seconds in times if each.network == far) for far in (False, True))
    roofline = roofline_of(done, chip, inside, between)
    share = flops / (len(coordinates) * chip.flops)
    return {
        "compiled in seconds": round(program.seconds, 1),
        "memory": program.memory | {"total": sum(program.memory.values()), "of": chip.memory},
        "flops": {"of the model": flops, "executed by each device": done.flops},
        "bytes of HBM": done.bytes,
        "collectives": _summary(times),
        "largest collectives": _largest(times),
        "seconds": dataclasses.asdict(roofline) | {"at least": roofline.seconds, "bound by": roofline.bound},
        "mfu": {
            "allowed": share / roofline.seconds,
            "if nothing overlapped": share / sum(dataclasses.astuple(roofline)),
        },
    }


def roofline_of(done: Work, chip: Chip, exchanging: float, between: float = 0.0) -> Roofline:
    """`exchanging` is the busy time of the links, `between` that of the network between slices."""
    return Roofline(done.flops / chip.flops, done.bytes / chip.bandwidth, exchanging, between)


def seconds_of(each: Collective, coordinates: Sequence[tuple[int, ...]], target: Topology) -> float:
    """A lower bound on a collective's time: every device sends both ways along each spanned axis of the torus.

    On an axis that isn't a ring, the last device receives everything over one link, as each does from a switch.
    """
    if not each.sent:
        return 0.0
    if each.network:
        return each.sent / target.chip.network
    if each.kind == "collective-permute":  # to one neighbour
        return each.sent / target.chip.link
    group, links = max(each.groups, key=len), 0
    for length, places in zip(target.dims, zip(*(coordinates[i] for i in group), strict=True), strict=False):
        if (reach := len(set(places))) > 1:
            ring = target.chip.wraps and reach == length and length % target.chip.wraps == 0
            links += 2 if ring else 1
    return each.sent / (max(links, 1) * target.chip.link)


def _summary(times: list[tuple[Collective, float]]) -> dict[str, Any]:
    """By kind: the number of runs, the bytes that each device sends, and the least time for that."""
    kinds: dict[str, dict[str, float]] = {}
    for each, seconds in times:
        sums = kinds.setdefault(_name(each), {"runs": 0, "bytes": 0.0, "seconds": 0.0})
        for name, value in (("runs", each.times), ("bytes", each.sent), ("seconds", seconds)):
            sums[name] += value
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["seconds"]))


def _name(each: Collective) -> str:
    return each.kind + " between slices" * each.network


def _largest(times: list[tuple[Collective, float]]) -> list[dict[str, Any]]:
    """The slowest collectives, grouped by kind, size and source."""
    alike: dict[tuple, dict[str, Any]] = {}
    for each, seconds in times:
        size = max(map(len, each.groups), default=1)
        row = alike.setdefault(
            (_name(each), each.size, size, each.source),
            {
                "kind": _name(each),
                "devices": size,
                "runs": 0,
                "bytes of each": each.size,
                "seconds": 0.0,
                "source": each.source,
            },
        )
        row["runs"] += each.times
        row["seconds"] += seconds
    return sorted(alike.values(), key=lambda row: -row["seconds"])[:SHOWN]
