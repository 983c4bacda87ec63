"""Every task's sequence, drawn by hand: inputs, blocks, targets and positions. See the pictures in layout.py."""

import jax
import numpy as np
import pytest

from tokvid.config import TransformerConfig
from tokvid.errors import UserError
from tokvid.nn.visibility import NEVER
from tokvid.transformer.layout import (
    NOTHING,
    Condition,
    Rate,
    Text,
    Video,
    Vocabulary,
    build,
    latent_seconds,
    lay_out,
    tokens_before,
)
from tokvid.types import Clip, Codes, stride_of, token_batch

VOCABULARY = Vocabulary(Codes(100), text=20)
B, R = 100, 101  # BEGIN and RATE: the video codes come first in the table, then these two, then text from 102 on
N = NEVER
PT = 2  # frames a latent frame
laid_out = jax.jit(lay_out, static_argnums=0)


def lay(*segments, vocabulary=VOCABULARY):
    """The layout as lists of one sample, and its slots' positions in (seconds, row, column).

    Tokens and targets of one sub-code as numbers, of several as tuples.
    """
    sequence = jax.tree.map(np.asarray, jax.jit(lambda given: build(given, vocabulary))(list(segments)))
    assert all(field.shape[:2] == sequence.block.shape for field in sequence)
    assert sequence.token.shape == sequence.target.shape == (*sequence.block.shape, vocabulary.codes.per_token)
    row = jax.tree.map(lambda field: field[0].tolist(), sequence)
    token, target = ([q[0] if len(q) == 1 else tuple(q) for q in each] for each in (row.token, row.target))
    return row._replace(token=token, target=[t if g else None for t, g in zip(target, row.generated, strict=True)])


def text(*ids):
    return Text(np.int32([ids]))


def rate(fps):
    return Rate(np.float32([fps]))


def video(ids, known, fps, start=0, step=1, drawn=None, slower=None):
    """Latent frames from number `start` on; `known` says which are, or how many at the beginning.

    Tokens are numbers, or lists of sub-codes.
    """
    ids = np.int32([ids])
    ids = ids if ids.ndim == 5 else ids[..., None]
    known = np.arange(ids.shape[1]) < known if np.isscalar(known) else np.bool_(known)
    seconds = latent_seconds(start + np.arange(ids.shape[1], dtype=np.float32), fps, PT)
    drawn = np.zeros(ids.shape[:4], bool) if drawn is None else np.bool_([drawn])
    known = np.broadcast_to(known if known.ndim == 3 else known[:, None, None], drawn.shape[1:])[None]
    slower = np.full_like(ids, NOTHING) if slower is None else np.int32([slower])[..., None]
    return Video(ids, seconds[None], known, np.int32([step]), drawn, slower)


def condition(ids, fps, kind=0, spread=1):
    """Latent frames from the first on, given as a whole."""
    ids = np.int32([ids])[..., None]
    seconds = latent_seconds(np.arange(ids.shape[1], dtype=np.float32), fps, PT)
    return Condition(ids, seconds[None], np.int32([kind]), spread)


CLIP = [[[10, 11, 12], [13, 14, 15]], [[20, 21, 22], [23, 24, 25]]]  # two latent frames of 2 rows, 3 columns


