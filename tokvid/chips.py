"""What chips can do, by the public numbers of their makers; `source` says where each was read."""

import dataclasses

GB, GiB, TERA = 10**9, 2**30, 10**12
TPU_DOCS = "cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX sees it: a device.

    `flops` dense bfloat16 FLOP/s; `memory` bytes of HBM and `bandwidth` bytes/s of it; `link` bytes/s of one link to a
    neighbour, one way. `wraps`: an axis of the torus whose length is a multiple of it is a ring, others are lines.
    `network` a chip's share, bytes/s, of the data centre's network between slices; 0 where it isn't published.
    """

    name: str  # what a topology's name begins with, "v5p:4x4x8"
    kinds: tuple[str, ...]  # JAX's `device_kind`
    flops: float
    memory: float
    bandwidth: float
    link: float
    wraps: int
    network: float
    source: str


CHIPS = (
    # Six links a chip: 50 GB/s each (Jouppi et al. 2023, section 2), as JAX's megacore devices.
    Chip("v4", ("TPU v4",), 275 * TERA, 32 * GiB, 1228 * GB, 50 * GB, 4, 0, TPU_DOCS + "v4; arxiv.org/abs/2304.01433"),
    # ICI is published as the sum of both ways of all links: 400 GB/s over four, 1200 over six, 800 over four; DCN of a
    # chip as 50 Gbit/s (v5p), of 256 chips as 6.4 (v5e) and 25.6 Tbit/s (v6e).
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197 * TERA, 16 * GiB, 819 * GB, 50 * GB, 16, 3.125 * GB, TPU_DOCS + "v5e"),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459 * TERA, 95 * GiB, 2765 * GB, 100 * GB, 4, 6.25 * GB, TPU_DOCS + "v5p"),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918 * TERA, 32 * GiB, 1640 * GB, 100 * GB, 16, 12.5 * GB, TPU_DOCS + "v6e"),
    # NVLink: 900 GB/s, the sum of both ways.
    Chip(
        "h100",
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM5"),
        989.4 * TERA,
        80 * GB,
        3350 * GB,
        450 * GB,
        1,
        0,
        "nvidia.com/en-us/data-center/h100 (SXM, dense)",
    ),
    Chip(
        "h200",
        ("NVIDIA H200",),
        989.4 * TERA,
        141 * GB,
        4800 * GB,
        450 * GB,
        1,
        0,
        "nvidia.com/en-us/data-center/h200 (SXM, dense)",
    ),
)


def chip_of(kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or None where it isn't in the table."""
    return next((chip for chip in CHIPS if kind in chip.kinds), None)
