"""FLOPs of the models, counted from their configs, and what chips can do: the one place for both.

A multiplication with an addition is 2 FLOPs. As is usual for MFU (Chowdhery et al. 2022, appendix B), the whole
sequence counts as attended to, including padding and what the mask hides; rematerialisation doesn't count.
"""

import dataclasses

from tokvid.config import TokenizerConfig, TransformerConfig

GB, GiB, TERA = 10**9, 2**30, 10**12
TPU_DOCS = "cloud.google.com/tpu/docs/"
TRAINING = 3  # a training step, in forward passes: backpropagation takes two


def block_flops(width: int, heads: int, kv_heads: int, mlp: int, seen: int) -> float:
    """Of one token in one layer, when it attends to `seen` others."""
    return 2 * width * (2 * width + 2 * width * kv_heads // heads) + 4 * seen * width + 6 * width * mlp


def tokenizer_flops(c: TokenizerConfig, part: str, latent_frames: int, seen: int, channels: int) -> float:
    """Of encoding or decoding one clip of so many latent frames, whose time layers each compare with `seen`.

    `channels` are those of the quantizer's latents. What it compares with its codes, without backpropagation, isn't
    counted.
    """
    patches = (c.size[0] // c.patch) * (c.size[1] // c.patch)
    blocks = (
        block_flops(c.width, c.heads, c.heads, c.mlp, patches if kind == "space" else seen) for kind in getattr(c, part)
    )
    frames = 1 + (latent_frames - 1) * c.temporal_patch
    pixels = frames * patches * 2 * c.width * 3 * c.patch**2
    return pixels + latent_frames * patches * (sum(blocks) + 2 * c.width * channels)


def transformer_flops(c: TransformerConfig, slots: int, seen: int, predicted: int) -> float:
    """Of so many slots of one sequence, each attending to `seen`; logits for `predicted` of them."""
    block = block_flops(c.width, c.heads, c.kv_heads, c.mlp, seen)
    places = 2 * c.width * (48 + 16 + 16)  # second, row and column; rate; step
    return slots * (c.layers * block + places) + predicted * head_flops(c)


def head_flops(c: TransformerConfig) -> float:
    """Of predicting the sub-codes of one token."""
    if c.subcodes == 1:
        return 2 * c.width * c.vocabulary
    layer = 6 * c.head_width * (8 * c.head_width // 3 // 8 * 8)
    return c.subcodes * (2 * c.width * c.head_width + c.head_layers * layer + 2 * c.head_width * c.vocabulary)


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX sees it, a device, by the public numbers of its maker; `source` says where they stand.

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
