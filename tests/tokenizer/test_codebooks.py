"""VQ and LFQ against what they stand for, worked out the long way; memory that doesn't grow with the codebook."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokvid.errors import UserError
from tokvid.tokenizer import quantizers
from tokvid.tokenizer.quantizers import LFQ, VQ, nearest


def unit(*shape, seed=0):
    z = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def vq(codes, width=6, commitment=0.25):
    return VQ(codes, width, commitment, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("codes", [3, 7, 20, 21])
def test_the_nearest_code_is_found_chunk_by_chunk(codes, monkeypatch):
    monkeypatch.setattr(quantizers, "CHUNK", 7)
    z, table = unit(5, 40, 6), unit(codes, 6, seed=1)
    np.testing.assert_array_equal(nearest(jnp.asarray(z), jnp.asarray(table)), np.argmax(z @ table.T, axis=-1))


def test_the_first_of_equals_is_taken(monkeypatch):
    monkeypatch.setattr(quantizers, "CHUNK", 2)
    table = unit(2, 6)[[0, 1, 0, 1, 0]]
    np.testing.assert_array_equal(nearest(jnp.asarray(table), jnp.asarray(table)), [0, 1, 0, 1, 0])


def test_vq_gives_codes_whatever_the_length_of_a_latent():
    quantizer, z = vq(50), unit(4, 9, 6)
    out = quantizer.quantize(jnp.asarray(z * np.linspace(0.1, 30, 9, dtype=np.float32)[:, None]))
    np.testing.assert_allclose(out.inputs, z, atol=1e-6)
    np.testing.assert_array_equal(out.ids, np.argmax(z @ np.array(quantizer.codes[...]).T, axis=-1))
    np.testing.assert_allclose(quantizer.decode_ids(out.ids), out.latents, atol=1e-6)
    error = np.square(z - np.array(out.latents)).sum(-1).mean()
    assert out.losses["commitment"] == pytest.approx(0.25 * error, rel=1e-5)
    assert np.isfinite(jax.grad(lambda z: quantizer.quantize(z).latents.sum())(jnp.zeros((2, 6)))).all()


def test_vq_passes_the_gradient_straight_through_and_none_to_its_codes():
    quantizer, z, towards = vq(50), jnp.asarray(3 * unit(20, 6)), jnp.asarray(unit(20, 6, seed=2))
    found = jax.grad(lambda z: jnp.vdot(quantizer.quantize(z).latents, towards))(z)
    wanted = jax.grad(lambda z: jnp.vdot(z / jnp.linalg.norm(z, axis=-1, keepdims=True), towards))(z)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@nnx.jit
def learn(quantizer, z, key):
    out = quantizer.quantize(z)
    return out.ids, quantizer.learn(out.inputs, out.ids, key)["dead_codes"]


def test_vq_starts_from_data_and_finds_every_cluster():
    quantizer, centres, rng = vq(64), unit(16, 6, seed=3), np.random.default_rng(4)

    def batch():
        return jnp.asarray(centres[rng.integers(16, size=400)] + 0.01 * rng.normal(size=(400, 6)), jnp.float32)

    assert learn(quantizer, batch(), jax.random.key(0))[1] == 0
    assert (np.array(quantizer.codes[...]) @ centres.T).max(axis=1).min() > 0.99  # every code is such a vector
    for step in range(100):
        ids, _ = learn(quantizer, batch(), jax.random.key(step))
    assert (np.array(quantizer.codes[...]) @ centres.T).max(axis=0).min() > 0.999
    assert len(np.unique(ids)) > 16


def test_vq_keeps_up_with_latents_that_move():
    quantizer, start, rng = vq(512), unit(1, 6, seed=3), np.random.default_rng(4)
    for step in range(60):  # in fewer steps than a moving average takes to forget
        z = np.asarray(start + step / 10 * unit(1, 6, seed=5) + 0.1 * rng.normal(size=(256, 6)), np.float32)
        ids, _ = learn(quantizer, jnp.asarray(z), jax.random.key(step))
    # As the codes of the first batch alone, all 256 latents would now share one.
    assert len(np.unique(ids)) > 40


def test_vq_follows_the_moving_average():
    quantizer, z = vq(3, width=2), jnp.asarray([[1, 0], [0.6, 0.8], [0, 1], [0, -1]], jnp.float32)
    quantizer.codes[...], quantizer.share[...] = jnp.asarray([[1, 0], [0, 1], [0, -1]], jnp.float32), jnp.ones(3)
    ids, dead = learn(quantizer, z, jax.random.key(0))
    assert ids.tolist() == [0, 1, 1, 2] and dead == 0
    np.testing.assert_allclose(quantizer.share[...], [0.99 + 0.01 * n * 3 / 4 for n in (1, 2, 1)], rtol=1e-6)
    moved = 0.99 * np.array([0, 1]) + 0.01 * np.array([0.6, 1.8]) * 3 / 4
    np.testing.assert_allclose(quantizer.codes[...][1], moved / np.linalg.norm(moved), rtol=1e-6)


def test_vq_gives_a_dead_code_a_new_life():
    quantizer = vq(4, width=2)
    quantizer.codes[...] = jnp.asarray([[1, 0], [0, 1], [0, -1], [-1, 0]], jnp.float32)
    quantizer.share[...] = jnp.asarray([1, 1, 1, 0.101], jnp.float32)
    z = jnp.asarray([[1, 0.1], [0.1, 1], [0.1, -1]], jnp.float32)
    assert learn(quantizer, z, jax.random.key(0))[1] == 1
    assert quantizer.codes[...][3, 0] > 0 and quantizer.share[...][3] == pytest.approx(quantizer.dead)
    for chosen in (False, True):  # another one at once, unless something chooses it
        quantizer.codes[...] = quantizer.codes[...].at[3].set([-1, 0])
        assert learn(quantizer, jnp.concatenate([z, -z[:1]]) if chosen else z, jax.random.key(0))[1] == (not chosen)
    assert quantizer.codes[...][3, 0] < 0 and quantizer.share[...][3] > quantizer.dead


def brute_force(z, temperature):
    """Softmax of 2 z·c / temperature over all codes → the mean entropy, the entropy of the mean."""
    codes = np.array(list(itertools.product([-1, 1], repeat=z.shape[1])), np.float64)
    logits = 2 * z.astype(np.float64) @ codes.T / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)

    def entropy(shares):
        return -np.sum(shares * np.log(shares + 1e-300), axis=-1)

    return entropy(shares).mean(), entropy(shares.mean(axis=0))


def test_lfq_gives_signs_and_their_bits():
    quantizer = LFQ(8, 0.25, 0.1)
    out = quantizer.quantize(jnp.asarray([[0.3, -2, 1], [-1, 5, -0.1], [0, 0, 0]]))
    np.testing.assert_array_equal(out.latents, [[1, -1, 1], [-1, 1, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(out.ids, [1 + 4, 2, 0])
    np.testing.assert_array_equal(quantizer.decode_ids(jnp.arange(8))[5], [1, -1, 1])
    np.testing.assert_allclose(jax.grad(lambda z: quantizer.quantize(z).latents.sum())(jnp.ones((2, 3))), 1)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_lfqs_entropies_are_those_of_the_whole_codebook(temperature):
    z = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32) * temperature
    unsure, varied = brute_force(z, temperature)
    out = LFQ(32, 0.5, 0.1, temperature).quantize(jnp.asarray(z))
    assert float(out.losses["entropy"]) == pytest.approx(0.1 * (unsure - varied), rel=1e-4)
    assert float(out.losses["commitment"]) == pytest.approx(0.5 * np.mean(np.square(np.abs(z) - 1)), rel=1e-5)


def test_lfqs_entropy_of_the_mean_is_taken_group_by_group(monkeypatch):
    monkeypatch.setattr(quantizers, "GROUP", 2)
    z = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    wanted = brute_force(z, 1.0)[0] - sum(brute_force(z[:, i : i + 2], 1.0)[1] for i in (0, 2, 4))
    found = LFQ(32, 0.25, 1.0, 1.0).quantize(jnp.asarray(z)).losses["entropy"]
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_lfq_computes_in_float32():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(200, 9)), jnp.bfloat16)
    narrow, wide = (LFQ(512, 0.25, 0.1).quantize(z.astype(dtype)) for dtype in (jnp.bfloat16, jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, narrow, wide)


@pytest.mark.parametrize("kind", ["vq", "lfq"])
def test_no_array_grows_with_batch_times_codebook(kind):
    codes, batch = 2**18, 2048

    def loss(z, key):
        quantizer = vq(codes, width=18) if kind == "vq" else LFQ(codes, 0.25, 0.1)
        out = quantizer.quantize(z)
        quantizer.learn(out.inputs, out.ids, key)
        return jnp.sum(out.latents) + sum(out.losses.values())

    z = jax.ShapeDtypeStruct((batch, 18), jnp.float32)
    memory = jax.jit(jax.grad(loss)).lower(z, jax.random.key(0)).compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes < 4 * batch * codes / 16


@pytest.mark.parametrize("make, said", [(lambda: LFQ(1000, 1, 1), "power of two.*1000"), (lambda: vq(1), "codes 1")])
def test_codebooks_that_cannot_be(make, said):
    with pytest.raises(UserError, match=said):
        make()
