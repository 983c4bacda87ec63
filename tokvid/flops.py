"""FLOPs of the models, counted from their configs: the one place. A multiplication with an addition is 2.

As is usual for MFU (Chowdhery et al. 2022, appendix B), all of a sequence counts as attended to, padding and what the
mask hides included; what rematerialisation computes again doesn't count.
"""

import math

from tokvid.config import TokenizerConfig, TransformerConfig

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


def window_slots(c: TransformerConfig, coarse: int = 0, frames: int | None = None) -> int:
    """Slots of a training window: text, rate and latent frames, with `coarse` ones at a lower rate before them.

    `frames` latent frames, or those of the config.
    """
    whole, rows, columns = c.latent
    return c.text_length + 1 + (frames or whole) * rows * columns + (coarse * rows * columns + 1 if coarse else 0)


def window_flops(c: TransformerConfig, coarse: int = 0, frames: int | None = None) -> float:
    """Of the forward pass of one training window."""
    slots = window_slots(c, coarse, frames)
    return transformer_flops(c, slots, slots, (frames or c.latent[0]) * math.prod(c.latent[1:]))


def windows_in_a_row(c: TransformerConfig, frames: int) -> int:
    """How many windows of so many latent frames have together no more slots than a whole one."""
    return window_slots(c) // window_slots(c, frames=frames)
