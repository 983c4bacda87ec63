"""The one mask rule against masks drawn by hand; attention against a plain float64 softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.nn.attention import NEVER, attend, block_mask


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
    """Queries, keys and values, and a mask that hides half of the keys."""
    rng = np.random.default_rng(0)
    query_BLNE = rng.normal(size=(2, queries, heads, 8)).astype(np.float32) * 3
    key_BSKE, value_BSKE = rng.normal(size=(2, 2, 7, kv_heads, 8)).astype(np.float32) * 3
    mask_BLS = rng.random((2, queries, 7)) < 0.5
    mask_BLS[:, :, 0] = True
    return (query_BLNE, key_BSKE, value_BSKE), mask_BLS


# A single query, as in decoding, has a way of its own on the CPU.
@pytest.mark.parametrize("queries, heads, kv_heads", [(5, 4, 4), (5, 4, 2), (1, 4, 2), (1, 4, 1)])
def test_attention_is_a_masked_softmax(queries, heads, kv_heads):
    given, mask_BLS = example(queries, heads, kv_heads)
    run = jax.jit(attend)
    np.testing.assert_allclose(run(*given, mask_BLS), reference(*given, mask_BLS), atol=1e-5)
    np.testing.assert_allclose(run(*given), reference(*given, np.ones_like(mask_BLS)), atol=1e-5)
    half = [x.astype(jnp.bfloat16) for x in given]  # NumPy's
    out = run(*half, mask_BLS)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), reference(*half, mask_BLS), atol=0.05)


@pytest.mark.parametrize("queries", [5, 1])
def test_its_gradient_is_that_of_a_masked_softmax(queries):
    given, mask_BLS = example(queries, 4, 2)
    weight_BLNE = np.random.default_rng(1).normal(size=given[0].shape).astype(np.float32)

    def gradient(attention):
        return jax.jit(jax.grad(lambda given: jnp.vdot(weight_BLNE, attention(given))))(given)

    made = gradient(lambda given: attend(*given, mask_BLS))
    wanted = gradient(lambda given: jax.nn.dot_product_attention(*given, mask=mask_BLS[:, None]))
    for one, other in zip(made, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_masked_key_counts_for_nothing_however_large_it_is():
    query_BLNE = np.full((1, 1, 1, 4), 50.0, np.float32)
    key_BSKE = np.concatenate([-query_BLNE, query_BLNE], axis=1)
    value_BSKE = np.concatenate([0 * query_BLNE + 1, 0 * query_BLNE + 9], axis=1)
    out = jax.jit(attend)(query_BLNE, key_BSKE, value_BSKE, np.array([[[True, False]]]))
    np.testing.assert_array_equal(out, 0 * query_BLNE + 1)


def test_an_unknown_implementation_is_a_users_error():
    x = jnp.zeros((1, 1, 1, 8))
    with pytest.raises(UserError, match=r"'cudn'.*did you mean 'cudnn'"):
        attend(x, x, x, implementation="cudn")