def test_text_to_video():
    made = lay(text(5, 6, -1), rate(4), video(CLIP, known=0, fps=4))
    assert made.token == [107, 108, 0, R, B, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24]
    assert made.block == [0, 0, N, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert made.target == [None] * 4 + [10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25]
    assert made.order == [0, 1, 2] + [-1] * 13
    assert made.fps == [0, 0, 0, 4] + [0] * 12
    assert made.stride == [0] * 4 + [1] * 12
    # Frame 0 is shown at 0 s; the second latent frame ends with frame 2, at 2/4 s.
    places = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert made.position == [[0, 0, 0]] * 4 + [[0, *p] for p in places] + [[0.5, *p] for p in places]


def test_text_to_video_a_row_at_a_time():
    """The video's first row has none above it: it is drawn token by token, and then each row from the one above."""
    made = lay(text(5, 6, -1), rate(4), video(CLIP, known=0, fps=4, step=3))
    assert made.token == [107, 108, 0, R, B, 10, 11, 10, 11, 12, 13, 14, 15, 20, 21, 22]
    assert made.block == [0, 0, N, 1, 3, 4, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8]
    assert made.target == [None] * 4 + [10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25]
    assert made.stride == [0] * 4 + [1] * 3 + [3] * 9


def test_text_to_video_in_rounds():
    """A step is a latent frame: what is drawn holds its own token and isn't asked for."""
    drawn = [[[1, 1, 1], [1, 1, 1]], [[0, 1, 0], [0, 0, 0]]]
    made = lay(text(5), rate(4), video(CLIP, known=0, fps=4, step=6, drawn=drawn))
    assert made.token == [107, R, 10, 11, 12, 13, 14, 15, B, 21, B, B, B, B]
    assert made.block == [0, 1, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4]
    assert made.target == [None] * 8 + [20, None, 22, 23, 24, 25]


def test_image_to_video():
    made = lay(text(5), rate(8), video(CLIP, known=1, fps=8))
    assert made.token == [107, R, 10, 11, 12, 13, 14, 15, B, 20, 21, 22, 23, 24]
    assert made.block == [0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 5, 6, 7, 8]
    assert made.target == [None] * 8 + [20, 21, 22, 23, 24, 25]
    assert [seconds for seconds, _, _ in made.position] == [0] * 8 + [0.25] * 6
    made = lay(text(5), rate(8), video(CLIP, known=1, fps=8, step=3))
    assert made.token == [107, R, 10, 11, 12, 13, 14, 15, B, B, B, 20, 21, 22]
    assert made.block == [0, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_infilling():
    """Whatever is known comes first, one block; positions say where it stands."""
    clip = [[[10, 11]], [[20, 21]], [[30, 31]], [[40, 41]]]
    made = lay(rate(2), video(clip, known=[1, 0, 0, 1], fps=2))
    assert made.token == [R, 10, 11, 40, 41, B, 20, 21, 30]
    assert made.block == [0, 1, 1, 1, 1, 2, 3, 4, 5]
    assert made.target == [None] * 5 + [20, 21, 30, 31]
    assert made.position == [[0] * 3] + [[s, 0, x] for s in (0, 3, 1, 2) for x in (0, 1)]


def test_any_tokens_may_be_given():
    """A hole in each latent frame: the known tokens first, in their order; the others at their own positions."""
    clip, hole = [[[10, 11], [12, 13]], [[20, 21], [22, 23]]], [[[1, 0], [1, 1]], [[1, 1], [0, 0]]]
    made = lay(rate(2), video(clip, known=hole, fps=2))
    assert made.token == [R, 10, 12, 13, 20, 21, B, 11, 22]
    assert made.block == [0, 1, 1, 1, 1, 1, 2, 3, 4]
    assert made.target == [None] * 6 + [11, 22, 23]
    assert made.position[1:] == [[s, y, x] for s, y, x in ((0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1))] + [
        [0, 0, 1],
        [1, 1, 0],
        [1, 1, 1],
    ]


def test_the_token_before_is_known_or_generated_earlier():
    """That of the same place one latent frame before, as a slot of the video's; the first frame has none."""
    assert lay(text(5), rate(4), video(CLIP, known=0, fps=4)).previous == [-1] * 8 + [0, 1, 2, 3, 4, 5]
    assert lay(text(5), rate(4), video(CLIP, known=1, fps=4)).previous == [-1] * 8 + [0, 1, 2, 3, 4, 5]
    # The second frame is known: its slots come first, and what it stood before is generated after it.
    assert (
        lay(text(5), rate(4), video(CLIP, known=[0, 1], fps=4)).previous == [-1] * 2 + [6, 7, 8, 9, 10, 11] + [-1] * 6
    )
    some = [[[True, False, False], [False] * 3], [[False, True, False], [False] * 3]]  # tokens 10 and 21
    slots = {10: 0, 21: 1, 11: 2, 12: 3, 13: 4, 14: 5, 15: 6, 20: 7, 22: 8, 23: 9, 24: 10, 25: 11}
    row = lay(text(5), rate(4), video(CLIP, known=some, fps=4)).previous[2:]
    assert all(row[slot] == (slots[token - 10] if token >= 20 else -1) for token, slot in slots.items())
    gone = np.where(np.arange(2)[:, None, None] < 1, -1, CLIP)  # padding
    assert lay(text(5), rate(4), video(gone, known=0, fps=4)).previous == [-1] * 14


def test_the_slower_videos_token_is_that_of_the_same_place():
    """In the order of the slots; nothing else has one."""
    slower = np.int32(CLIP) + 50
    made = lay(text(5), rate(4), video(CLIP, known=[0, 1], fps=4, slower=slower))
    assert [ids[0] for ids in made.slower] == [-1] * 2 + [70, 71, 72, 73, 74, 75, 60, 61, 62, 63, 64, 65]
    assert {ids[0] for ids in lay(text(5), rate(4), video(CLIP, known=0, fps=4)).slower} == {-1}


@pytest.mark.parametrize("start, wanted", [(0, [100, 101, 101, 102]), (4, [102, 103, 103, -1])])
def test_the_slower_video_is_seen_where_it_ends_next(start, wanted):
    """Latent frames 0, 1, 2, … of a window, from 0 or from mid-video on, of another at half the rate."""
    config = TransformerConfig(vocabulary=200, text_length=3, latent_frames=4, grid=(1, 1), subcodes=2)
    one = np.zeros((1, 4, 1, 1, 2), np.int32)
    ids = np.stack([np.arange(100, 104), np.arange(110, 114)], axis=-1).reshape(1, 4, 1, 1, 2).astype(np.int32)
    first = max(0, start // 2 - 1)  # of what the window sees, the rest is absent

    def slower(kind=0, grid=1):
        seen = np.concatenate([ids[:, first:], np.full((1, first, 1, 1, 2), -1, np.int32)], axis=1)
        seen = seen.repeat(grid, axis=2).repeat(grid, axis=3)
        clip = Clip(seen, np.int32([first]), np.float32([2]), np.int32([kind]))
        batch = token_batch(one, np.int32([start]), np.float32([4]), np.full((1, 3), -1, np.int32), conditions=(clip,))
        return np.asarray(laid_out(config, batch).slower)[0]

    wanted = [[code, code + 10 if code >= 0 else -1] for code in wanted]
    np.testing.assert_array_equal(slower()[-4:], wanted)
    assert (slower()[:-4] == -1).all() and (slower(kind=1) == -1).all()


def test_a_recalled_frame_is_seen_all_the_time():
    """It stands at 0 seconds, as a video's first frame, and the window begins one latent frame later."""
    config = TransformerConfig(vocabulary=200, text_length=3, latent_frames=4, grid=(1, 1), subcodes=1)
    clip = Clip(np.full((1, 1, 1, 1, 1), 77, np.int32), np.int32([29]), np.float32([4]), np.int32([0]))
    one, no_text = np.zeros((1, 4, 1, 1, 1), np.int32), np.full((1, 3), -1, np.int32)
    made = laid_out(config, token_batch(one, np.int32([30]), np.float32([4]), no_text, conditions=(clip,)))
    assert made.slower[0, -4:, 0].tolist() == [77] * 4
    assert made.position[0, [4, *range(-4, 0)], 0].tolist() == [0, 0.5, 1, 1.5, 2]


def test_tokens_before_are_looked_up_by_slot():
    target = np.int32([[[10, 1], [20, 2], [30, 3]]])
    found = tokens_before(target, np.int32([[-1, 2, 0]]))
    assert found.tolist() == [[[-1, -1], [30, 3], [10, 1]]]


def test_a_smaller_condition_lies_over_the_clip():
    """One of its tokens covers 2x2 of the clip's, and stands in their middle; it says its kind in all its slots."""
    made = lay(rate(2), condition([[[5, 6]]], fps=2, kind=3, spread=2), rate(2), video(CLIP, known=0, fps=2))
    assert made.condition[:4] == [0, 3, 3, 0] and not any(made.condition[4:])
    assert made.position[1:3] == [[0, 0.5, 0.5], [0, 0.5, 2.5]]


def test_interpolation():
    """[text][rate][coarse clip][finer rate]<fine clip>: a condition is one block, below all of the clip's."""
    coarse, fine = [[[1, 2]], [[3, 4]], [[-1, -1]]], [[[5, 6]], [[7, 8]], [[9, 10]]]
    made = lay(text(5), rate(2), condition(coarse, fps=2), rate(4), video(fine, known=0, fps=4))
    assert made.token == [107, R, 1, 2, 3, 4, 0, 0, R, B, 5, 6, 7, 8, 9]
    assert made.block == [0, 1, 2, 2, 2, 2, N, N, 3, 5, 6, 7, 8, 9, 10]
    assert made.target == [None] * 9 + [5, 6, 7, 8, 9, 10]
    assert made.fps == [0, 2, 0, 0, 0, 0, 0, 0, 4] + [0] * 6
    # The same second is the same place: the coarse clip's 2nd latent frame and the fine one's 3rd both end at 1 s.
    assert [seconds for seconds, _, _ in made.position] == [0, 0, 0, 0, 1, 1, 2, 2, 0, 0, 0, 0.5, 0.5, 1, 1]


def test_interpolation_in_mid_video():
    """A fine window from latent frame 4 on counts from 1, and the coarse clip stands at its own seconds beside it."""
    fine, coarse = (np.int32(ids).reshape(1, 3, 1, 1, 1) for ids in ([1, 2, 3], [4, 5, 6]))
    known, word = np.bool_([[1, 0, 0]]), np.int32([[3]])
    config = TransformerConfig(
        vocabulary=100, text_vocabulary=20, text_length=1, latent_frames=3, grid=(1, 1), temporal_patch=PT
    )
    # Fine latent frame j is shown at 2j/8 s, coarse j at 2j/4 s: fine 4, 5, 6 at 1, 1.25, 1.5 s; coarse 2, 3, 4 at
    # 1, 1.5, 2 s. Latent frame 3, at 0.75 s, is the window's 0.
    clip = Clip(coarse, np.int32([2]), np.float32([4]), np.int32([0]))
    given = token_batch(fine, np.int32([4]), np.float32([8]), word, known, [clip])
    seconds = laid_out(config, given).position[0, :, 0]
    np.testing.assert_allclose(seconds, [0, 0, 0.25, 0.75, 1.25, 0, 0.25, 0.5, 0.75])


def test_samples_of_one_batch_may_differ_in_everything():
    clip = np.int32([[[[10, 11]], [[20, 21]], [[30, 31]]]] * 4)
    known = np.bool_([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]])[:, :, None, None].repeat(2, axis=3)
    seconds, step = np.float32([[0, 1, 2], [1, 2, 3], [0, 1, 2], [0, 0.5, 1]]), np.int32([1, 1, 2, 1])
    ids = clip[..., None]
    clips = [Video(ids, seconds, known, step, np.zeros(clip.shape, bool), np.full_like(ids, NOTHING))]
    made = jax.jit(lambda given: build(given, VOCABULARY))(clips)
    np.testing.assert_array_equal(
        made.token[..., 0],
        [[B, 10, 11, 20, 21, 30], [10, 11, B, 20, 21, 30], [20, 21, B, B, B, B], [10, 11, 20, 21, 30, 31]],
    )
    np.testing.assert_array_equal(
        made.block, [[1, 2, 3, 4, 5, 6], [0, 0, 1, 2, 3, 4], [0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(made.position[..., ::2, 0], [[0, 1, 2], [1, 2, 3], [1, 0, 2], [0, 0.5, 1]])
    np.testing.assert_array_equal(made.generated.sum(axis=1), [6, 4, 4, 0])


def test_seconds_agree_between_rates():
    frames = np.arange(9)
    for slow, fast in ((1.0, 4.0), (2.0, 8.0)):
        ratio = int(fast / slow)
        np.testing.assert_array_equal(latent_seconds(frames, slow, PT), latent_seconds(frames * ratio, fast, PT))


@pytest.mark.parametrize("subcodes", [1, 3])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_batch_can_be_read_back_from_its_sequence(step, subcodes):
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary(Codes(100, subcodes), text=20)
    config = TransformerConfig(
        vocabulary=100,
        subcodes=subcodes,
        text_vocabulary=20,
        text_length=5,
        latent_frames=3,
        grid=(2, 3),
        temporal_patch=PT,
    )
    tokens, words = rng.integers(0, 100, (4, 3, 2, 3, subcodes), np.int32), rng.integers(0, 20, (4, 5), np.int32)
    words[1, 2:], words[2] = -1, -1
    fps, known = np.float32([1, 2, 4, 8]), np.arange(3) < np.arange(4)[:, None]
    batch = token_batch(tokens, np.int32([0, 3, 0, 9]), fps, words, known)._replace(stride=np.full(4, step, np.int32))
    made = jax.tree.map(np.asarray, laid_out(config, batch))
    assert made.token.shape == made.target.shape == (4, 5 + 1 + 18, subcodes)
    read = np.where(made.block[:, :5] == NEVER, -1, made.token[:, :5, 0] - vocabulary.first_text)
    np.testing.assert_array_equal(read, words)
    np.testing.assert_array_equal(made.fps[:, 5], fps)
    given = made.token - 100 * np.arange(subcodes)
    read = np.where(made.generated[..., None], made.target, given)[:, 6:].reshape(tokens.shape)
    np.testing.assert_array_equal(read, tokens)
    np.testing.assert_array_equal(made.generated.sum(axis=1), 6 * (3 - known.sum(axis=1)))
    part = made.slots(6, 4)
    np.testing.assert_array_equal(part.token, made.token[:, 6:10])
    np.testing.assert_array_equal(part.position, made.position[:, 6:10])


@pytest.mark.parametrize("subcodes", [1, 3])
def test_no_two_kinds_of_token_share_a_row_of_the_table(subcodes):
    """Nor do two sub-codes of a token: their sum says which is which."""
    vocabulary = Vocabulary(Codes(100, subcodes), text=20)
    every = np.repeat(np.arange(100)[:, None], subcodes, axis=1)
    codes = set(np.asarray(vocabulary.of_video(every)).ravel().tolist())
    words = {vocabulary.first_text + i for i in range(vocabulary.text)}
    assert len(codes | {vocabulary.begin, vocabulary.rate} | words) == vocabulary.size == 100 * subcodes + 22


def test_a_token_of_two_sub_codes_is_two_rows_of_the_table():
    """Token by token; what is no video token has one row, and nothing beside it."""
    clip = [[[[1, 51], [2, 52]]], [[[3, 53], [4, 54]]]]  # two latent frames of 1 row, 2 columns
    codes, end = Vocabulary(Codes(100, 2), text=20), NOTHING
    made = lay(text(5, -1), rate(4), video(clip, known=1, fps=4), vocabulary=codes)
    # The second sub-codes have the rows from 100 on; BEGIN is 200, RATE 201, text from 202 on.
    assert made.token == [(207, end), (0, end), (201, end), (1, 151), (2, 152), (200, end), (3, 153)]
    assert made.target == [None] * 5 + [(3, 53), (4, 54)]
    assert made.block == [0, N, 1, 2, 2, 3, 4]


def test_rows_and_rounds_of_two_sub_codes():
    """A token stands, is drawn and is looked back at as a whole."""
    clip = [[[[1, 51], [2, 52]], [[3, 53], [4, 54]]]]  # a latent frame of 2 rows, 2 columns
    codes, begin = Vocabulary(Codes(100, 2), text=20), (200, NOTHING)
    made = lay(video(clip, known=0, fps=4, step=2), vocabulary=codes)
    assert made.token == [begin, (1, 151), (1, 151), (2, 152)]
    assert made.target == [(1, 51), (2, 52), (3, 53), (4, 54)]
    made = lay(video(clip, known=0, fps=4, step=4, drawn=[[[0, 1], [1, 0]]]), vocabulary=codes)
    assert made.token == [begin, (2, 152), (3, 153), begin]
    assert made.target == [(1, 51), None, None, (4, 54)]
    nothing = [[[[-1, -1], [-1, -1]]]]  # behind the end of a coarse clip
    assert lay(video(nothing, known=1, fps=4), vocabulary=codes).block == [N, N]


def test_rows_must_divide_a_latent_frame():
    assert [stride_of(rows, (3, 4, 5)) for rows in (0, 1, 2, 4)] == [1, 5, 10, 20]
    for rows in (-1, 3, 8):
        with pytest.raises(UserError, match=rf"divide a latent frame, \[1, 2, 4\]; got {rows}"):
            stride_of(rows, (3, 4, 5))
