"""The arithmetic of the roofline, and which topologies, meshes and batches are refused; none of it needs libtpu."""

from types import SimpleNamespace

import jax
import pytest

from tokvid.errors import UserError
from tokvid.flops import CHIPS, chip_of
from tokvid.plan.aot import Topology, topology
from tokvid.plan.report import lines
from tokvid.plan.roofline import judge, roofline_of, seconds_of
from tokvid.plan.work import Collective, Work

V5P, V5E = (next(chip for chip in CHIPS if chip.name == name) for name in ("v5p", "v5e"))


def grid(*dims):
    """Coordinates of a topology's devices, the last axis fastest."""
    places = [()]
    for length in dims:
        places = [(*place, i) for place in places for i in range(length)]
    return places


def test_chips_are_found_by_jaxs_name():
    assert chip_of("TPU v5 lite").name == "v5e" and chip_of("TPU v5").name == "v5p" and chip_of("cpu") is None
    h100, h200 = chip_of("NVIDIA H100 80GB HBM3"), chip_of("NVIDIA H200")
    assert h200.flops == h100.flops and h200.bandwidth == 4.8e12 > h100.bandwidth and h200.memory == 141e9


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_every_chip_has_its_numbers_and_names_of_its_own(chip):
    assert chip.source and min(chip.flops, chip.memory, chip.bandwidth, chip.link) > 0
    assert chip.network >= 0 and (chip.wraps > 0) == chip.kinds[0].startswith("TPU"), "GPUs have a switch"
    assert chip.kinds and all(chip_of(kind) is chip for kind in chip.kinds)
    assert [other.name for other in CHIPS].count(chip.name) == 1
    assert 1e9 < chip.memory < chip.bandwidth < chip.flops < 1e17, "bytes, bytes/s and FLOP/s"


def test_the_slowest_part_bounds():
    found = roofline_of(Work(V5P.flops, 2 * V5P.bandwidth, ()), V5P, 0.5)
    assert (found.compute, found.memory, found.interconnect) == (1, 2, 0.5)
    assert found.seconds == 2 and found.bound == "memory"


@pytest.mark.parametrize(
    "chip, dims, group, links",
    [
        (V5P, (4, 4, 8), range(128), 6),  # all three axes, rings
        (V5P, (4, 4, 8), range(8), 2),  # the last one
        (V5P, (4, 4, 8), range(32), 4),
        (V5P, (2, 2, 1), range(4), 2),  # lines: one link each
        (V5E, (16, 16), range(256), 4),
        (V5E, (8, 16), range(0, 128, 16), 1),
        (V5P, (4, 4, 8), range(4), 1),  # a part of a ring
    ],
)
def test_a_collective_takes_the_links_of_the_axes_it_spans(chip, dims, group, links):
    group, where = tuple(group), Topology("", chip, dims, [])
    gather = Collective("all-gather", 1e9, (group,), 3, "")
    n = len(group)
    assert gather.sent == pytest.approx(3e9 * (n - 1) / n)
    assert seconds_of(gather, grid(*dims), where) == pytest.approx(gather.sent / (links * chip.link))
    reduce = Collective("all-reduce", 1e9, (group,), 3, "")
    assert seconds_of(reduce, grid(*dims), where) == pytest.approx(2 * seconds_of(gather, grid(*dims), where))


def test_a_permutation_takes_one_link_and_one_device_none():
    where = Topology("", V5P, (4, 4, 8), [])
    permute = Collective("collective-permute", 1e9, ((0, 1), (1, 2)), 1, "")
    assert seconds_of(permute, grid(4, 4, 8), where) == pytest.approx(1e9 / V5P.link)
    assert seconds_of(Collective("all-reduce", 1e9, ((0,), (1,)), 1, ""), grid(4, 4, 8), where) == 0


