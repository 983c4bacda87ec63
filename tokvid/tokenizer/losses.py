"""What the tokenizer is trained to make small. To add a loss: a function here and a weight in `TokenizerConfig`."""

import jax
import jax.numpy as jnp

from tokvid.config import TokenizerConfig


def reconstruction_losses(
    config: TokenizerConfig, made_BTHWC: jax.Array, truth_BTHWC: jax.Array
) -> dict[str, jax.Array]:
    """Named, weighted, scalar losses between two videos in [-1, 1]; their sum is what is minimised."""
    difference = made_BTHWC.astype(jnp.float32) - truth_BTHWC
    return {
        "l1": config.l1_weight * jnp.mean(jnp.abs(difference)),
        "l2": config.l2_weight * jnp.mean(jnp.square(difference)),
    }
