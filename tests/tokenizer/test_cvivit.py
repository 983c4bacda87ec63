"""C-ViViT: shapes, causality, images as 1-frame videos, and streams that equal the whole video at once."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokvid.config import TokenizerConfig
from tokvid.errors import UserError
from tokvid.nn.blocks import REMAT
from tokvid.tokenizer.cvivit import CViViT, Tiles, _cover, _folded, _patches, _pixels, _unfolded, latent_shape

ALTERNATING, PHENAKI = ("space", "time") * 2, ("space", "space", "time", "time")
CONFIG = TokenizerConfig(
    size=(16, 16),
    patch=8,
    width=32,
    heads=2,
    mlp=48,
    encoder=ALTERNATING,
    decoder=ALTERNATING,
    time_window=3,
    quantizer="fsq",
    dtype="float32",
)
SMALLEST = dataclasses.replace(CONFIG, encoder=("space", "time"), decoder=("space", "time"))
LATENT = 17  # latent frames of the test video: more than five windows of 3
VIDEO = np.random.default_rng(0).uniform(-1, 1, (2, 1 + 2 * (LATENT - 1), 16, 16, 3)).astype(np.float32)


def reordered(order):
    """Alternating layers; or Phenaki's order, with codes that stay where nothing moves."""
    if order != PHENAKI:
        return dataclasses.replace(CONFIG, encoder=order, decoder=order)
    return dataclasses.replace(CONFIG, encoder=order, decoder=order[::-1], first_frame="still", hysteresis=0.3)


class Jitted(NamedTuple):
    """A model with its functions compiled once per shape, and what it makes of VIDEO."""

    model: CViViT
    reconstruct: Any
    encode_step: Any
    decode_step: Any
    pixels: np.ndarray
    latents: np.ndarray
    ids: np.ndarray


@pytest.fixture(scope="module", params=[ALTERNATING, PHENAKI], ids=["alternating", "phenaki"])
def whole(request, random_model):
    model = random_model(CViViT, reordered(request.param))
    reconstruct = jax.jit(model.reconstruct)
    pixels, quantized = jax.tree.map(np.asarray, reconstruct(VIDEO))
    encode_step, decode_step = (jax.jit(f, static_argnames="first") for f in (model.encode_step, model.decode_step))
    return Jitted(model, reconstruct, encode_step, decode_step, pixels, quantized.latents, quantized.ids)


# Shapes


@pytest.mark.parametrize(
    "pt, size, wanted", [(2, (1, 8, 8), (1, 1, 1)), (2, (11, 128, 64), (6, 16, 8)), (4, (9, 24, 8), (3, 3, 1))]
)
def test_latent_shape(pt, size, wanted):
    assert latent_shape(TokenizerConfig(patch=8, temporal_patch=pt), *size) == wanted


@pytest.mark.parametrize(
    "pt, size, said",
    [
        (2, (4, 8, 8), "4 frames don't fit a temporal patch of 2: use 3 or 5 frames"),
        (4, (12, 8, 8), "12 frames don't fit a temporal patch of 4: use 9 or 13 frames"),
        (2, (0, 8, 8), "0 frames don't fit a temporal patch of 2: use 1 or 3 frames"),
        (2, (3, 100, 8), "height 100 is no multiple of a token's 8 pixels: use 96 or 104"),
        (2, (3, 8, 5), "width 5 is no multiple of a token's 8 pixels: use 8 or 16"),
        (2, (3, 0, 8), "height 0 is no multiple of a token's 8 pixels: use 8 or 16"),
    ],
)
def test_latent_shape_says_what_would_fit(pt, size, said):
    with pytest.raises(UserError) as error:
        latent_shape(TokenizerConfig(patch=8, temporal_patch=pt), *size)
    assert str(error.value) == said


def test_a_video_that_does_not_fit_is_a_users_error(whole):
    with pytest.raises(UserError, match=r"4 frames.*use 3 or 5"):
        whole.model.encode(jnp.asarray(VIDEO[:, :4]))
    with pytest.raises(UserError, match=r"width 12.*use 8 or 16"):
        whole.model.encode(jnp.asarray(VIDEO[:, :3, :, :12]))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"time_window": 0}, "time_window should be 1 or more, got 0"),
        ({"heads": 5}, "width 32, heads 5"),
        ({"width": 30, "heads": 2}, "width 30"),  # heads of 15 channels: rotary positions turn pairs
        ({"fold": 0}, "fold should be 1"),
        ({"groups": 0}, "groups should be 1 or more, got 0"),
        ({"quantizer": "fsk"}, "did you mean 'fsq'"),
        ({"encoder": ("space", "tme")}, "did you mean 'time'"),
    ],
)
def test_configs_that_cannot_be(change, said, random_model):
    with pytest.raises(UserError, match=said):
        random_model(CViViT, dataclasses.replace(CONFIG, **change))


