"""The decoding loop: equal to the plain forward pass, and every sample equal to itself alone.

With tokens of one code, and of several sub-codes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from tokvid.config import Sampling, TransformerConfig
from tokvid.nn.visibility import NEVER
from tokvid.sampling import decode
from tokvid.sampling.decode import Request, generate, generate_means
from tokvid.sampling.methods import guide
from tokvid.transformer.head import Near
from tokvid.transformer.layout import clip_slots, lay_out, tokens_before
from tokvid.transformer.model import Transformer
from tokvid.types import Clip, token_batch

PROMPTS = ("up", "a small red circle moves slowly to the left", "")  # of very unequal length
GREEDY = Sampling(temperature=0)


def drawn_codes(models):
    """How many of a token's sub-codes are drawn; the others are silent."""
    return models.transformer.config.generated or models.transformer.config.subcodes


@pytest.fixture(scope="module")
def batch(any_models):
    """Three windows whose first latent frame is known, one from mid-video."""
    config, rng = any_models.transformer.config, np.random.default_rng(3)
    tokens = np.zeros((3, *config.latent, config.subcodes), np.int32)
    tokens[:, 0] = rng.integers(config.vocabulary, size=tokens[:, 0].shape)
    text = np.stack([any_models.text.encode(prompt, config.text_length) for prompt in PROMPTS])
    fps = np.array([8, 4, 8], np.float32)
    return token_batch(tokens, np.array([0, 0, 5], np.int32), fps, text, np.arange(4) < np.ones((3, 1)))


def make(
    models,
    batch,
    seeds=(1, 2, 3),
    guidance=(2.0, 3.0, 1.0),
    *,
    sampling=Sampling(),
    guided=True,
    frames=4,
    known=(True, False, False, False),
    fewest=None,
    negative=None,
    latents=None,
    forced=0,
):
    known = np.array(known)  # of latent frames, or of tokens, of all samples or each
    known_BTHW = np.broadcast_to(known[:, None, None] if known.ndim == 1 else known, batch.known.shape)
    fewest = known_BTHW[0].sum() if fewest is None else fewest
    request = Request(
        batch._replace(known=known_BTHW),
        np.full_like(batch.text, -1) if negative is None else negative,
        jax.vmap(jax.random.key)(np.array(seeds, np.uint32)),
        np.broadcast_to(np.array(guidance, np.float32)[:, None], (len(seeds), 4)),
        np.int32(fewest),
        np.int32(4 * frames - fewest),
        np.int32(forced),
    )
    models, how = (models.transformer.graph, models.transformer.params), {"sampling": sampling, "guided": guided}
    if latents is not None:
        return [np.asarray(each) for each in generate_means(*models, request, latents, **how)]
    return np.asarray(generate(*models, request, **how))


def only(batch, index):
    return jax.tree.map(lambda field: field[index : index + 1], batch)


@pytest.fixture(scope="module")
def together(any_models, batch):
    return make(any_models, batch)


@pytest.mark.parametrize("rows", [0, 1])
def test_scanned_layers_sample_the_same(any_models, batch, rows):
    """They are gone through one after another where rows are drawn."""
    model = any_models.transformer.model
    config = dataclasses.replace(model.config, scan_layers=True)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    scanned = any_models.transformer._replace(graph=graph)
    sampling = Sampling(temperature=0, rows=rows)
    wanted = make(any_models, batch, sampling=sampling)
    found = make(any_models._replace(transformer=scanned), batch, sampling=sampling)
    np.testing.assert_array_equal(found, wanted)


