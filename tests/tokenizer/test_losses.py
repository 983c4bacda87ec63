"""What the tokenizer minimises, on videos whose losses are worked out by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.config import TokenizerConfig
from tokvid.tokenizer.losses import reconstruction_losses

CONFIG = TokenizerConfig(l1_weight=2.0, l2_weight=3.0, temporal_weight=5.0)


def losses(difference_BTHWC, config=CONFIG):
    truth = np.zeros(difference_BTHWC.shape, np.float32)
    found = reconstruction_losses(config, jnp.asarray(difference_BTHWC, jnp.float32), jnp.asarray(truth))
    return {name: float(value) for name, value in found.items()}


def test_each_loss_by_hand():
    """A stripe that flickers in time differs from one that stays by the temporal loss alone."""
    flickers, stays = np.zeros((1, 4, 2, 2, 3)), np.zeros((1, 4, 2, 2, 3))
    flickers[:, ::2] = 0.5  # half of the frames
    stays[:, :, 0] = 0.5  # half of the rows
    assert losses(flickers) == pytest.approx({"l1": 2 * 0.25, "l2": 3 * 0.125, "temporal": 5 * 0.5})
    assert losses(stays) == pytest.approx({"l1": 2 * 0.25, "l2": 3 * 0.125, "temporal": 0})


def test_images_have_no_temporal_loss_and_a_weight_of_0_none():
    assert losses(np.ones((1, 1, 2, 2, 3))).keys() == {"l1", "l2"}
    still = dataclasses.replace(CONFIG, temporal_weight=0.0)
    assert losses(np.ones((1, 4, 2, 2, 3)), still).keys() == {"l1", "l2"}


def test_ssim_is_of_each_frame():
    config = dataclasses.replace(CONFIG, ssim_weight=7.0)
    truth, other = np.random.default_rng(0).uniform(-1, 1, size=(2, 1, 2, 32, 32, 3)).astype(np.float32)
    half = np.stack([truth[:, 0], other[:, 1]], axis=1)
    found = [
        float(reconstruction_losses(config, jnp.asarray(made), jnp.asarray(truth))["ssim"])
        for made in (truth, half, other)
    ]
    assert found == pytest.approx([0, 3.5, 7], abs=0.3)  # noise is like itself, and not like other noise