def test_the_output_has_the_shapes_and_types_promised(whole):
    assert whole.pixels.shape == VIDEO.shape and whole.pixels.dtype == np.float32
    assert whole.ids.shape == (2, LATENT, 2, 2, 1) and whole.ids.dtype == np.int32
    assert whole.latents.shape == (2, LATENT, 2, 2, 4)
    # The tests below would show nothing if all tokens were the same.
    assert len(np.unique(whole.ids)) > 50 and whole.pixels.std() > 0.1


def test_in_bfloat16_pixels_and_latents_are_float32(random_model):
    """Whose 8 bits would add to a good reconstruction's loss: only attention and MLP are rounded."""
    wide, narrow = (
        random_model(CViViT, dataclasses.replace(SMALLEST, dtype=dtype)) for dtype in ("float32", "bfloat16")
    )
    video = jnp.asarray(VIDEO[:, :3])
    encoded, other = (jax.jit(model.encode)(video) for model in (wide, narrow))
    wanted, found = (np.asarray(jax.jit(model.decode_step)(encoded.latents)[0]) for model in (wide, narrow))
    assert found.dtype == np.float32 and 0 < np.abs(found - wanted).mean() < 0.01 * wanted.std()
    rounded = np.asarray(jnp.asarray(found, jnp.bfloat16), np.float32)
    assert (found != rounded).mean() > 0.9
    assert narrow.empty_cache("encoder", 1, 2, 2).layers[0].dtype == jnp.bfloat16
    assert (other.ids == encoded.ids).mean() > 0.8