def test_later_latent_frames_have_a_temperature_of_their_own(any_models, batch):
    """All but a video's first one, which the third window doesn't have; the weights may say which."""

    def drawn(models=any_models, **temperatures):
        return make(models, batch, sampling=Sampling(**temperatures), known=(False,) * 4)

    greedy, hot = drawn(temperature=0), drawn(temperature=1)
    assert (greedy != hot).any(axis=(2, 3, 4)).all()  # in each latent frame
    calm, lively = drawn(temperature=1, later_temperature=0), drawn(temperature=1e-3, later_temperature=1)
    np.testing.assert_array_equal(calm[:2, 0], hot[:2, 0])
    assert (calm[:2, 1:] != hot[:2, 1:]).any()
    np.testing.assert_array_equal(calm[2], greedy[2])
    np.testing.assert_array_equal(lively[2], hot[2])
    config = dataclasses.replace(any_models.transformer.config, later_temperature=0.0)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    own = any_models._replace(transformer=any_models.transformer._replace(graph=graph))
    np.testing.assert_array_equal(drawn(own, temperature=1), calm)
    np.testing.assert_array_equal(drawn(own, temperature=1, later_temperature=1), hot)


def test_guidance_is_limited_in_a_videos_first_latent_frame(any_models, batch):
    """Which the third window doesn't have."""

    def drawn(**limit):
        return make(
            any_models, batch, sampling=Sampling(temperature=1, **limit), guidance=(9.0,) * 3, known=(False,) * 4
        )

    free, limited = drawn(), drawn(guidance_limit=1e-3)
    assert (free[:2, 0] != limited[:2, 0]).any()
    np.testing.assert_array_equal(free[2], limited[2])


def plain(model, guidance_B, count):
    """Batch, ids (B, count, Q) → guided logits (B, count, Q, V) of what is generated, without any cache.

    Those of each sub-code are given the ones before it in `ids`.
    """
    empty = np.full((len(guidance_B), model.config.text_length), -1, np.int32)

    @jax.jit
    def logits(batch, ids_BLQ):
        def seen(batch):
            sequence = lay_out(model.config, batch)
            hidden = model(sequence)[:, -count:]
            previous = tokens_before(sequence.target[:, clip_slots(batch)], sequence.previous[:, -count:])
            near = Near(previous, sequence.slower[:, -count:])
            _, every_QBLV = model.head.draw(hidden, lambda q, logits_BLV: (ids_BLQ[..., q], logits_BLV), near)
            return jnp.concatenate(every_QBLV, axis=1)  # guidance is of (B, L, V)

        every_BLV = seen(batch)
        scale_BL = jnp.broadcast_to(jnp.asarray(guidance_B)[:, None], every_BLV.shape[:2])
        guided = guide(every_BLV, seen(batch._replace(text=empty)), scale_BL)
        return guided.reshape(len(guidance_B), -1, count, guided.shape[-1]).swapaxes(1, 2)

    return lambda batch, ids_BLQ: np.asarray(logits(batch, ids_BLQ))


