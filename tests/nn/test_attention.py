"""The one mask rule against masks drawn by hand; attention against a plain float64 softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.nn import attention
from tokvid.nn.attention import attend
from tokvid.nn.visibility import NEVER, Blocks, block_mask


def drawn(text):
    """'11 01' → [[[1, 1], [0, 1]]] as booleans, one group a query."""
    return np.array([[[mark == "1" for mark in row] for row in text.split()]])


def mask(blocks, keys=None, window=None):
    query_BL = jnp.array([blocks], jnp.int32)
    key_BS = query_BL if keys is None else jnp.array([keys], jnp.int32)
    return np.asarray(block_mask(query_BL, key_BS, window))


@pytest.mark.parametrize(
    "blocks, wanted",
    [
        ([0, 1, 2], "100 110 111"),  # causal
        ([0, 0, 0], "111 111 111"),  # two-way
        ([0, 0, 1, 2, 2], "11000 11000 11100 11111 11111"),  # a prompt, a rate, a row decoded at once
        ([0, 0, NEVER, 1, 2], "11000 11000 11111 11010 11011"),  # the docstring's picture
        ([NEVER, NEVER, 5, 7], "1111 1111 0010 0011"),  # no text at all; numbers may leave gaps
        ([2, 0, 1], "111 010 011"),  # only the numbers count, not the order of the slots
    ],
)
def test_the_mask_is_the_one_drawn(blocks, wanted):
    np.testing.assert_array_equal(mask(blocks), drawn(wanted))


@pytest.mark.parametrize(
    "window, wanted",
    [
        (1, "1000 0100 0010 0001"),
        (2, "1000 1100 0110 0011"),
        (9, "1000 1100 1110 1111"),
    ],
)
def test_a_window_counts_the_token_itself(window, wanted):
    np.testing.assert_array_equal(mask([0, 1, 2, 3], window=window), drawn(wanted))


def test_a_stream_sees_its_kept_past_but_no_slot_that_is_still_empty():
    # Times 4 and 5 arrive, 2 and 3 are kept; at the start of a stream nothing is.
    np.testing.assert_array_equal(mask([4, 5], [2, 3, 4, 5], window=3), drawn("1110 0111"))
    np.testing.assert_array_equal(mask([0, 1], [NEVER, NEVER, 0, 1], window=3), drawn("0010 0011"))


def reference(query_BLNE, key_BSKE, value_BSKE, mask_BLS):
    """Softmax attention in float64, head by head, the masked keys left out altogether."""
    query_BLNE, key_BSKE, value_BSKE = (np.asarray(x, np.float64) for x in (query_BLNE, key_BSKE, value_BSKE))
    out_BLNE = np.zeros_like(query_BLNE)
    B, L, N, E = query_BLNE.shape
    group = N // key_BSKE.shape[2]
    for b, i, n in np.ndindex(B, L, N):
        seen = mask_BLS[b, i]
        scores_S = key_BSKE[b, seen, n // group] @ query_BLNE[b, i, n] / np.sqrt(E)
        weights_S = np.exp(scores_S - scores_S.max())
        out_BLNE[b, i, n] = weights_S / weights_S.sum() @ value_BSKE[b, seen, n // group]
    return out_BLNE


def example(queries, heads, kv_heads):
    """Queries, keys and values, block numbers that hide half of the keys, and their mask."""
    rng = np.random.default_rng(0)
    query_BLNE = rng.normal(size=(2, queries, heads, 8)).astype(np.float32) * 3
    key_BSKE, value_BSKE = rng.normal(size=(2, 2, 7, kv_heads, 8)).astype(np.float32) * 3
    key_block_BS = np.stack([rng.permutation(7), np.int32([0, 0, NEVER, 3, 3, 6, 2])]).astype(np.int32)
    blocks = Blocks(jnp.asarray(rng.integers(0, 7, (2, queries)), jnp.int32), jnp.asarray(key_block_BS))
    return (query_BLNE, key_BSKE, value_BSKE), blocks, np.asarray(block_mask(*blocks))


# A single query, as in decoding, has a way of its own on the CPU.
@pytest.mark.parametrize("queries, heads, kv_heads", [(5, 4, 4), (5, 4, 2), (1, 4, 2), (1, 4, 1)])
def test_attention_is_a_masked_softmax(queries, heads, kv_heads):
    given, blocks, mask_BLS = example(queries, heads, kv_heads)
    run = jax.jit(attend)
    np.testing.assert_allclose(run(*given, blocks), reference(*given, mask_BLS), atol=1e-5)
    np.testing.assert_allclose(run(*given), reference(*given, np.ones_like(mask_BLS)), atol=1e-5)
    half = [x.astype(jnp.bfloat16) for x in given]  # NumPy's
    out = run(*half, blocks)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), reference(*half, mask_BLS), atol=0.05)


@pytest.mark.parametrize("queries", [5, 1])
def test_its_gradient_is_that_of_a_masked_softmax(queries):
    given, blocks, mask_BLS = example(queries, 4, 2)
    weight_BLNE = np.random.default_rng(1).normal(size=given[0].shape).astype(np.float32)

    def gradient(attention):
        return jax.jit(jax.grad(lambda given: jnp.vdot(weight_BLNE, attention(given))))(given)

    made = gradient(lambda given: attend(*given, blocks))
    wanted = gradient(lambda given: jax.nn.dot_product_attention(*given, mask=mask_BLS[:, None]))
    for one, other in zip(made, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_masked_key_counts_for_nothing_however_large_it_is():
    query_BLNE = np.full((1, 1, 1, 4), 50.0, np.float32)
    key_BSKE = np.concatenate([-query_BLNE, query_BLNE], axis=1)
    value_BSKE = np.concatenate([0 * query_BLNE + 1, 0 * query_BLNE + 9], axis=1)
    out = jax.jit(attend)(query_BLNE, key_BSKE, value_BSKE, Blocks(np.int32([[1]]), np.int32([[1, 2]])))
    np.testing.assert_array_equal(out, 0 * query_BLNE + 1)


def test_an_unknown_implementation_is_a_users_error():
    x = jnp.zeros((1, 1, 1, 8))
    with pytest.raises(UserError, match=r"'cudn'.*did you mean 'cudnn'"):
        attend(x, x, x, implementation="cudn")


def sequences(slots, group):
    """Block numbers of two samples: a text with padding, a clip given, then so many tokens a step."""
    generated = np.arange(slots) // group
    return np.stack(
        [
            np.concatenate([np.zeros(text), np.full(40 - text, NEVER), np.full(30, 1), 2 + generated])[:slots]
            for text in (33, 8)
        ]
    ).astype(np.int32)


@pytest.mark.parametrize("implementation", attention.IMPLEMENTATIONS)
@pytest.mark.parametrize("heads, kv_heads, window", [(4, 2, None), (2, 1, 9)])
def test_every_implementation_gives_the_same(implementation, heads, kv_heads, window, monkeypatch):
    from tokvid.nn import flash

    if why := attention._refusal(implementation, jax.default_backend(), "float32", 300, 300, 8, True):
        pytest.skip(why)
    monkeypatch.setattr(flash, "TILE", 128)  # three tiles, the last one not full
    rng = np.random.default_rng(0)
    query_BLNE, pull_BLNE = rng.normal(size=(2, 2, 300, heads, 8)).astype(np.float32)
    key_BSKE, value_BSKE = rng.normal(size=(2, 2, 300, kv_heads, 8)).astype(np.float32)
    block_BL = jnp.asarray(np.arange(300, dtype=np.int32)[None] // 2 if window else sequences(300, 1))
    real_BLNE = np.broadcast_to(block_BL < NEVER, (2, 300))[:, :, None, None]  # what padding gets may differ

    def run(implementation):
        def masked(given):
            out = attend(*given, Blocks(block_BL, block_BL, window), implementation)
            return jnp.vdot(pull_BLNE, real_BLNE * out), real_BLNE * out

        return jax.jit(jax.grad(masked, has_aux=True))((query_BLNE, key_BSKE, value_BSKE))

    for one, other in zip(jax.tree.leaves(run(implementation)), jax.tree.leaves(run("xla")), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_choice_keeps_the_kernels_rules_and_says_why_not():
    choose = functools.partial(attention._choose, "auto")
    assert choose("cpu", "float32", 64, 400, 64, True) == "xla"
    assert choose("cpu", "float32", 400, 400, 64, True) == "blockwise"
    assert choose("gpu", "float32", 400, 400, 64, True) == "xla"
    assert choose("gpu", "float32", 4000, 4000, 64, True) == "blockwise"
    assert choose("tpu", "bfloat16", 1672, 1672, 64, True) == "tpu"
    assert choose("tpu", "bfloat16", 1, 1672, 64, True) == "xla"  # a step of decoding
    assert choose("gpu", "bfloat16", 400, 400, 64, True) == "cudnn"
    assert choose("gpu", "bfloat16", 400, 401, 64, True) == "xla"
    assert choose("gpu", "bfloat16", 400, 401, 64, False) == "cudnn"
    for dtype, lengths, width, why in (
        ("float32", (400, 400), 64, "16-bit.*float32"),
        ("bfloat16", (400, 400), 36, "multiple of 8.*36"),
        ("bfloat16", (400, 401), 64, "even lengths.*401"),
    ):
        with pytest.raises(UserError, match=why):
            attention._choose("cudnn", "gpu", dtype, *lengths, width, True)
    with pytest.raises(UserError, match=r"NVIDIA.*cpu.*auto"):
        attention._choose("cudnn", "cpu", "bfloat16", 400, 400, 64, True)