def test_a_patch_holds_the_pixels_of_its_place():
    video = np.arange(2 * 6 * 16 * 24 * 3).reshape(2, 6, 16, 24, 3)
    patches = _patches(jnp.asarray(video), 2, 8)
    assert patches.shape == (2, 3, 2, 3, 2 * 8 * 8 * 3)
    for b, t, h, w in np.ndindex(patches.shape[:4]):
        there = video[b, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
        np.testing.assert_array_equal(patches[b, t, h, w], there.ravel())
    np.testing.assert_array_equal(_pixels(patches, 2, 8), video)


# Tokens of several sub-codes


def test_folds_of_patches_come_back_as_they_were():
    ids = jnp.arange(2 * 3 * 4 * 6 * 2).reshape(2, 3, 4, 6, 2)
    folded = _folded(ids, 2)
    assert folded.shape == (2, 3, 2, 3, 8)
    for b, t, h, w in np.ndindex(folded.shape[:4]):  # a token's patches row by row, and each one's groups
        np.testing.assert_array_equal(folded[b, t, h, w], ids[b, t, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].ravel())
    np.testing.assert_array_equal(_unfolded(folded, 2), ids)
    np.testing.assert_array_equal(_folded(ids, 1), ids)
    inputs = ids[..., None] * np.ones(5)
    np.testing.assert_array_equal(_folded(inputs, 2), folded[..., None] * np.ones(5))


SUBCODES = {
    "fsq": {"quantizer": "fsq", "levels": (5, 4)},
    "vq": {"quantizer": "vq", "codes": 40, "code_width": 3},
    "lfq": {"quantizer": "lfq", "codes": 8},
}


@pytest.fixture(scope="module", params=SUBCODES)
def folding(request, random_model):
    """A tokenizer of tokens of 8 sub-codes: two of each of four patches."""
    config = dataclasses.replace(SMALLEST, patch=4, fold=2, groups=2, **SUBCODES[request.param])
    return random_model(CViViT, config)


def test_a_tokens_sub_codes_are_those_of_its_own_patches(folding):
    """Who changes the latents of a patch finds them changed in one token, in that patch's sub-codes."""
    width = folding.quantizer.width
    ids = np.random.default_rng(0).integers(8, size=(1, 2, 2, 3, 8)).astype(np.int32)
    wanted = np.asarray(folding.latents(jnp.asarray(ids)))
    assert wanted.shape == (1, 2, 4, 6, width)
    for row, column, q in ((0, 0, 0), (1, 2, 3), (0, 1, 5), (1, 1, 7)):
        changed = ids.copy()
        changed[0, 1, row, column, q] = (changed[0, 1, row, column, q] + 3) % 8
        patch, group = divmod(q, 2)
        moved = np.argwhere(np.asarray(folding.latents(jnp.asarray(changed))) != wanted)
        places = {tuple(place) for place in moved[:, :4].tolist()}
        assert places == {(0, 1, 2 * row + patch // 2, 2 * column + patch % 2)}
        assert set((moved[:, 4] // (width // 2)).tolist()) == {group}


def test_what_is_encoded_in_sub_codes_is_decoded_from_them(folding):
    video = VIDEO[:1, :5]
    pixels, quantized = jax.jit(folding.reconstruct)(video)
    assert quantized.ids.shape == (1, 3, 2, 2, 8) and len(np.unique(quantized.ids)) > 5
    assert quantized.latents.shape == (1, 3, 4, 4, folding.quantizer.width)
    assert quantized.inputs.shape == (*quantized.ids.shape, folding.quantizer.width // 2)
    np.testing.assert_allclose(folding.latents(quantized.ids), quantized.latents, atol=1e-6)
    np.testing.assert_allclose(jax.jit(folding.decode)(quantized.ids), pixels, atol=1e-4)
    # `inputs` stay beside their ids, for `learn`: each alone gives the sub-code that it stands beside.
    again = folding.quantizer.quantizer.quantize(quantized.inputs)
    np.testing.assert_array_equal(again.ids, quantized.ids)


def test_learning_in_sub_codes_is_learning_from_every_group_of_every_patch(random_model):
    """The codebook moves as it would by each latent with its own code: here to the mean of those that chose it."""
    config = dataclasses.replace(SMALLEST, patch=4, fold=2, groups=2, **SUBCODES["vq"])
    folding = random_model(CViViT, config)
    quantizer = folding.quantizer.quantizer
    quantizer.share[...] = jnp.ones(40)
    codes_KC, quantized = np.asarray(quantizer.codes[...]), jax.jit(folding.encode)(VIDEO[:1, :5])
    folding.quantizer.learn(quantized.inputs, quantized.ids, jax.random.key(0))
    z_NC, ids_N = np.asarray(quantized.inputs).reshape(-1, 3), np.asarray(quantized.ids).ravel()
    chosen = np.bincount(ids_N, minlength=40)
    for code in np.flatnonzero(chosen)[:10]:
        moved_C = 0.99 * codes_KC[code] + 0.01 * z_NC[ids_N == code].sum(0) * 40 / len(ids_N)
        np.testing.assert_allclose(quantizer.codes[...][code], moved_C / np.linalg.norm(moved_C), atol=1e-5)
    np.testing.assert_allclose(quantizer.share[...], 0.99 + 0.01 * chosen * 40 / len(ids_N), rtol=1e-5)


def test_other_sizes_than_trained(whole):
    """24×8 pixels from a model for 16×16; and no pixel of it sees the future either."""
    video = np.random.default_rng(1).uniform(-1, 1, (1, 3, 24, 8, 3)).astype(np.float32)
    pixels, quantized = whole.reconstruct(video)
    assert pixels.shape == video.shape and quantized.ids.shape == (1, 2, 3, 1, 1)
    later_pixels, later = whole.reconstruct(np.concatenate([video[:, :1], -video[:, 1:]], axis=1))
    np.testing.assert_array_equal(later_pixels[:, :1], pixels[:, :1])
    assert (later.ids[:, 1:] != quantized.ids[:, 1:]).any()


# Causality


@pytest.mark.parametrize("frame", [1, 2, 15, 32])
def test_the_future_changes_nothing_before_it(whole, frame):
    changed = VIDEO.copy()
    changed[:, frame:] = np.random.default_rng(frame).uniform(-1, 1, changed[:, frame:].shape)
    pixels, quantized = whole.reconstruct(changed)
    latent = (frame + 1) // 2  # the latent frame that holds it: 0 | 1 2 | 3 4 | ...
    first = 2 * latent - 1  # and the first frame that it paints
    np.testing.assert_array_equal(quantized.ids[:, :latent], whole.ids[:, :latent])
    np.testing.assert_array_equal(quantized.latents[:, :latent], whole.latents[:, :latent])
    np.testing.assert_array_equal(pixels[:, :first], whole.pixels[:, :first])
    assert (quantized.ids[:, latent] != whole.ids[:, latent]).any()
    assert (pixels[:, first] != whole.pixels[:, first]).any()


def test_an_image_is_a_video_of_one_frame(whole):
    pixels, quantized = whole.reconstruct(VIDEO[:, :1])
    assert pixels.shape == (2, 1, 16, 16, 3)
    np.testing.assert_array_equal(quantized.ids, whole.ids[:, :1])
    np.testing.assert_allclose(pixels, whole.pixels[:, :1], atol=1e-5)


def test_one_time_layer_reaches_as_far_as_its_window(random_model):
    """A changed latent frame shows in its own pixels and the next two (window 3): neither in more nor in fewer."""
    model = random_model(CViViT, SMALLEST)
    run = jax.jit(lambda video, latents: (model.encode(video).latents, model.decode_step(latents)[0]))
    latents = np.random.default_rng(1).uniform(-1, 1, (1, 9, 2, 2, 4)).astype(np.float32)
    video, later, changed = VIDEO[:1, :17], VIDEO[:1, :17].copy(), latents.copy()
    later[:, 3:5], changed[:, 2] = -video[:, 3:5], -latents[:, 2]  # frames 3 and 4 are latent frame 2
    (encoded, pixels), (encoded_later, pixels_later) = run(video, latents), run(later, changed)
    differs = np.any(np.asarray(encoded != encoded_later), axis=(0, 2, 3, 4))
    assert differs[2] and not differs[[0, 1, 5, 6, 7, 8]].any()
    differs = np.any(np.asarray(pixels != pixels_later), axis=(0, 2, 3, 4))
    assert differs.tolist() == [3 <= frame <= 8 for frame in range(17)]  # the frames of latent frames 2, 3 and 4


def test_a_still_video_keeps_its_first_tokens(random_model):
    """Only with a first frame that is encoded as a still one."""
    still_BTHWC = np.repeat(VIDEO[:, :1], 9, axis=1)
    for first_frame in ("own", "still"):
        model = random_model(CViViT, dataclasses.replace(SMALLEST, first_frame=first_frame, hysteresis=0.1))
        ids = np.asarray(jax.jit(model.encode)(still_BTHWC).ids)
        assert (ids[:, 3:] == ids[:, 3:4]).all()  # none of these sees the first
        assert (ids[:, 1:] == ids[:, :1]).all() == (first_frame == "still")
        picture = jax.jit(model.encode)(still_BTHWC[:, :1]).ids
        np.testing.assert_array_equal(picture, ids[:, :1])


# Streams


def stream(step, part, model, pieces):
    """The outputs of `step` over the pieces of a stream, and the cache in the end."""
    cache, outputs = model.empty_cache(part, 2, 2, 2), []
    for i, piece in enumerate(pieces):
        output, cache = step(piece, cache, first=i == 0)
        outputs.append(jax.tree.map(np.asarray, output))
    return outputs, cache


def cut(array, latent_frames, per_latent_frame):
    """`array` (B, T, ...) in pieces of so many latent frames; the very first of these has one frame only."""
    ends = np.cumsum(latent_frames)
    assert ends[-1] == LATENT
    return np.split(array, 1 + per_latent_frame * (ends[:-1] - 1), axis=1)


@pytest.mark.parametrize("latent_frames", [[1] * 17, [1, 3, 3, 1, 3, 3, 3]], ids=["singly", "mixed"])
def test_a_stream_equals_the_whole(whole, latent_frames):
    outputs, _ = stream(whole.encode_step, "encoder", whole.model, cut(VIDEO, latent_frames, 2))
    np.testing.assert_array_equal(np.concatenate([out.ids for out in outputs], axis=1), whole.ids)
    np.testing.assert_array_equal(np.concatenate([out.latents for out in outputs], axis=1), whole.latents)
    outputs, _ = stream(whole.decode_step, "decoder", whole.model, cut(whole.latents, latent_frames, 1))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole.pixels, atol=1e-5)


def test_ids_decode_to_the_pixels_that_latents_do(whole):
    latents = whole.model.latents(jnp.asarray(whole.ids))
    np.testing.assert_array_equal(latents, whole.latents)


def test_a_long_stream_keeps_a_cache_of_constant_size(whole):
    rng = np.random.default_rng(2)
    latents = rng.uniform(-1, 1, (2, 300, 2, 2, 4)).astype(np.float32)
    empty = whole.model.empty_cache("decoder", 2, 2, 2)
    outputs, cache = stream(whole.decode_step, "decoder", whole.model, np.split(latents, 300, axis=1))
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, empty)
    assert cache.next == 300 and cache.times.tolist() == [298, 299]
    # Two layers that look two latent frames back remember four: a stream that began but ten before ends alike, so
    # nothing is kept beyond the window, and it does not matter how late it is.
    again, _ = stream(whole.decode_step, "decoder", whole.model, np.split(latents[:, 290:], 10, axis=1))
    np.testing.assert_allclose(np.concatenate(again[5:], 1), np.concatenate(outputs[295:], 1), atol=1e-4)


# Few sub-codes after the first frame

LEAN = dataclasses.replace(
    SMALLEST, patch=4, fold=2, groups=2, first_frame="still", hysteresis=0.3, later_codes=(3, 0), levels=(5, 4)
)
NOTHING = 2 + 2 * 5  # the code of two channels that are 0


@pytest.fixture(scope="module")
def lean(random_model):
    """With weights of both layers over tokens that aren't 0."""
    return random_model(CViViT, LEAN)


def test_later_latent_frames_keep_the_first_sub_codes(lean):
    video = VIDEO[:, :9]
    run = jax.jit(lambda video, kept=None: lean.reconstruct(video, kept))
    pixels, out = run(video)
    _, full = run(video, jnp.asarray([5 * [0], 5 * [8]]))
    assert out.ids.shape == (2, 5, 2, 2, 8)
    np.testing.assert_array_equal(out.ids[:, 0], full.ids[:, 0])
    np.testing.assert_array_equal(out.ids[:, 1:, ..., :3], full.ids[:, 1:, ..., :3])
    assert (out.ids[:, 1:, ..., 3:] == NOTHING).all() and (full.ids[:, 1:, ..., 3:] != NOTHING).any()
    np.testing.assert_array_equal(lean.latents(out.ids), out.latents)
    np.testing.assert_allclose(jax.jit(lean.decode)(out.ids), pixels, atol=1e-5)
    wanted = np.array([[1, 5, 8, 3, 2], [8, 1, 2, 3, 4]])  # a number for each latent frame
    _, each = run(video, jnp.asarray(wanted))
    np.testing.assert_array_equal((each.ids != NOTHING).any(axis=(2, 3)), np.arange(8) < wanted[..., None])


def test_few_sub_codes_stream_as_the_whole(lean):
    video = VIDEO[:, :9]
    whole = jax.jit(lean.encode)(video)
    step = jax.jit(lean.encode_step, static_argnames="first")
    cache, ids = lean.empty_cache("encoder", 2, 2, 2), []
    for first, piece in zip((True, False, False), np.split(video, [3, 5], axis=1), strict=True):
        out, cache = step(piece, cache, first=first)
        ids.append(out.ids)
    np.testing.assert_array_equal(np.concatenate(ids, axis=1), whole.ids)


def test_a_token_s_kept_sub_codes_tell_of_all_its_patches(lean):
    """Each pixel of a token moves them, and they move each pixel."""
    video = jnp.asarray(VIDEO[:1, :3, :8, :8])

    def first_code(video):
        return lean.encode(video).latents[0, 1, 0, 0, 0]

    assert (jnp.abs(jax.jit(jax.grad(first_code))(video)[0, 1:]).sum(axis=(0, 3)) > 0).all()
    latents = jnp.zeros((1, 2, 2, 2, 4))
    painted = jax.jit(lambda latents: lean.decode_step(latents)[0])
    moved = painted(latents.at[0, 1, 0, 0, 0].set(1)) != painted(latents)
    assert moved[0, 1:].any(axis=(0, 3)).all()


def test_at_the_start_of_training_nothing_is_told_by_token():
    """So that a tokenizer trained without few sub-codes goes on as it was."""
    model, plain = (CViViT(dataclasses.replace(LEAN, later_codes=kept), rngs=nnx.Rngs(0)) for kept in ((0, 3), (0,)))
    graph, params = nnx.split(model)
    old = dict(nnx.to_flat_state(nnx.state(plain)))
    video = jnp.asarray(VIDEO[:, :5])
    params = nnx.from_flat_state({path: old.get(path, leaf) for path, leaf in nnx.to_flat_state(params)})
    merged = nnx.merge(graph, params)
    np.testing.assert_array_equal(jax.jit(merged.encode)(video).ids, jax.jit(plain.encode)(video).ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"later_codes": (9,)}, r"later_codes \[9\]: should be 0 \(all\) to 8 sub-codes"),
        ({"later_codes": (-1,)}, "later_codes"),
        ({"later_codes": ()}, "later_codes is empty"),
        ({"quantizer": "lfq"}, "a code that says nothing, which lfq hasn't"),
    ],
)
def test_impossible_numbers_of_later_codes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        CViViT(dataclasses.replace(LEAN, **({"hysteresis": 0.0} | changes)), rngs=nnx.Rngs(0))


def test_the_first_frame_is_recalled_for_ever(random_model):
    """Beyond the time layers' reach, and in a stream as in the whole."""
    latents = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 12, 4, 4, 4)), jnp.float32)
    changed = latents.at[:, 0].multiply(-1)
    for recalls in (False, True):
        model = random_model(CViViT, dataclasses.replace(LEAN, recall_first=recalls))
        step = jax.jit(model.decode_step, static_argnames="first")
        (whole, _), (other, _) = step(latents), step(changed)
        differs = np.any(np.asarray(whole != other), axis=(0, 2, 3, 4))
        assert differs[: 1 + 2 * 2].all() and differs[-8:].all() == differs[-8:].any() == recalls
        cache, made = model.empty_cache("decoder", 2, 2, 2), []
        for number, piece in enumerate(np.split(latents, [1, 4, 5], axis=1)):
            pixels, cache = step(jnp.asarray(piece), cache, first=number == 0)
            made.append(pixels)
        np.testing.assert_allclose(np.concatenate(made, axis=1), whole, atol=1e-5)


