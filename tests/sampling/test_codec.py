"""Streaming is equal to a single pass; frames that cannot be are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.sampling.codec import StreamDecoder, StreamEncoder, frames_of, latent_frames_for

LATENT_FRAMES = 5 * 4  # five windows of the tiny transformer, several of the tokenizer's time window


@pytest.fixture(scope="module")
def video_BTHWC():
    return np.random.default_rng(0).integers(256, size=(2, frames_of(LATENT_FRAMES, 2), 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def ids_BTHWQ(any_models, video_BTHWC):
    """All at once."""
    model = any_models.tokenizer.model
    return np.asarray(jax.jit(lambda video: model.encode(video / 127.5 - 1).ids)(jnp.asarray(video_BTHWC, jnp.float32)))


def test_streamed_tokens_are_those_of_the_whole_video(any_models, video_BTHWC, ids_BTHWQ):
    encoder, found, at = StreamEncoder(any_models.tokenizer, 2, (16, 16)), [], 0
    for count in (1, 1, 3, 0, 2, 7, 100):
        found.append(encoder.feed(video_BTHWC[:, at : at + count]))
        at += count
    assert [part.shape[1] for part in found] == [1, 0, 2, 0, 1, 3, LATENT_FRAMES - 7]
    found = np.concatenate(found, axis=1)
    assert found.shape == ids_BTHWQ.shape and len(np.unique(found)) > 10
    assert (found == ids_BTHWQ).mean() > 0.99  # a latent on the border of two codes may round the other way


def test_streamed_pixels_are_those_of_the_whole_video(any_models, ids_BTHWQ):
    model = any_models.tokenizer.model
    whole = np.asarray(jax.jit(model.decode)(jnp.asarray(ids_BTHWQ)))
    whole = np.clip(np.rint((whole + 1) * 127.5), 0, 255)
    decoder = StreamDecoder(any_models.tokenizer, 2, 2, 2)
    parts = [decoder.feed(ids_BTHWQ[:, first:end]) for first, end in ((0, 0), (0, 1), (1, 6), (6, LATENT_FRAMES))]
    assert [part.shape[1] for part in parts] == [0, 1, 10, 28]
    found = np.concatenate(parts, axis=1)
    assert found.dtype == np.uint8 and found.shape == whole.shape and found.std() > 10
    difference = np.abs(found - whole)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001  # rounding to whole grey levels


def test_latents_are_decoded_as_their_codes_are(any_models, ids_BTHWQ):
    """And what lies between two codes isn't rounded to either."""
    codes_VC = np.asarray(any_models.tokenizer.model.latents_of_codes())

    def decoded(latents):
        return StreamDecoder(any_models.tokenizer, 2, 2, 2).feed(latents).astype(int)

    wanted, found = decoded(ids_BTHWQ), decoded(codes_VC[ids_BTHWQ])
    np.testing.assert_array_equal(found, wanted)
    between = decoded((codes_VC[ids_BTHWQ] + codes_VC[ids_BTHWQ[::-1]]) / 2)
    assert between.shape == wanted.shape and (between != wanted).mean() > 0.1
    np.testing.assert_array_equal(between[0], between[1])


def test_frames_that_cannot_be_are_refused(tiny_models):
    with pytest.raises(UserError, match="height 20 is no multiple of a token's 8 pixels"):
        StreamEncoder(tiny_models.tokenizer, 1, (20, 16))
    with pytest.raises(UserError, match="at most 8192 are allowed"):
        StreamEncoder(tiny_models.tokenizer, 1, (8000, 8000))


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_frames_and_latent_frames(patch):
    for frames in range(1, 20):
        latent_frames = latent_frames_for(frames, patch)
        assert frames_of(latent_frames - 1, patch) < frames <= frames_of(latent_frames, patch)
