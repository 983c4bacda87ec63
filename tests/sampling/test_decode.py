"""The decoding loop: equal to the plain forward pass, and every sample equal to itself alone."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tokvid.sampling.decode import generate
from tokvid.sampling.methods import Sampling, guide
from tokvid.transformer.model import Transformer, sequence_of
from tokvid.types import TokenBatch, token_batch

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
    return token_batch(tokens, np.array([0, 0, 5], np.int32), fps, text, np.arange(4) < np.ones((3, 1)))


def make(
    models,
    batch,
    seeds=(1, 2, 3),
    guidance=(2.0, 3.0, 1.0),
    *,
    method=Sampling(),
    guided=True,
    frames=4,
    known=(True, False, False, False),
    negative=None,
):
    keys_B = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    return np.asarray(
        generate(
            models.transformer.graph,
            models.transformer.params,
            batch,
            np.full_like(batch.text, -1) if negative is None else negative,
            keys_B,
            np.broadcast_to(np.array(guidance, np.float32)[:, None], (len(seeds), 4)),
            np.int32(frames - sum(known)),
            known=known,
            method=method,
            guided=guided,
        )
    )


def only(batch, index):
    return TokenBatch(*(field[index : index + 1] for field in batch))


@pytest.fixture(scope="module")
def together(tiny_models, batch):
    return make(tiny_models, batch)


@pytest.mark.parametrize("rows", [0, 1])
def test_scanned_layers_sample_the_same(tiny_models, batch, rows):
    """They are gone through one after another where rows are drawn."""
    model = tiny_models.transformer.model
    config = dataclasses.replace(model.config, scan_layers=True)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    scanned = tiny_models.transformer._replace(graph=graph)
    method = Sampling(temperature=0, rows=rows)
    wanted = make(tiny_models, batch, method=method)
    found = make(tiny_models._replace(transformer=scanned), batch, method=method)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("rows, known", [(0, 0b1000), (1, 0b1000), (1, 0b0000), (0, 0b1010)])
def test_greedy_tokens_are_those_of_the_plain_forward_pass(tiny_models, batch, rows, known):
    """Token by token or a row at once, whatever is known, without any cache, with guidance."""
    model, guidance_B = tiny_models.transformer.model, np.array([2.0, 3.0, 1.0], np.float32)
    known = tuple(bool(known >> bit & 1) for bit in (3, 2, 1, 0))
    step, total = 2 * rows or 1, 4 * known.count(False)
    rng = np.random.default_rng(4)
    tokens = np.where(np.array(known)[:, None, None], rng.integers(30, size=batch.tokens.shape), 0).astype(np.int32)
    batch = batch._replace(
        tokens=tokens, known=np.broadcast_to(known, (3, 4)), step=np.full(3, step), start=batch.start * any(known)
    )

    @jax.jit
    def logits(batch):
        empty = batch._replace(text=batch.text * 0 - 1)
        pair = [model(sequence_of(model.config, each)) for each in (batch, empty)]
        return guide(*pair, guidance_B)[:, -total:]

    made_BL, asked, slot = np.zeros((3, total), np.int32), ~np.array(known), 0
    while slot < total:
        now = tokens.copy()
        now[:, asked] = made_BL.reshape(3, -1, 2, 2)
        width = 1 if slot < 2 and not any(known) else step  # a video's first row is drawn token by token
        chosen_BL = np.asarray(logits(batch._replace(tokens=now))).argmax(-1)
        made_BL[:, slot : slot + width] = chosen_BL[:, slot : slot + width]
        slot += width
    found = make(tiny_models, batch, method=dataclasses.replace(GREEDY, rows=rows), known=known)
    np.testing.assert_array_equal(found[:, asked].reshape(3, -1), made_BL)
    np.testing.assert_array_equal(found[:, ~asked], tokens[:, ~asked])
    assert len(np.unique(made_BL)) > 3  # not trivially equal


def test_rounds_are_those_of_the_plain_forward_pass(tiny_models, batch):
    """MaskGIT by hand, without cache: 4 tokens in 3 rounds leave 4 cos(π/6), 4 cos(π/3), 0 of them: 3, 2, none."""
    model, guidance_B = tiny_models.transformer.model, np.array([2.0, 3.0, 1.0], np.float32)
    batch = batch._replace(step=np.full(3, 4))

    @jax.jit
    def logits(batch):
        pair = [model(sequence_of(model.config, each)) for each in (batch, batch._replace(text=batch.text * 0 - 1))]
        return guide(*pair, guidance_B)[:, -16:].reshape(3, 4, 4, -1)

    tokens, drawn = batch.tokens.copy(), batch.drawn.copy()
    drawn[:, 0] = True
    for frame in (1, 2, 3):
        for stand in (1, 2, 4):
            now = np.asarray(jax.nn.log_softmax(logits(batch._replace(tokens=tokens, drawn=drawn))[:, frame]))
            for sample in range(3):
                stands_L, tokens_L = drawn[sample, frame].reshape(4), tokens[sample, frame].reshape(4)  # views
                tokens_L[~stands_L] = now[sample].argmax(-1)[~stands_L]
                likelihood_L = np.where(stands_L, np.inf, now[sample][np.arange(4), tokens_L])
                stands_L[np.argsort(-likelihood_L, kind="stable")[:stand]] = True
    method = dataclasses.replace(GREEDY, rows=2, rounds=3, choice_temperature=0)
    found = make(tiny_models, batch, method=method)
    np.testing.assert_array_equal(found, tokens)
    assert (make(tiny_models, batch, method=dataclasses.replace(method, rounds=1)) != found).any()


def test_rounds_with_chance(tiny_models, batch):
    method = Sampling(rows=2, rounds=4)
    found = make(tiny_models, batch, method=method)
    np.testing.assert_array_equal(make(tiny_models, batch, method=method), found)
    other = make(tiny_models, batch, seeds=(1, 2, 4), method=method)
    np.testing.assert_array_equal(other[:2], found[:2])
    assert (other[2] != found[2]).any()
    alone = make(tiny_models, only(batch, 1), [2], [3.0], method=method)
    np.testing.assert_array_equal(alone[0], found[1])


def test_a_negative_text_takes_the_place_of_none(tiny_models, batch, together):
    """Away from a text instead of away from no text; away from the text itself is nowhere."""
    negative = batch.text[[1, 0, 2]]
    found = make(tiny_models, batch, negative=negative)
    assert (found[:2] != together[:2]).any()
    np.testing.assert_array_equal(found[2], together[2])
    plain = make(tiny_models, batch, guided=False)
    np.testing.assert_array_equal(make(tiny_models, batch, negative=batch.text), plain)


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
