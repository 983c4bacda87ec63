"""Every task's sequence, drawn by hand: inputs, blocks, targets and positions. See the pictures in layout.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.config import TransformerConfig
from tokvid.nn.attention import NEVER
from tokvid.transformer.layout import Rate, Text, Video, Vocabulary, build, latent_seconds
from tokvid.transformer.model import sequence_of
from tokvid.types import TokenBatch

VOCABULARY = Vocabulary(video=100, text=20)
B, R = 100, 101  # BEGIN and RATE: the video codes come first in the table, then these two, then text from 102 on
N = NEVER
PT = 2  # frames a latent frame


def lay(*segments, step=1):
    """The layout as lists of one sample, and its slots' positions in (seconds, row, column)."""
    sequence = jax.tree.map(np.asarray, jax.jit(lambda given: build(given, VOCABULARY, step))(list(segments)))
    assert all(field.shape[:2] == sequence.token.shape for field in sequence)
    row = jax.tree.map(lambda field: field[0].tolist(), sequence)
    return row._replace(target=[t if g else None for t, g in zip(row.target, row.generated, strict=True)])


def text(*ids):
    return Text(np.int32([ids]))


def rate(fps):
    return Rate(np.float32([fps]))


def video(ids, known, fps, start=0):
    return Video(np.int32([ids]), np.int32([start]), np.float32([fps]), np.int32([known]), temporal_patch=PT)


CLIP = [[[10, 11, 12], [13, 14, 15]], [[20, 21, 22], [23, 24, 25]]]  # two latent frames of 2 rows, 3 columns


def test_text_to_video():
    made = lay(text(5, 6, -1), rate(4), video(CLIP, known=0, fps=4))
    assert made.token == [107, 108, 0, R, B, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24]
    assert made.block == [0, 0, N, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert made.target == [None] * 4 + [10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25]
    assert made.order == [0, 1, 2] + [-1] * 13
    assert made.fps == [0, 0, 0, 4] + [0] * 12
    # Frame 0 is shown at 0 s; the second latent frame ends with frame 2, at 2/4 s.
    places = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert made.position == [[0, 0, 0]] * 4 + [[0, *p] for p in places] + [[0.5, *p] for p in places]


def test_text_to_video_a_row_at_a_time():
    made = lay(text(5, 6, -1), rate(4), video(CLIP, known=0, fps=4), step=3)
    assert made.token == [107, 108, 0, R, B, B, B, 10, 11, 12, 13, 14, 15, 20, 21, 22]
    assert made.block == [0, 0, N, 1, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]
    assert made.target == [None] * 4 + [10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25]


def test_image_to_video():
    made = lay(text(5), rate(8), video(CLIP, known=1, fps=8))
    assert made.token == [107, R, 10, 11, 12, 13, 14, 15, B, 20, 21, 22, 23, 24]
    assert made.block == [0, 1, 2, 2, 2, 2, 2, 2, 9, 10, 11, 12, 13, 14]
    assert made.target == [None] * 8 + [20, 21, 22, 23, 24, 25]
    assert [seconds for seconds, _, _ in made.position] == [0] * 8 + [0.25] * 6
    made = lay(text(5), rate(8), video(CLIP, known=1, fps=8), step=3)
    assert made.token == [107, R, 10, 11, 12, 13, 14, 15, B, B, B, 20, 21, 22]
    assert made.block == [0, 1, 2, 2, 2, 2, 2, 2, 5, 5, 5, 6, 6, 6]


def test_continuation_in_mid_video():
    """Only a video's true first frame stands at 0 s: a window from latent frame 7 on counts from 1."""
    clip = [[[10, 11]], [[20, 21]], [[30, 31]]]
    made = lay(text(-1, -1), rate(4), video(clip, known=2, fps=4, start=7), step=2)
    assert made.token == [0, 0, R, 10, 11, 20, 21, B, B]
    assert made.block == [N, N, 1, 2, 2, 2, 2, 5, 5]
    assert made.target == [None] * 7 + [30, 31]
    assert [seconds for seconds, _, _ in made.position] == [0, 0, 0, 0.5, 0.5, 1, 1, 1.5, 1.5]


def test_interpolation():
    """[text][rate][coarse clip][finer rate]<fine clip>: the coarse clip is one block, below all of the fine one's."""
    coarse, fine = [[[1, 2]], [[3, 4]]], [[[5, 6]], [[7, 8]], [[9, 10]]]
    made = lay(text(5), rate(2), video(coarse, known=2, fps=2), rate(4), video(fine, known=0, fps=4))
    assert made.token == [107, R, 1, 2, 3, 4, R, B, 5, 6, 7, 8, 9]
    assert made.block == [0, 1, 2, 2, 2, 2, 8, 10, 11, 12, 13, 14, 15]
    assert made.target == [None] * 7 + [5, 6, 7, 8, 9, 10]
    assert made.fps == [0, 2, 0, 0, 0, 0, 4] + [0] * 6
    # The same second is the same place: the coarse clip's 2nd latent frame and the fine one's 3rd both end at 1 s.
    assert [seconds for seconds, _, _ in made.position] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0.5, 0.5, 1, 1]
    rows = lay(text(5), rate(2), video(coarse, known=2, fps=2), rate(4), video(fine, known=0, fps=4), step=2)
    assert rows.token == [107, R, 1, 2, 3, 4, R, B, B, 5, 6, 7, 8]
    assert rows.block == [0, 1, 2, 2, 2, 2, 6, 8, 8, 9, 9, 10, 10]


