"""Rotary positions say only how far apart tokens are, along every axis; Fourier features say where they stand."""

import jax
import numpy as np
import pytest

from tokvid.nn import position

rotary = jax.jit(lambda x_BLNE, at_BLA: position.rotate(x_BLNE, position.rotation(at_BLA, x_BLNE.shape[-1])))
fourier_features = jax.jit(position.fourier_features, static_argnums=1)

RNG = np.random.default_rng(0)
QUERY, KEY = (RNG.normal(size=(1, 6, 2, 14)).astype(np.float32) for _ in range(2))


def scores(query_position_BLA, key_position_BLA):
    return np.einsum("blne,bsne->bnls", rotary(QUERY, query_position_BLA), rotary(KEY, key_position_BLA))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_only_differences_matter(axes):
    position_BLA = RNG.uniform(0, 8, (1, 6, axes)).astype(np.float32)
    shift_A = np.float32([5.0, -3.5, 0.25])[:axes]
    before = scores(position_BLA, position_BLA)
    np.testing.assert_allclose(scores(position_BLA + shift_A, position_BLA + shift_A), before, atol=2e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_counts_and_counts_on_its_own(axis):
    zero_BLA = np.zeros((1, 6, 3), np.float32)
    moved_BLA = zero_BLA + np.eye(3, dtype=np.float32)[axis]
    turned = rotary(QUERY, moved_BLA) - QUERY
    touched = np.flatnonzero(np.abs(turned).max((0, 1, 2)) > 1e-3)
    # 14 channels are 7 pairs, channel i with i + 7; the first axis takes what doesn't divide: 3, 2 and 2 pairs.
    pairs = {0: [0, 1, 2], 1: [3, 4], 2: [5, 6]}[axis]
    assert touched.tolist() == pairs + [pair + 7 for pair in pairs]
    assert np.abs(scores(moved_BLA, zero_BLA) - scores(zero_BLA, zero_BLA)).max() > 0.1


def test_rotation_keeps_lengths_and_leaves_the_origin_alone():
    position_BLA = RNG.uniform(0, 50, (1, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(
        np.linalg.norm(rotary(QUERY, position_BLA), axis=-1), np.linalg.norm(QUERY, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(rotary(QUERY, np.zeros((1, 6, 3), np.float32)), QUERY)


def test_the_first_pair_turns_by_one_radian_a_unit():
    turned = rotary(np.float32([[[[1, 0, 0, 0]]]]), np.float32([[[0.5]]]))
    np.testing.assert_allclose(turned.ravel(), [np.cos(0.5), 0, np.sin(0.5), 0], atol=1e-6)


def test_fourier_features_are_octaves_of_every_axis():
    position_BLA = RNG.uniform(0, 50, (2, 6, 3)).astype(np.float32)
    features = fourier_features(position_BLA, 4)
    assert features.shape == (2, 6, 2 * 4 * 3)
    assert np.abs(features).max() <= 1
    # The last octave's wavelength is 2 · 2³ = 16 units: positions 16 apart look alike, 8 apart differ.
    np.testing.assert_allclose(fourier_features(position_BLA + 16, 4), features, atol=1e-4)
    assert np.abs(fourier_features(position_BLA + 8, 4) - features).max() > 0.5
