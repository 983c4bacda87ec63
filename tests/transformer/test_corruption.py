"""Corrupted context: which input tokens are replaced, by what, and how many."""

import functools

import jax
import numpy as np
import pytest

from tokvid.config import TransformerConfig
from tokvid.transformer.layout import Vocabulary, corrupted, lay_out, stalled
from tokvid.types import Codes, token_batch

CONFIG = TransformerConfig(vocabulary=100, subcodes=2, text_vocabulary=20, text_length=2, latent_frames=4, grid=(8, 8))
VIDEO, FIRST = 4 * 8 * 8, 3  # video slots, and where they begin


@pytest.fixture(scope="module")
def sequence():
    """Sample i holds the sub-codes 10·i and 10·i + 1 everywhere."""
    tokens = np.zeros((8, *CONFIG.latent, 2), np.int32) + 10 * np.arange(8)[:, None, None, None, None] + np.arange(2)
    known = np.broadcast_to(np.arange(4) < 1, (8, 4))
    text = np.tile(np.int32([[3, -1]]), (8, 1))
    batch = token_batch(tokens, np.zeros(8, np.int32), np.full(8, 4, np.float32), text, known)
    return jax.tree.map(np.asarray, jax.jit(functools.partial(lay_out, CONFIG))(batch))


@functools.partial(jax.jit, static_argnums=1)
def corrupt_jit(sequence, most, seed):
    return corrupted(sequence, slice(-VIDEO, None), most, Vocabulary(Codes(100, 2), 20), jax.random.key(seed))


def corrupt(sequence, most, seed=0):
    return jax.tree.map(np.asarray, corrupt_jit(sequence, most, seed))


def test_nothing_but_input_tokens_of_the_clip_changes(sequence):
    made = corrupt(sequence, 1.0)
    for name, field in made._asdict().items():
        if name != "token":
            np.testing.assert_array_equal(field, getattr(sequence, name), err_msg=name)
    np.testing.assert_array_equal(made.token[:, :FIRST], sequence.token[:, :FIRST])
    # BEGIN, the input of the first slot to generate, is no video token: it stays.
    np.testing.assert_array_equal(made.token[:, FIRST + 64], sequence.token[:, FIRST + 64])


def test_whole_tokens_are_replaced_by_another_samples_at_the_same_slot(sequence):
    made, others = corrupt(sequence, 1.0).token, np.roll(sequence.token, 1, axis=0)
    replaced = (made != sequence.token).any(axis=-1)
    assert replaced.any()
    np.testing.assert_array_equal(made[replaced], others[replaced])


def test_the_share_rises_along_the_clip_up_to_a_random_one_of_each_sample(sequence):
    replaced = np.mean([corrupt(sequence, 0.6, seed).token != sequence.token for seed in range(40)], axis=0)[..., 0]
    share_L = replaced[:, FIRST:].mean(axis=0)
    assert share_L[:64].mean() < 0.06 < 0.2 < share_L[-64:].mean() < 0.34  # mean share 0.3 at the end
    one = (corrupt(sequence, 0.6).token != sequence.token)[:, -64:, 0].mean(axis=1)
    assert one.std() > 0.08  # not the same in all samples
    np.testing.assert_array_equal(corrupt(sequence, 0.0).token, sequence.token)


def stall(tokens, most, seed=0):
    return np.asarray(jax.jit(lambda tokens: stalled(tokens, most, jax.random.key(seed)))(tokens))


def test_what_has_stopped_holds_the_tokens_of_the_frame_before():
    """Which may have stopped as well: the codes of frame t are 10·t and 10·t + 1."""
    tokens = np.broadcast_to(10 * np.arange(4)[:, None, None, None] + np.arange(2), (64, 4, 8, 8, 2)).astype(np.int32)
    seen = stall(tokens, 1.0)
    late = (tokens - seen) // 10  # by how many frames
    assert (late % 1 == 0).all() and (late[..., 0] == late[..., 1]).all() and (late >= 0).all()
    assert (late[:, 0] == 0).all() and late[:, 3].max() == 3
    assert (np.diff(late[..., 0], axis=1) <= 1).all(), "a place stops or catches up with the truth"
    assert set(np.unique(seen[:, 3] // 10)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(stall(tokens, 0.0), tokens)


def test_what_is_absent_neither_appears_nor_spreads():
    tokens = np.zeros((64, 4, 8, 8, 2), np.int32)
    tokens[:, 1] = tokens[:, 3] = -1
    np.testing.assert_array_equal(stall(tokens, 1.0), tokens)


def test_at_most_the_share_stops_by_frames_or_by_tokens():
    tokens = np.broadcast_to(np.arange(4)[:, None, None, None], (400, 4, 8, 8, 1)).astype(np.int32)
    stopped = stall(tokens, 0.4)[:, 1, :, :, 0] == 0
    assert stopped.mean() == pytest.approx(0.2, abs=0.04)
    share = stopped.mean(axis=(1, 2))
    whole = (share == 0) | (share == 1)
    assert share[~whole].max() < 0.4 + 0.2 and 0.4 < whole.mean() < 0.65
    assert (share == 1).mean() == pytest.approx(0.1, abs=0.04)