def test_samples_of_one_batch_may_know_different_amounts():
    clip = np.int32([[[[10]], [[20]], [[30]]]] * 3)
    known, start = np.int32([0, 1, 3]), np.int32([0, 5, 0])
    made = build([Video(clip, start, np.float32([2, 2, 4]), known, PT)], VOCABULARY)
    np.testing.assert_array_equal(made.token, [[B, 10, 20], [10, B, 20], [10, 20, 30]])
    np.testing.assert_array_equal(made.block, [[1, 2, 3], [0, 2, 3], [0, 0, 0]])
    np.testing.assert_array_equal(made.position[..., 0], [[0, 1, 2], [1, 2, 3], [0, 0.5, 1]])
    np.testing.assert_array_equal(made.generated, [[1, 1, 1], [0, 1, 1], [0, 0, 0]])


def test_seconds_agree_between_rates():
    frames = np.arange(9)
    for slow, fast in ((1.0, 4.0), (2.0, 8.0)):
        ratio = int(fast / slow)
        np.testing.assert_array_equal(latent_seconds(frames, slow, PT), latent_seconds(frames * ratio, fast, PT))


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_batch_can_be_read_back_from_its_sequence(step):
    rng = np.random.default_rng(0)
    config = TransformerConfig(vocabulary=100, text_vocabulary=20, text_length=5, latent=(3, 2, 3), temporal_patch=PT)
    tokens, words = rng.integers(0, 100, (4, 3, 2, 3), np.int32), rng.integers(0, 20, (4, 5), np.int32)
    words[1, 2:], words[2] = -1, -1
    fps, known = np.float32([1, 2, 4, 8]), np.int32([0, 1, 2, 3])
    batch = TokenBatch(tokens, np.int32([0, 3, 0, 9]), fps, words, known)
    made = jax.tree.map(np.asarray, jax.jit(lambda batch: sequence_of(config, batch, step))(batch))
    assert made.token.shape == (4, 5 + 1 + 18)
    read = np.where(made.block[:, :5] == NEVER, -1, made.token[:, :5] - VOCABULARY.first_text)
    np.testing.assert_array_equal(read, words)
    np.testing.assert_array_equal(made.fps[:, 5], fps)
    read = np.where(made.generated, made.target, made.token)[:, 6:].reshape(tokens.shape)
    np.testing.assert_array_equal(read, tokens)
    np.testing.assert_array_equal(made.generated.sum(axis=1), 6 * (3 - known))
    part = made.slots(6, 4)
    np.testing.assert_array_equal(part.token, made.token[:, 6:10])
    np.testing.assert_array_equal(part.position, made.position[:, 6:10])


def test_no_two_kinds_of_token_share_a_row_of_the_table():
    codes, words = set(range(VOCABULARY.video)), {VOCABULARY.first_text + i for i in range(VOCABULARY.text)}
    assert len(codes | {VOCABULARY.begin, VOCABULARY.rate} | words) == VOCABULARY.size == 122


def test_a_step_must_divide_a_latent_frame():
    with pytest.raises(ValueError, match="4 tokens a step don't divide the 2x3"):
        build([Video(jnp.int32([CLIP]), jnp.zeros(1), jnp.ones(1), jnp.zeros(1), PT)], VOCABULARY, step=4)
