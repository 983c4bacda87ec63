"""FSQ against the paper's code (recorded), against itself, and at its edges; what every quantizer must keep."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokvid.config import TokenizerConfig
from tokvid.errors import UserError
from tokvid.tokenizer.quantizers import FSQ, QUANTIZERS, Grouped, codes_of, make_quantizer, nearest
from tokvid.types import Codes

RECORDED = ["3x5x4", "8x6x5", "8x5x5x5", "7x5x5x5x5", "8x8x8x5x5x5", "8x8x8x6x5"]
LEVELS = [3, 5, 4]


def fsq(levels):
    return QUANTIZERS["fsq"](TokenizerConfig(levels=tuple(levels)), nnx.Rngs(0))


def quantize(levels, z):
    return jax.jit(fsq(levels).quantize)(np.asarray(z, np.float32))


def normal(*shape):
    return 2 * np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_worked_example():
    out = quantize([3, 5, 4], [0.25, 0.6, -7.0])
    np.testing.assert_array_equal(out.latents, [0, 0.5, -1])
    assert out.ids == 10 and out.ids.dtype == jnp.int32 and out.losses == {}


@pytest.mark.parametrize(
    "levels, z, latents, ids",
    [
        (
            [3, 5, 4],
            [[0, 0, 0], [9, 9, 9], [-9, -9, -9], [np.inf, -np.inf, np.inf]],
            [[0, 0, 0], [1, 1, 0.5], [-1, -1, -1], [1, -1, 0.5]],  # an even level has no +1: -1, -0.5, 0, 0.5
            [1 + 3 * 2 + 15 * 2, 3 * 5 * 4 - 1, 0, 2 + 15 * 3],
        ),
        (
            [8, 5, 5, 5],
            [[0.9, 0.3, -0.4, 5], [-0.5, 0, 0.2, 0.4]],
            [[0.5, 0.5, -0.5, 1], [-0.5, 0, 0, 0.5]],
            [6 + 8 * 3 + 40 * 1 + 200 * 4, 2 + 8 * 2 + 40 * 2 + 200 * 3],
        ),
        ([2, 2], [[-9, 9], [9, -9]], [[-1, 0], [0, -1]], [2, 1]),
    ],
)
def test_small_vectors_worked_by_hand(levels, z, latents, ids):
    out = quantize(levels, z)
    np.testing.assert_array_equal(out.latents, latents)
    np.testing.assert_array_equal(out.ids, ids)


def recorded(dev_data, name, *parts):
    with np.load(dev_data / "reference" / "fsq_vectors.npz") as file:
        return [file[f"{name}_{part}"] for part in parts]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_ids_decode_to_the_recorded_values(name, dev_data):
    ids, latents = recorded(dev_data, name, "index", "zhat")
    decoded = jax.jit(fsq(map(int, name.split("x"))).decode_ids)(ids.astype(np.int32))
    np.testing.assert_allclose(decoded, latents, atol=1e-6)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_values_quantize_to_the_recorded_ids(name, dev_data):
    z, bound, latents, ids = recorded(dev_data, name, "z", "bound", "zhat", "index")
    quantizer = fsq(map(int, name.split("x")))
    made_bound, made = jax.jit(lambda z: (quantizer.bound(z), quantizer.quantize(z)))(z)
    np.testing.assert_allclose(made_bound, bound, atol=2e-6)
    np.testing.assert_allclose(made.latents, latents, atol=1e-6)
    np.testing.assert_array_equal(made.ids, ids)


def test_decode_ids_inverts_every_code():
    quantizer = fsq(LEVELS)
    grids = [(np.arange(level) - level // 2) / (level // 2) for level in LEVELS]
    wanted = np.array(list(itertools.product(*reversed(grids))))[:, ::-1]  # the first channel runs fastest
    np.testing.assert_allclose(quantizer.decode_ids(jnp.arange(quantizer.vocabulary)), wanted, atol=1e-7)
    # Whatever quantizes to a code gives that code's latents, to the last bit; and every code is reached.
    out = quantize(LEVELS, normal(2000, len(LEVELS)))
    np.testing.assert_array_equal(out.latents, quantizer.decode_ids(out.ids))
    assert len(np.unique(out.ids)) == quantizer.vocabulary == 60


def test_the_gradient_passes_straight_through_the_rounding():
    quantizer = fsq(LEVELS)

    @jax.jit
    @jax.grad
    def rounded(z):
        return quantizer.quantize(z).latents.sum()

    @jax.jit
    @jax.grad
    def smooth(z):
        return (quantizer.bound(z) / (quantizer.levels // 2)).sum()

    z = normal(50, len(LEVELS))
    np.testing.assert_allclose(rounded(z), smooth(z), rtol=1e-6)
    assert np.abs(rounded(z)).min() > 0


def test_nan_stays_visible():
    out = quantize(LEVELS, [np.nan, 0, 0])
    # It must reach the loss, which notices it; its id names some code, never one outside the vocabulary.
    assert np.isnan(out.latents[0]) and 0 <= out.ids < 60


def test_16_bit_input_is_quantized_in_float32():
    z = jnp.asarray(normal(500, 3), jnp.bfloat16)
    narrow, wide = jax.jit(fsq(LEVELS).quantize)(z), quantize(LEVELS, z)
    np.testing.assert_array_equal(narrow.ids, wide.ids)
    assert narrow.latents.dtype == jnp.float32


def config_of(kind):
    return TokenizerConfig(quantizer=kind, levels=tuple(LEVELS), codes=64, code_width=4, groups=3)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_quantizer_gives_codes_and_the_latents_of_codes(kind):
    """Codes of its vocabulary with the leading axes of z, the latents they stand for, and a gradient for z."""
    quantizer = QUANTIZERS[kind](config_of(kind), nnx.Rngs(0))
    z = jnp.asarray(normal(4, 3, 50, quantizer.width))
    quantize = jax.jit(quantizer.quantize)
    out = quantize(z)
    assert out.ids.shape == (4, 3, 50) and out.ids.dtype == jnp.int32 and out.latents.dtype == jnp.float32
    assert out.ids.min() >= 0 and out.ids.max() < quantizer.vocabulary and len(np.unique(out.ids)) > 10
    np.testing.assert_allclose(quantizer.decode_ids(out.ids), out.latents, atol=1e-6)
    np.testing.assert_array_equal(quantize(z[1, 2]).ids, out.ids[1, 2])
    every = quantizer.decode_ids(jnp.arange(quantizer.vocabulary))
    assert every.shape == (quantizer.vocabulary, quantizer.width) and len(np.unique(every, axis=0)) == len(every)
    pull = jax.jit(jax.grad(lambda z: jnp.vdot(normal(*z.shape)[::-1], quantizer.quantize(z).latents)))(z)
    assert np.isfinite(pull).all() and (np.abs(pull).max(axis=-1) > 0).all()
    assert all(np.isfinite(loss) and loss.shape == () for loss in out.losses.values())
    metrics = quantizer.learn(out.inputs.reshape(-1, quantizer.width), out.ids.ravel(), jax.random.key(0))
    assert all(np.isfinite(value) and value.shape == () for value in metrics.values())
    assert 0 <= quantize(16 * z).ids.min() < quantizer.vocabulary


def test_with_hysteresis_a_level_is_left_by_a_clear_margin():
    """One channel of levels -2 to 2, frame after frame; also where a stream is cut."""
    quantizer = FSQ((5,), hysteresis=0.2)
    bounded = np.float32([0.4, 0.6, 0.69, 0.71, 0.4, 0.29, -1.6, np.nan, 0.4])
    wanted = [0, 0, 0, 1, 1, 0, -2, np.nan, 0]
    z = jnp.arctanh(bounded / (2 * (1 - 1e-3)))[None, :, None]
    quantize = jax.jit(quantizer.quantize)
    out = quantize(z)
    np.testing.assert_array_equal(2 * out.latents[0, :, 0], wanted)
    np.testing.assert_array_equal(out.ids[0, [0, 3, 6]], [2, 3, 0])
    first, rest = quantize(z[:, :4]), quantize(z[:, 4:], before=out.latents[:, 3])
    np.testing.assert_array_equal(jnp.concatenate([first.ids, rest.ids], axis=1), out.ids)
    assert quantize(z[:, 4:]).ids[0, 0] != out.ids[0, 4], "without what was before"
    assert FSQ((5,)) != quantizer != FSQ((5,), 0.3)
    gradient, plain = (
        jax.jit(jax.grad(lambda z, each=each: each.quantize(z).latents[:, :7].sum()))(z)
        for each in (quantizer, FSQ((5,)))
    )
    np.testing.assert_array_equal(gradient, plain)  # straight through


def test_stillness_is_the_mean_change_of_the_latents_in_levels():
    quantizer = FSQ((5, 3), stillness=0.5)
    z = jnp.asarray(normal(2, 4, 6, 2))
    bounded = np.asarray(quantizer.bound(z))
    loss = quantizer.quantize(z).losses["stillness"]
    assert float(loss) == pytest.approx(0.5 * np.abs(np.diff(bounded, axis=1)).mean(), rel=1e-5)
    assert quantizer.quantize(z[:, :1]).losses == {}  # pictures
    moved = jax.grad(lambda z: quantizer.quantize(z).losses["stillness"])(z)
    assert np.isfinite(moved).all() and np.abs(moved).max() > 0


@pytest.mark.parametrize("slip", [{"hysteresis": 0.2}, {"stillness_weight": 0.1}])
def test_codebooks_have_no_levels_to_keep(slip):
    with pytest.raises(UserError, match="are in levels, which vq has none of; set both to 0, or the quantizer to fsq"):
        make_quantizer(TokenizerConfig(quantizer="vq", **slip), nnx.Rngs(0))
    with pytest.raises(UserError, match="hysteresis"):
        TokenizerConfig(hysteresis=-0.1)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_quantizer_loaded_again_is_not_compiled_again(kind):
    """It has its state in variables, or is equal to another of its settings."""
    one, other = (nnx.split(make_quantizer(config_of(kind), nnx.Rngs(seed)))[0] for seed in (0, 1))
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_each_group_of_channels_is_quantized_alone(kind):
    """By one quantizer: a sub-code is what it makes of the group's channels, whatever the others hold."""
    grouped, alone = (make(config_of(kind), nnx.Rngs(0)) for make in (make_quantizer, QUANTIZERS[kind]))
    assert (grouped.width, grouped.vocabulary) == (3 * alone.width, alone.vocabulary)
    z = jnp.asarray(normal(2, 5, grouped.width))
    out = grouped.quantize(z)
    assert out.latents.shape == z.shape and out.ids.shape == (2, 5, 3) and out.inputs.shape == (2, 5, 3, alone.width)
    for group in range(3):
        channels = slice(group * alone.width, (group + 1) * alone.width)
        part = alone.quantize(z[..., channels])
        np.testing.assert_array_equal(out.ids[..., group], part.ids)
        np.testing.assert_allclose(out.latents[..., channels], part.latents, atol=1e-6)
        np.testing.assert_allclose(out.inputs[:, :, group], part.inputs, atol=1e-6)
    for name, loss in out.losses.items():
        whole = alone.quantize(z.reshape(2, 5, 3, -1)).losses[name]
        assert float(loss) == pytest.approx(float(whole), rel=1e-5)
    np.testing.assert_allclose(grouped.decode_ids(out.ids), out.latents, atol=1e-6)
    changed = grouped.quantize(z.at[..., : alone.width].multiply(-1))
    assert (changed.ids[..., 0] != out.ids[..., 0]).any()
    np.testing.assert_array_equal(changed.ids[..., 1:], out.ids[..., 1:])


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_what_a_token_is_follows_from_the_config(kind):
    config = dataclasses.replace(config_of(kind), fold=2)
    codes = codes_of(config)
    assert codes == Codes(make_quantizer(config, nnx.Rngs(0)).vocabulary, 12)
    assert codes.bits == pytest.approx(12 * np.log2(codes.vocabulary))


def test_no_groups_are_refused():
    with pytest.raises(UserError, match="groups should be 1 or more, got 0"):
        Grouped(FSQ((3, 3)), 0)


@pytest.mark.parametrize("levels, said", [((), "at least 2"), ((8, 1), r"\(8, 1\)"), ((2,) * 31, "2147483648 codes")])
def test_levels_that_cannot_be(levels, said):
    with pytest.raises(UserError, match=said):
        FSQ(levels)


def test_the_nearest_code_is_found_in_float32_on_all_devices():
    """Accelerators multiply float32 in fewer bits unless told otherwise."""
    lowered = jax.jit(nearest).lower(jnp.zeros((4, 8)), jnp.zeros((16, 8))).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