# Gradients


@pytest.fixture(scope="module")
def gradients(random_model):
    """Of an early part of the pixels, by remat policy: those of the parameters and that of the video."""

    @functools.cache
    def gradient(policy):
        graph, params = nnx.split(random_model(CViViT, dataclasses.replace(SMALLEST, remat=policy)))

        def loss(params, video):
            return jnp.square(nnx.merge(graph, params).reconstruct(video)[0][:, :3]).mean()

        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss, argnums=(0, 1)))(params, VIDEO[:, :5]))

    return gradient


@pytest.mark.parametrize("policy", [policy for policy in REMAT if policy != "none"])
def test_remat_changes_no_gradient(gradients, policy):
    for wanted, found in zip(*(jax.tree.leaves(gradients(name)) for name in ("none", policy)), strict=True):
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(found, wanted, atol=1e-6 + 1e-5 * np.abs(wanted).max())


def test_no_gradient_flows_from_a_pixel_to_later_frames(gradients):
    video = gradients("none")[1]
    assert np.abs(video[:, :3]).max(axis=(0, 2, 3, 4)).min() > 0
    np.testing.assert_array_equal(video[:, 3:], 0)


@pytest.mark.parametrize("size, most", [((4, 6), (4, 6)), ((9, 6), (4, 6)), ((10, 13), (4, 6)), ((3, 7), (4, 6))])
def test_tiles_cover_the_grid_and_come_back_as_they_were(size, most):
    tiles = Tiles(*size, *most)
    grid = jnp.arange(2 * 3 * size[0] * size[1] * 2.0).reshape(2, 3, *size, 2)
    cut = tiles.cut(grid)
    assert cut.shape[1] == min(size[0], most[0]) * min(size[1], most[1])
    np.testing.assert_array_equal(tiles.join(cut, 2, 3), grid)


def test_where_tiles_overlap_the_one_whose_middle_is_nearest_counts():
    places, taken = _cover(10, 4)
    assert places.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert places.ravel()[taken].tolist() == list(range(10))
    assert (taken // 4).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]  # of equals the first


def test_a_larger_frame_is_mixed_in_tiles_of_the_size_trained_on(random_model):
    """A model of one space layer each: what stands in one tile can't be seen in another, on whatever grid."""
    config = dataclasses.replace(CONFIG, encoder=("space",), decoder=("space",))
    reconstruct = jax.jit(random_model(CViViT, config).reconstruct)
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 48, 3)), jnp.float32)
    parts = [[video[:, :, i : i + 16, j : j + 16] for j in (0, 16, 32)] for i in (0, 16)]
    apart = jnp.concatenate([jnp.concatenate([reconstruct(part)[0] for part in row], 3) for row in parts], 2)
    np.testing.assert_allclose(reconstruct(video)[0], apart, atol=1e-5)
    at_once = jax.jit(random_model(CViViT, dataclasses.replace(config, tile=6)).reconstruct)(video)[0]
    assert not np.allclose(at_once, apart, atol=1e-3)
