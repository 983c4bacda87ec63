"""The losses that the tokenizer minimises. To add one: a term here and a weight in `TokenizerConfig`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tokvid.config import TokenizerConfig
from tokvid.metrics.ssim import ssim_map


def reconstruction_losses(
    config: TokenizerConfig, rebuilt_BTHWC: Float[Array, "b t h w 3"], truth_BTHWC: Float[Array, "b t h w 3"]
) -> dict[str, Float[Array, ""]]:
    """Named, weighted, scalar losses between two videos in [-1, 1]; training minimises their sum.

    "temporal" is the L1 distance of the differences between consecutive frames: it punishes flicker. "ssim" is
    1 - SSIM, of frames of 11 x 11 pixels or more.
    """
    rebuilt_BTHWC = rebuilt_BTHWC.astype(jnp.float32)
    difference = rebuilt_BTHWC - truth_BTHWC
    losses = {
        "l1": config.l1_weight * jnp.mean(jnp.abs(difference)),
        "l2": config.l2_weight * jnp.mean(jnp.square(difference)),
    }
    if config.temporal_weight and difference.shape[1] > 1:
        losses["temporal"] = config.temporal_weight * jnp.mean(jnp.abs(jnp.diff(difference, axis=1)))
    if config.ssim_weight:
        similarity = jax.vmap(jax.vmap(lambda rebuilt, truth: ssim_map(rebuilt, truth, 2.0)))(
            rebuilt_BTHWC, truth_BTHWC
        )
        losses["ssim"] = config.ssim_weight * (1 - jnp.mean(similarity))
    return losses