@pytest.mark.parametrize(
    "rows, known, slower", [(0, 0b1000, False), (1, 0b1000, False), (1, 0b0000, True), (0, 0b1010, True)]
)
def test_greedy_tokens_are_those_of_the_plain_forward_pass(any_models, batch, rows, known, slower):
    """Token by token or a row at once, whatever is known, without any cache, with guidance."""
    model, guidance_B = any_models.transformer.model, np.array([2.0, 3.0, 1.0], np.float32)
    known, subcodes = tuple(bool(known >> bit & 1) for bit in (3, 2, 1, 0)), model.config.subcodes
    drawn, silent = drawn_codes(any_models), model.config.silent
    step, total = 2 * rows or 1, 4 * known.count(False)
    rng = np.random.default_rng(4)
    given = rng.integers(30, size=batch.tokens.shape)
    tokens = np.where(np.array(known)[:, None, None, None], given, 0).astype(np.int32)
    batch = batch._replace(
        tokens=tokens,
        known=np.broadcast_to(np.array(known)[:, None, None], (3, 4, 2, 2)),
        stride=np.full(3, step),
        start=batch.start * any(known),
    )
    if slower:
        ids = rng.integers(30, size=batch.tokens.shape).astype(np.int32)
        batch = batch._replace(conditions=(Clip(ids, batch.start // 2, batch.fps / 2, np.zeros(3, np.int32)),))
    logits = plain(model, guidance_B, total)
    made_BLQ, asked, slot = np.full((3, total, subcodes), silent, np.int32), ~np.array(known), 0
    while slot < total:
        now = tokens.copy()
        now[:, asked] = made_BLQ.reshape(3, -1, 2, 2, subcodes)
        width = 1 if slot < 2 and not any(known) else step  # a video's first row is drawn token by token
        here = slice(slot, slot + width)
        for q in range(drawn):
            made_BLQ[:, here, q] = logits(batch._replace(tokens=now), made_BLQ)[:, here, q].argmax(-1)
        slot += width
    found = make(any_models, batch, sampling=dataclasses.replace(GREEDY, rows=rows), known=known)
    np.testing.assert_array_equal(found[:, asked].reshape(made_BLQ.shape), made_BLQ)
    np.testing.assert_array_equal(found[:, ~asked], tokens[:, ~asked])
    assert len(np.unique(made_BLQ)) > 3  # not trivially equal


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_of_a_video_from_nothing_are_all_drawn(rows):
    """The first rows token by token, the others at once; the last ones are no rest that is left out."""
    config = TransformerConfig(
        vocabulary=30, grid=(4, 2), text_vocabulary=320, text_length=4, latent_frames=3, width=16, layers=1, heads=2,
        kv_heads=2, mlp=32, dtype="float32",
    )  # fmt: skip
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    graph, leaves = nnx.split(model)
    rng = np.random.default_rng(7)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), leaves)
    nothing, text, stride = np.zeros((1, 3, 4, 2, 1), np.int32), np.full((1, 4), -1, np.int32), 2 * rows
    window = token_batch(nothing, np.zeros(1, np.int32), np.ones(1, np.float32), text, np.zeros((1, 3), bool))
    request = Request(window, text, jax.vmap(jax.random.key)(np.zeros(1, np.uint32)), np.ones((1, 3)), 0, 24)
    made = np.asarray(generate(graph, params, request, sampling=dataclasses.replace(GREEDY, rows=rows), guided=False))
    logits = plain(nnx.merge(graph, params), np.ones(1, np.float32), 24)
    now = window._replace(tokens=made, stride=np.full(1, stride))
    np.testing.assert_array_equal(made.reshape(1, 24, 1), logits(now, made.reshape(1, 24, 1)).argmax(-1))


@pytest.mark.parametrize("rows, guided", [(0, False), (0, True), (1, True)])
def test_mean_latents_are_those_of_the_plain_forward_pass(any_models, batch, rows, guided):
    """Of the distribution of each sub-code, given the codes that were drawn before it."""
    model, guidance = any_models.transformer.model, (2.0, 3.0, 1.0) if guided else (1.0,) * 3
    config, sampling = model.config, dataclasses.replace(GREEDY, rows=rows)
    latents_VC = np.random.default_rng(5).normal(size=(config.vocabulary, 3)).astype(np.float32)
    how = {"guidance": guidance, "guided": guided, "sampling": sampling}
    tokens, means = make(any_models, batch, latents=latents_VC, **how)
    np.testing.assert_array_equal(tokens, make(any_models, batch, **how))
    here, ids_BLQ = batch._replace(tokens=tokens, stride=np.full(3, 2 * rows or 1)), tokens[:, 1:].reshape(3, 12, -1)
    logits = plain(model, np.array(guidance, np.float32), 12)(here, ids_BLQ)
    drawn = drawn_codes(any_models)
    wanted = np.concatenate([jax.nn.softmax(logits) @ latents_VC, latents_VC[ids_BLQ[..., drawn:]]], axis=2)
    np.testing.assert_allclose(means[:, 1:].reshape(wanted.shape), wanted, atol=1e-4)
    np.testing.assert_array_equal(means[:, 0], latents_VC[tokens[:, 0]])  # known


def test_forced_tokens_have_the_latents_of_their_codes(any_models, batch):
    config = any_models.transformer.config
    own = np.random.default_rng(6).integers(config.vocabulary, size=batch.tokens.shape, dtype=np.int32)
    codes_VC = np.eye(config.vocabulary, dtype=np.float32)
    tokens, shares = make(any_models, batch._replace(tokens=own), latents=codes_VC, forced=4, sampling=GREEDY)
    np.testing.assert_array_equal(tokens[:, :2], own[:, :2])  # the first latent frame is known, the second forced
    np.testing.assert_array_equal(shares[:, :2], codes_VC[own[:, :2]])
    assert (shares[:, 2:, ..., : drawn_codes(any_models), :].max(-1) < 0.999).any()


def test_mean_latents_of_rounds_are_of_the_round_that_kept_the_token(any_models, batch):
    """With a latent for each code, the means are the probabilities, and the likeliest code was kept."""
    sampling, config = dataclasses.replace(GREEDY, rows=2, rounds=3), any_models.transformer.config
    tokens, shares = make(any_models, batch, latents=np.eye(config.vocabulary, dtype=np.float32), sampling=sampling)
    np.testing.assert_array_equal(tokens, make(any_models, batch, sampling=sampling))
    np.testing.assert_array_equal(shares.argmax(-1), tokens)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    assert shares[:, 1:, ..., : drawn_codes(any_models), :].max() < 0.999  # not trivially equal


def test_rounds_are_those_of_the_plain_forward_pass(any_models, batch):
    """MaskGIT by hand, without cache: 4 tokens in 3 rounds leave 4 cos(π/6), 4 cos(π/3), 0 of them: 3, 2, none.

    A token is as likely as its sub-codes together.
    """
    model, guidance_B = any_models.transformer.model, np.array([2.0, 3.0, 1.0], np.float32)
    subcodes, logits = model.config.subcodes, plain(model, guidance_B, 16)
    batch = batch._replace(stride=np.full(3, 4))
    tokens, drawn = batch.tokens.copy(), batch.drawn.copy()
    drawn[:, 0] = True
    for frame in (1, 2, 3):
        for stand in (1, 2, 4):
            ids, now = np.full((3, 16, subcodes), model.config.silent), batch._replace(tokens=tokens, drawn=drawn)
            likelihood = np.zeros((3, 16))
            for q in range(drawn_codes(any_models)):
                every = np.asarray(jax.nn.log_softmax(logits(now, ids)[:, :, q]))
                ids[..., q], likelihood = every.argmax(-1), likelihood + every.max(-1)
            for sample in range(3):
                stands_L = drawn[sample, frame].reshape(4)  # views
                tokens_LQ = tokens[sample, frame].reshape(4, subcodes)
                here = slice(4 * frame, 4 * frame + 4)
                tokens_LQ[~stands_L] = ids[sample, here][~stands_L]
                likelihood_L = np.where(stands_L, np.inf, likelihood[sample, here])
                stands_L[np.argsort(-likelihood_L, kind="stable")[:stand]] = True
    sampling = dataclasses.replace(GREEDY, rows=2, rounds=3, choice_temperature=0)
    found = make(any_models, batch, sampling=sampling)
    np.testing.assert_array_equal(found, tokens)
    assert (make(any_models, batch, sampling=dataclasses.replace(sampling, rounds=1)) != found).any()


def test_sub_codes_are_drawn_as_often_as_the_model_says(any_models, batch):
    """The first token of many seeds: its first sub-code, and the next one given the first."""
    many = 1500
    model, config = any_models.transformer.model, any_models.transformer.config
    one = only(batch, 0)
    copies = jax.tree.map(lambda field: np.repeat(field, many, axis=0), one)
    found = make(
        any_models, copies, range(many), (1.0,) * many, sampling=Sampling(temperature=1), guided=False, frames=2
    )[:, 1, 0, 0]
    logits = plain(model, np.ones(1, np.float32), 12)
    for q in range(min(2, config.subcodes)):
        if q:  # given the most frequent first sub-code
            found = found[found[:, 0] == np.bincount(found[:, 0]).argmax()]
        forced_BLQ = np.broadcast_to(found[:1, None], (1, 12, config.subcodes))
        wanted_V = np.asarray(jax.nn.softmax(logits(one, forced_BLQ)[0, 0, q]))
        found_V = np.bincount(found[:, q], minlength=config.vocabulary) / len(found)
        assert len(found) > 100
        np.testing.assert_allclose(found_V, wanted_V, atol=4 * np.sqrt(wanted_V.max() / len(found)))


@pytest.mark.parametrize("rows", [0, 2])
def test_bfloat16_samples_nearly_the_same(any_models, batch, rows):
    """XLA's CPU backend multiplies 16-bit operands to a float32 result only in some places; generating has many."""
    config = dataclasses.replace(any_models.transformer.config, dtype="bfloat16")
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    narrow = any_models._replace(transformer=any_models.transformer._replace(graph=graph))
    sampling = Sampling(rows=rows, rounds=2)
    found = make(narrow, batch, sampling=sampling)[:, 1]
    wanted = make(any_models, batch, sampling=sampling)[:, 1]
    assert (found == wanted).mean() > 0.6  # one token that differs changes all after it


def loops(jaxpr, inside=False):
    """All equations inside of while loops."""
    for equation in jaxpr.eqns:
        if inside:
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from loops(inner, inside or equation.primitive.name == "while")


@pytest.mark.parametrize("rows, known", [(0, 0), (0, 1), (2, 0)])
def test_accelerators_round_once_a_window_and_prefill_what_is_known(any_models, batch, monkeypatch, rows, known):
    """In a loop, XLA for GPUs would round matrices at every step; and where no token is known, none is prefilled. The
    tokens are the same, also beside slots for cuDNN."""
    params = any_models.transformer.params
    config = dataclasses.replace(any_models.transformer.config, dtype="bfloat16", scan_layers=True)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    matrices = {leaf.size // config.layers for leaf in jax.tree.leaves(params["blocks"]) if leaf.ndim > 2}
    batch = batch._replace(known=batch.known & (known > 0))
    request = Request(
        batch,
        np.full_like(batch.text, -1),
        jax.vmap(jax.random.key)(np.arange(3, dtype=np.uint32)),
        np.full((3, 4), 2, np.float32),
        np.int32(4 * known),
        np.int32(8),
    )
    monkeypatch.setattr(decode, "AHEAD", {"cpu": 4, "gpu": 4})

    def rounded_and_made():
        def make(params, request):
            return decode._filled(graph, params, request, None, Sampling(rows=rows, rounds=2), True)[0]

        rounded = [
            equation
            for equation in loops(jax.make_jaxpr(make)(params, request).jaxpr)
            if equation.primitive.name == "convert_element_type" and equation.params["new_dtype"] == jnp.bfloat16
            if equation.invars[0].aval.size in matrices
        ]
        return rounded, np.asarray(jax.jit(make)(params, request))

    every_step, wanted = rounded_and_made()
    monkeypatch.setattr(decode, "platform", lambda: "gpu")
    none, made = rounded_and_made()
    assert every_step and not none
    np.testing.assert_array_equal(made, wanted)

    @jax.jit
    def prefilled(params):
        """The number of slots before the window, and the block numbers of all in the cache."""
        sequence, model = lay_out(config, batch), nnx.merge(graph, params)
        blocks_BS = decode.prefill(model, sequence, request.known, stacked=True).block
        return sequence.token.shape[1] - math.prod(config.latent), blocks_BS

    before, blocks_BS = prefilled(params)
    assert blocks_BS.shape[1] == -(-(before + math.prod(config.latent)) // 8) * 8
    assert (blocks_BS[:, before + -before % 8 :] != NEVER).any() == (known > 0)


@pytest.mark.slow
def test_rounds_with_chance(any_models, batch):
    sampling = Sampling(rows=2, rounds=4)
    found = make(any_models, batch, sampling=sampling)
    np.testing.assert_array_equal(make(any_models, batch, sampling=sampling), found)
    other = make(any_models, batch, seeds=(1, 2, 4), sampling=sampling)
    np.testing.assert_array_equal(other[:2], found[:2])
    assert (other[2] != found[2]).any()
    alone = make(any_models, only(batch, 1), [2], [3.0], sampling=sampling)
    np.testing.assert_array_equal(alone[0], found[1])


def test_a_negative_text_takes_the_place_of_none(any_models, batch, together):
    """Away from a text instead of away from no text; away from the text itself is nowhere."""
    negative = batch.text[[1, 0, 2]]
    found = make(any_models, batch, negative=negative)
    assert (found[:2] != together[:2]).any()
    np.testing.assert_array_equal(found[2], together[2])
    plain = make(any_models, batch, guided=False)
    np.testing.assert_array_equal(make(any_models, batch, negative=batch.text), plain)


@pytest.mark.parametrize("index", range(3))
def test_a_sample_is_the_same_whatever_else_is_in_the_batch(any_models, batch, together, index):
    """With guidance and prompts of unequal length."""
    alone = make(any_models, only(batch, index), [index + 1], [(2.0, 3.0, 1.0)[index]])
    np.testing.assert_array_equal(alone[0], together[index])


def test_the_same_seed_gives_the_same_tokens_and_another_others(any_models, batch, together):
    np.testing.assert_array_equal(make(any_models, batch), together)
    other = make(any_models, batch, seeds=(1, 2, 4))
    np.testing.assert_array_equal(other[:2], together[:2])
    assert (other[2] != together[2]).any()


def test_what_is_known_stays_and_fewer_frames_begin_alike(any_models, batch, together):
    np.testing.assert_array_equal(together[:, 0], batch.tokens[:, 0])
    fewer = make(any_models, batch, frames=3)
    np.testing.assert_array_equal(fewer[:, :3], together[:, :3])
    assert not fewer[:, 3].any()


@pytest.mark.parametrize("rows", [0, 1])
def test_any_tokens_may_be_given(any_models, batch, rows):
    """A hole in every latent frame is filled in as the plain forward pass says; around it nothing changes."""
    model = any_models.transformer.model
    known_THW = np.ones((4, 2, 2), bool)
    known_THW[:, 1] = False  # the lower rows
    tokens = np.random.default_rng(6).integers(30, size=batch.tokens.shape).astype(np.int32)
    batch = batch._replace(tokens=tokens)
    sampling = dataclasses.replace(GREEDY, rows=rows)
    filled = make(any_models, batch, guidance=(1, 1, 1), guided=False, known=known_THW, sampling=sampling)
    np.testing.assert_array_equal(filled[:, known_THW], tokens[:, known_THW])
    logits = plain(model, np.ones(3, np.float32), 8)
    step = 2 * rows or 1
    now = batch._replace(tokens=filled, known=np.broadcast_to(known_THW, batch.known.shape), stride=np.full(3, step))
    hole_BLQ = filled[:, ~known_THW]
    drawn = drawn_codes(any_models)
    for q in range(drawn):
        np.testing.assert_array_equal(hole_BLQ[..., q], logits(now, hole_BLQ)[:, :, q].argmax(-1))
    assert (hole_BLQ[..., drawn:] == model.config.silent).all()


@pytest.mark.parametrize("rows, guided", [(0, True), (0, False), (1, False)])
def test_samples_may_know_different_numbers_of_tokens(any_models, batch, rows, guided):
    """Together, with the fewest as `known`, each is as it is alone, but for chance, whose keys go by slot."""
    rng, sampling = np.random.default_rng(8), dataclasses.replace(GREEDY, rows=rows)
    tokens = rng.integers(30, size=batch.tokens.shape).astype(np.int32)
    known_BTHW = np.ones((3, 4, 2, 2), bool)
    known_BTHW[0, 1:], known_BTHW[1, 2:], known_BTHW[2, 3:] = False, False, False
    if not rows:
        known_BTHW[2, :, 1, 0] = False
    batch, fewest = batch._replace(tokens=tokens), int(known_BTHW.sum(axis=(1, 2, 3)).min())
    how = {"sampling": sampling, "guided": guided}
    together = make(any_models, batch, known=known_BTHW, fewest=fewest, **how)
    for i in range(3):
        alone = make(any_models, only(batch, i), [i + 1], [(2.0, 3.0, 1.0)[i]], known=known_BTHW[i : i + 1], **how)
        np.testing.assert_array_equal(together[i], alone[0])
        np.testing.assert_array_equal(together[i][known_BTHW[i]], tokens[i][known_BTHW[i]])


@pytest.fixture
def guessing(monkeypatch):
    """`guessing(width)` runs as many slots at once, whatever the device; 1: it guesses nothing."""

    def guess(width):
        monkeypatch.setattr(decode, "AHEAD", {})
        monkeypatch.setattr(decode, "AHEAD_ELSEWHERE", width)
        for each in (generate, generate_means):
            each.clear_cache()

    yield guess
    generate.clear_cache()
    generate_means.clear_cache()


@pytest.mark.parametrize("cases, samples", [(("none", "hole"), 1), (("frames", "most"), 3)])
def test_tokens_are_the_same_however_many_are_guessed(any_models, batch, guessing, cases, samples):
    """At temperature 1, guided, with the slower video, from nothing, around a hole, and where a step would pass the
    window's end."""
    ids = np.random.default_rng(9).integers(30, size=batch.tokens.shape).astype(np.int32)
    slower = Clip(ids[::-1], batch.start // 2, batch.fps / 2, np.zeros(3, np.int32))
    windows = jax.tree.map(lambda field: field[:samples], batch._replace(tokens=ids, conditions=(slower,)))

    def made(case):
        known_THW = np.zeros((4, 2, 2), bool)
        known_THW[: {"none": 0, "frames": 2, "hole": 4, "most": 3}[case]] = True
        known_THW[1:, 0] &= case != "hole"
        known_THW[3, 0] |= case == "most"
        how = {"sampling": Sampling(temperature=1, later_temperature=0.5), "known": known_THW}
        return make(any_models, windows, range(samples), (2.0,) * samples, **how)

    every = []
    for width in (1, 5 * samples, 16 * samples):
        guessing(width)
        every.append([made(case) for case in cases])
    for guessed in every[1:]:
        np.testing.assert_array_equal(guessed, every[0])


def test_guessing_takes_fewer_steps_and_keeps_mean_latents(any_models, batch, guessing, monkeypatch):
    steps, run = [], decode._Drawer._run

    def counted(self, cache, place, input_BLQ):
        jax.debug.callback(lambda: steps.append(input_BLQ.shape[1]))
        return run(self, cache, place, input_BLQ)

    monkeypatch.setattr(decode._Drawer, "_run", counted)
    latents_VC = np.random.default_rng(5).normal(size=(any_models.transformer.config.vocabulary, 3)).astype(np.float32)
    taken, every = [], []
    for width in (1, 4):
        guessing(width)
        steps.clear()
        every.append(make(any_models, only(batch, 0), [1], [1.0], sampling=GREEDY, latents=latents_VC))
        jax.effects_barrier()
        assert set(steps) == {width}
        taken.append(len(steps))
    assert taken[0] == 12 > taken[1], taken
    np.testing.assert_array_equal(every[0][0], every[1][0])
    np.testing.assert_allclose(every[0][1], every[1][1], atol=1e-5)


def test_one_program_serves_any_number_of_known_tokens(any_models, batch):
    """A new box of inpainting, or another context, compiles nothing."""
    make(any_models, batch)
    before = generate._cache_size()
    make(any_models, batch, known=(True, True, False, False))
    make(any_models, batch, known=(False, False, False, False), frames=2)
    assert generate._cache_size() == before


def test_guidance_1_is_no_guidance(any_models, batch, together):
    plain = make(any_models, batch, guided=False)
    np.testing.assert_array_equal(make(any_models, batch, guidance=(1, 1, 1)), plain)
    np.testing.assert_array_equal(plain[2], together[2])  # a sample without it beside others with it
    assert (plain[:2] != together[:2]).any()


def test_the_text_and_the_rate_matter(any_models, batch, together):
    for change in ({"text": batch.text[[1, 0, 2]]}, {"fps": batch.fps[[1, 0, 2]]}, {"start": batch.start[[2, 2, 2]]}):
        assert (make(any_models, batch._replace(**change))[0] != together[0]).any(), change