def test_what_goes_between_slices_takes_the_network_beside_all_else():
    where = Topology("", V5P, (4, 4, 8), [])
    far = Collective("all-reduce", 6e9, ((0, 1, 2),), 1, "", network=True)
    assert seconds_of(far, grid(4, 4, 8), where) == pytest.approx(8e9 / V5P.network)
    found = roofline_of(Work(V5P.flops, 0, ()), V5P, 0.5, 4)
    assert found.seconds == 4 and found.bound == "network"


@pytest.mark.parametrize("name, slices", [("v5p:4x4x4", 0), ("v4:4x4x4", 2)])
def test_slices_that_cannot_be(name, slices):
    with pytest.raises(UserError, match=f"{slices} slices of {name[:2]}.*give 1"):
        topology(name, slices)


TEXT = """
ENTRY %main (a: bf16[1024,1024]) -> bf16[1024,1024] {
  %a = bf16[1024,1024]{1,0} parameter(0)
  %b = bf16[1024,1024]{1,0} all-reduce(%a), replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="sum/all"}
  ROOT %c = bf16[1024,1024]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}
"""


def program(text, **memory):
    return SimpleNamespace(text=text, memory=memory, least_bytes=5.0, seconds=1.0)


def test_mfu_is_of_the_models_flops_and_the_report_says_all():
    devices = [SimpleNamespace(coords=place) for place in grid(2, 2, 1)]
    mesh = SimpleNamespace(devices=SimpleNamespace(flat=devices))
    found = judge(
        program(TEXT, parameters=3.0, code=4.0),
        Topology("", V5P, (2, 2, 1), [SimpleNamespace(platform="tpu")]),
        mesh,
        2 * 1024**3 * 2,
    )
    assert found["memory"] == {"parameters": 3, "code": 4, "total": 7, "of": V5P.memory}
    assert found["flops"]["executed by each device"] == 2 * 1024**3
    seconds = found["seconds"]
    assert seconds["bound by"] == "interconnect" and seconds["at least"] == seconds["interconnect"]
    assert found["mfu"]["allowed"] == pytest.approx(seconds["compute"] / 2 / seconds["interconnect"])
    assert found["collectives"]["all-reduce"]["runs"] == 1
    per_day = {"tokens a day": 2e9, "videos a day": 3e6, "days": 4.5}
    about = {
        "topology": "v5p:2x2x1",
        "slices": 1,
        "chips": 4,
        "compiled for": "these chips",
        "mesh": {"data": 4},
        "chip": vars(V5P) | {},
        "training": found | per_day,
    }
    said = "\n".join(lines("x.py", about | {"fits": True, "reason": ""}))
    for part in ("bound by interconnect", "sum/all", "all-reduce", "2 billion", "4.5 days", "fits"):
        assert part in said
    assert "does not fit: why" in lines("x.py", about | {"fits": False, "reason": "why"})[-1]


@pytest.mark.parametrize(
    "name, wrong",
    [
        *(("v5x:2x2", "v5e"), ("v5p", "v5p:4x4x8"), ("v5p:4x0x4", "")),
        *(("h10:8", "h100"), ("h100", "h100:8"), ("h100:9", "1 to 8"), ("h100:2x2", "1 to 8")),
    ],
)
def test_a_topology_that_there_isnt_is_refused(name, wrong):
    with pytest.raises(UserError, match=wrong or name):
        topology(name)


def test_gpus_are_planned_with_virtual_cpus_that_exchange_over_a_switch():
    jax.devices()  # started, so that no other test gets fewer of them
    h100 = topology("h100:1")
    assert h100.stand_in and h100.chip.name == "h100" and h100.dims == (1,)
    gathered = Collective("all-gather", 8e9, (tuple(range(8)),), 1, "")
    assert seconds_of(gathered, [(i,) for i in range(8)], h100) == pytest.approx(7e9 / h100.chip.link)
    mesh = SimpleNamespace(devices=SimpleNamespace(flat=h100.devices))
    assert judge(program(TEXT.replace("0,1,2,3", "0")), h100, mesh, 0.0, trips=(2, 30))["bytes of HBM"] == 5 * 32
