"""FLOPs of the models, counted from their configs, and the public figures of chips.

A multiplication with an addition is 2 FLOPs. As usual for MFU (Chowdhery et al. 2022, appendix B), attention counts in
full, including padding and masked slots, and rematerialisation doesn't count.
"""

import dataclasses

from tokvid.config import TokenizerConfig, TransformerConfig

GB, GiB, TERA = 10**9, 2**30, 10**12
TPU_DOCS = "cloud.google.com/tpu/docs/"
TRAINING = 3  # forward passes in a training step; backpropagation counts as two


def block_flops(width: int, heads: int, kv_heads: int, mlp: int, keys: int) -> float:
    """FLOPs of one token in one layer, with attention to `keys` tokens."""
    return 2 * width * (2 * width + 2 * width * kv_heads // heads) + 4 * keys * width + 6 * width * mlp


def tokenizer_flops(c: TokenizerConfig, part: str, latent_frames: int, keys: int, channels: int) -> float:
    """FLOPs of encoding or decoding one clip, whose time layers attend to `keys` latent frames.

    `channels` are the quantizer's. The search in its codebook, which has no backward pass, isn't counted.
    """
    patches = (c.size[0] // c.patch) * (c.size[1] // c.patch)
    blocks = (
        block_flops(c.width, c.heads, c.heads, c.mlp, patches if kind == "space" else keys) for kind in getattr(c, part)
    )
    frames = 1 + (latent_frames - 1) * c.temporal_patch
    pixels = frames * patches * 2 * c.width * 3 * c.patch**2
    by_token = c.fold**2 if any(c.later_codes) else 0
    by_token += part == "decoder" and c.recall_first
    return pixels + latent_frames * patches * (sum(blocks) + 2 * c.width * channels * (1 + by_token))


def transformer_flops(c: TransformerConfig, slots: int, keys: int, predicted: int) -> float:
    """FLOPs of `slots` slots of a sequence, each attending to `keys` slots, with logits for `predicted` of them."""
    block = block_flops(c.width, c.heads, c.kv_heads, c.mlp, keys)
    places = 2 * c.width * (48 + 16 + 16)  # second, row and column; rate; stride
    return slots * (c.layers * block + places) + predicted * head_flops(c)


def head_flops(c: TransformerConfig) -> float:
    """FLOPs of predicting the sub-codes of one token."""
    if c.subcodes == 1:
        return 2 * c.width * c.vocabulary
    layer = 6 * c.head_width * (8 * c.head_width // 3 // 8 * 8)
    return (c.generated or c.subcodes) * (
        2 * c.width * c.head_width + c.head_layers * layer + 2 * c.head_width * c.vocabulary
    )


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, a device of JAX, by its maker's public figures from `source`.

    `flops`: dense bfloat16 FLOP/s; `memory`: bytes of HBM; `bandwidth`: of HBM, bytes/s; `link`: of one link to a
    neighbour, one way, bytes/s; `wraps`: axes of the torus whose length is a multiple of it are rings, others are
    lines, and 0 is a switch that joins all; `network`: a chip's share of the data centre's network between slices,
    bytes/s, 0 where it isn't published.
    """

    name: str  # the beginning of topologies' names, "v5p:4x4x8"
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
        0,
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
        0,
        0,
        "nvidia.com/en-us/data-center/h200 (SXM, dense)",
    ),
)


def chip_of(kind: str) -> Chip | None:
    """The chip of JAX's `device_kind`, or None where it isn't in the table."""
    return next((chip for chip in CHIPS if kind in chip.kinds), None)
