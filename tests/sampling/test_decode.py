"""The decoding loop: equal to the plain forward pass, and every sample equal to itself alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.sampling.decode import generate
from tokvid.sampling.methods import Sampling, guide
from tokvid.transformer.model import sequence_of
from tokvid.types import TokenBatch

PROMPTS = ("up", "a small red circle moves slowly to the left", "")  # of very unequal length
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def batch(tiny_models):
    """Three windows whose first latent frame is known, one from mid-video."""
    config, rng = tiny_models.transformer.config, np.random.default_rng(3)
    tokens = np.zeros((3, *config.latent), np.int32)
    tokens[:, 0] = rng.integers(config.vocabulary, size=tokens[:, 0].shape)
    text = np.stack([tiny_models.text.encode(prompt, config.text_length) for prompt in PROMPTS])
    fps = np.array([8, 4, 8], np.float32)
    return TokenBatch(tokens, np.array([0, 0, 5], np.int32), fps, text, np.ones(3, np.int32))


def make(
    models, batch, seeds=(1, 2, 3), guidance=(2.0, 3.0, 1.0), *, method=Sampling(), guided=True, frames=4, width=1
):
    keys_B = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    return np.asarray(
        generate(
            models.transformer.graph,
            models.transformer.params,
            batch,
            keys_B,
            np.array(guidance, np.float32),
            np.int32(frames),
            known=1,
            method=method,
            guided=guided,
            width=width,
        )
    )


def only(batch, index):
    return TokenBatch(*(field[index : index + 1] for field in batch))


@pytest.fixture(scope="module")
def together(tiny_models, batch):
    return make(tiny_models, batch)


@pytest.mark.parametrize("width", [1, 2])
def test_greedy_tokens_are_those_of_the_plain_forward_pass(tiny_models, batch, width):
    """Token by token (or a row at once), without any cache, with guidance."""
    model, guidance_B = tiny_models.transformer.model, np.array([2.0, 3.0, 1.0], np.float32)

    @jax.jit
    def logits(batch):
        empty = batch._replace(text=batch.text * 0 - 1)
        pair = [model(sequence_of(model.config, each, width)) for each in (batch, empty)]
        return guide(*pair, guidance_B)[:, -tokens_BL.shape[1] :]

    tokens_BL = batch.tokens.reshape(3, -1).copy()
    for slot in range(4, 16, width):
        now = batch._replace(tokens=jnp.asarray(tokens_BL.reshape(batch.tokens.shape)))
        tokens_BL[:, slot : slot + width] = np.asarray(logits(now))[:, slot : slot + width].argmax(-1)
    found = make(tiny_models, batch, method=GREEDY, width=width)
    np.testing.assert_array_equal(found, tokens_BL.reshape(found.shape))
    assert len(np.unique(found[:, 1:])) > 3  # not trivially equal


@pytest.mark.parametrize("index", range(3))
def test_a_sample_is_the_same_whatever_else_is_in_the_batch(tiny_models, batch, together, index):
    """With guidance and prompts of unequal length."""
    alone = make(tiny_models, only(batch, index), [index + 1], [(2.0, 3.0, 1.0)[index]])
    np.testing.assert_array_equal(alone[0], together[index])


def test_the_same_seed_gives_the_same_tokens_and_another_others(tiny_models, batch, together):
    np.testing.assert_array_equal(make(tiny_models, batch), together)
    other = make(tiny_models, batch, seeds=(1, 2, 4))
    np.testing.assert_array_equal(other[:2], together[:2])
    assert (other[2] != together[2]).any()


def test_what_is_known_stays_and_fewer_frames_begin_alike(tiny_models, batch, together):
    np.testing.assert_array_equal(together[:, 0], batch.tokens[:, 0])
    fewer = make(tiny_models, batch, frames=3)
    np.testing.assert_array_equal(fewer[:, :3], together[:, :3])
    assert not fewer[:, 3].any()


def test_guidance_1_is_no_guidance(tiny_models, batch, together):
    plain = make(tiny_models, batch, guided=False)
    np.testing.assert_array_equal(make(tiny_models, batch, guidance=(1, 1, 1)), plain)
    np.testing.assert_array_equal(plain[2], together[2])  # a sample without it beside others with it
    assert (plain[:2] != together[:2]).any()


def test_the_text_and_the_rate_matter(tiny_models, batch, together):
    for change in ({"text": batch.text[[1, 0, 2]]}, {"fps": batch.fps[[1, 0, 2]]}, {"start": batch.start[[2, 2, 2]]}):
        assert (make(tiny_models, batch._replace(**change))[0] != together[0]).any(), change
