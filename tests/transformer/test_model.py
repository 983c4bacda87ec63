"""The trunk: who sees whom (by gradient and by perturbation), padding, caches, and the switches that change nothing."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tokvid.config import TransformerConfig
from tokvid.errors import UserError
from tokvid.nn.blocks import REMAT
from tokvid.nn.visibility import NEVER
from tokvid.transformer.layout import lay_out
from tokvid.transformer.model import Transformer
from tokvid.types import Clip, TokenBatch, token_batch

CONFIG = TransformerConfig(
    vocabulary=50, text_vocabulary=20, text_length=5, latent_frames=3, grid=(2, 2), width=32, layers=2, heads=4,
    kv_heads=2, mlp=48, dtype="float32",
)  # fmt: skip
PROMPTS = [[3, 1], [4, 1, 5, 9, 2], [], [6]]  # as long as the text, shorter, and none
FIRST = CONFIG.text_length + 1  # the first video slot
FRAME = 4  # tokens of a latent frame
SLOTS = FIRST + 3 * FRAME


def batch(prompts=PROMPTS, length=CONFIG.text_length, known=0, step=1, seed=0):
    rng = np.random.default_rng(seed)
    count = len(prompts)
    text = np.full((count, length), -1, np.int32)
    for i, prompt in enumerate(prompts):
        text[i, : len(prompt)] = prompt
    tokens = rng.integers(0, CONFIG.vocabulary, (4, 3, 2, 2), np.int32)[:count]
    fps, start = np.float32([2, 4, 8, 4])[:count], np.int32([0, 0, 3, 1])[:count]
    given = np.broadcast_to(np.arange(3) < known, (count, 3))
    return token_batch(tokens[..., None], start, fps, text, given)._replace(stride=np.full(count, step, np.int32))


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(Transformer, CONFIG)


def switched(model, **changes):
    """The same parameters under a config that should compute the same."""
    config = dataclasses.replace(model.config, **changes)
    graph = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, nnx.state(model))


def runner(model):
    """Sequence → hidden states and logits, compiled once a shape."""

    @jax.jit
    def run(sequence):
        hidden, _ = model.run(sequence, None, 0)
        return hidden, model.head.logits(model.norm(hidden))

    return lambda sequence: jax.tree.map(np.asarray, run(sequence))


@pytest.fixture(scope="module")
def run(model):
    return runner(model)


@functools.cache
def layout():
    return jax.jit(functools.partial(lay_out, CONFIG))


def sequence(step=1, **options):
    return layout()(batch(step=step, **options))


# Who sees whom


@pytest.fixture(scope="module")
def reach(model):
    """(L, L) of the first sample: does slot i's output depend on slot j's input? By the gradient of j's position."""
    direction_D = np.random.default_rng(1).normal(size=CONFIG.width).astype(np.float32)

    @jax.jit
    def jacobian(sequence):
        def outputs(position):
            return model.run(sequence._replace(position=position), None, 0)[0] @ direction_D

        out_L = jax.jacrev(lambda position_LA: outputs(position_LA[None])[0])
        return jnp.abs(out_L(sequence.position[0])).max(axis=-1) > 0

    return lambda sequence: np.array(jacobian(jax.tree.map(lambda field: field[:1], sequence)))


def drawn(*groups, slots=SLOTS):
    """Who sees whom, from (slots, what they see) by hand."""
    sees = np.zeros((slots, slots), bool)
    for slots, seen in groups:
        for slot in slots:
            sees[slot, seen] = True
    return sees


@pytest.mark.parametrize("step", [1, 2])
def test_a_slot_depends_on_what_its_layout_says(reach, step):
    """Two words and three of padding, the rate, one known latent frame, then 8 tokens to generate."""
    words, padding, rate, known = [0, 1], [2, 3, 4], [5], list(range(6, 10))
    seen = words + rate + known
    groups = [(words, words), (rate, words + rate), (known, seen)]
    for slot in range(10, SLOTS, step):
        together = list(range(slot, slot + step))
        seen = seen + together
        groups.append((together, seen))
    found = reach(sequence(step, known=1))
    found[padding] = False  # what padding sees doesn't matter: nobody sees it
    np.testing.assert_array_equal(found, drawn(*groups))


def test_the_fine_clip_of_an_interpolation_sees_the_whole_coarse_one(reach):
    """A coarse latent frame after the fine one, too; but nothing that is generated later, and no padding."""
    coarse = np.repeat(np.int32([7, 8, -1]), 4).reshape(1, 3, 2, 2, 1)
    fine, word = np.full((1, 1, 2, 2, 1), 9, np.int32), np.int32([[3]])
    clip = Clip(coarse, np.int32([1]), np.float32([2]), np.int32([0]))
    given = token_batch(fine, np.int32([2]), np.float32([4]), word, None, [clip])
    found = reach(layout()(given))
    assert found.shape == (1 + 1 + 12 + 1 + 4,) * 2
    coarse_slots, padding, fine_slots = list(range(2, 10)), list(range(10, 14)), list(range(15, 19))
    found[padding] = False
    groups = [([0], [0]), ([1], [0, 1]), (coarse_slots, list(range(10))), ([14], [*range(10), 14])]
    groups += [([slot], [*range(10), 14, *range(15, slot + 1)]) for slot in fine_slots]
    np.testing.assert_array_equal(found, drawn(*groups, slots=19))


def test_any_latent_frames_may_be_known(reach):
    """The first and the last are; what is generated between them stands behind them in the sequence."""
    words, padding, rate, known = [0, 1], [2, 3, 4], [5], list(range(6, 14))
    known_BTHW = np.broadcast_to(np.bool_([True, False, True])[:, None, None], (4, 3, 2, 2))
    found = reach(layout()(batch()._replace(known=known_BTHW)))
    seen = words + rate + known
    groups = [(words, words), (rate, words + rate), (known, seen)]
    groups += [([slot], seen + list(range(14, slot + 1))) for slot in range(14, SLOTS)]
    found[padding] = False
    np.testing.assert_array_equal(found, drawn(*groups))


def test_in_rounds_a_latent_frame_sees_itself_and_those_before(run):
    """What stands is its own slot's input; what doesn't is nobody's; no later latent frame is seen."""
    given = batch(step=FRAME)
    stands = np.zeros((4, 3, 2, 2), bool)
    stands[:, 0], stands[:, 1, 0, 1], stands[:, 2, 1, 1] = True, True, True
    given = given._replace(drawn=stands)
    made = layout()(given)
    np.testing.assert_array_equal(made.generated[:, FIRST:].reshape(stands.shape), ~stands)
    wanted = run(made)[1][:, FIRST:].reshape(4, 3, FRAME, -1)
    for frame, row, column in ((0, 1, 1), (1, 0, 1), (2, 1, 1), (1, 0, 0), (2, 0, 0)):
        changed = given.tokens.copy()
        changed[:, frame, row, column] = (changed[:, frame, row, column] + 7) % CONFIG.vocabulary
        found = run(layout()(given._replace(tokens=changed)))[1][:, FIRST:].reshape(wanted.shape)
        moved = (found != wanted).any(axis=(2, 3)).all(axis=0)
        sees = np.arange(3) >= frame if stands[0, frame, row, column] else np.zeros(3, bool)
        np.testing.assert_array_equal(moved, sees)


def test_rows_and_rounds_are_told_apart(run):
    """The same inputs under another step are another question."""
    made = sequence(FRAME)
    other = run(made._replace(stride=np.where(made.stride > 0, 1, 0)))[1][:, FIRST:]
    assert np.abs(other - run(made)[1][:, FIRST:]).max() > 1e-3


@pytest.mark.parametrize("step", [1, 2])
def test_a_tokens_logits_depend_on_no_token_from_itself_on(run, step):
    """Changing the token of slot j changes the logits from one step after j's on, and none before.

    The first row of a video is drawn token by token even where the others are drawn at once.
    """
    full = PROMPTS[1]  # no padding, which sees everything
    given = TokenBatch(*(np.repeat(field, 4, axis=0) for field in batch([full], step=step)))
    wanted = run(layout()(given))[1]
    for j in range(0, 12, 3):  # three changes at a time, one a sample; sample 0 stays
        changed = given.tokens.reshape(4, 12).copy()
        for sample in (1, 2, 3):
            changed[sample, j + sample - 1] = (changed[sample, j + sample - 1] + 7) % CONFIG.vocabulary
        found = run(layout()(given._replace(tokens=changed.reshape(4, 3, 2, 2, 1))))[1]
        np.testing.assert_array_equal(found[0], wanted[0])
        for sample in (1, 2, 3):
            slot = j + sample - 1
            after = FIRST + (slot + 1 if slot < step - 1 else (slot // step + 1) * step)
            np.testing.assert_array_equal(found[sample, :after], wanted[sample, :after])
            if after < SLOTS:  # the last step's tokens are nobody's input
                assert (found[sample, after:] != wanted[sample, after:]).any(axis=-1).all()


def test_text_rate_and_every_known_token_matter(run):
    given = batch(known=1)
    wanted = run(layout()(given))[1][1, FIRST + FRAME :]
    for change in (
        {"text": np.where(given.text == 9, 8, given.text)},
        {"text": given.text[:, [1, 0, 2, 3, 4]]},  # the order of words, too
        {"fps": given.fps + 1},
        {"start": given.start + 1},
        {"tokens": np.concatenate([(given.tokens[:, :1] + 1) % 50, given.tokens[:, 1:]], axis=1)},
    ):
        found = run(layout()(given._replace(**change)))[1][1, FIRST + FRAME :]
        assert np.abs(found - wanted).max() > 1e-3, change
    made = layout()(given)  # the rate is told by its token, too, not by the seconds alone
    found = run(made._replace(fps=made.fps * 2))[1][1, FIRST + FRAME :]
    assert np.abs(found - wanted).max() > 1e-3


# Padding


def test_padding_of_the_prompt_changes_nothing(run):
    short = [prompt for prompt in PROMPTS if len(prompt) <= 2] + [[7, 7]]
    wide, narrow = run(sequence(prompts=short))[1], run(sequence(prompts=short, length=2))[1]
    np.testing.assert_allclose(wide[:, FIRST:], narrow[:, 3:], atol=1e-5)


def test_prompts_of_unequal_length_give_what_each_gives_alone(run):
    together = run(sequence(known=1))[1]
    single = batch(known=1)
    for i in range(len(PROMPTS)):
        alone = run(layout()(jax.tree.map(lambda field, i=i: field[i : i + 1], single)))[1]
        np.testing.assert_allclose(together[i, FIRST:], alone[0, FIRST:], atol=1e-5)


def test_what_stands_in_padded_slots_changes_nothing_and_is_no_nan(run):
    made = sequence(known=1)
    hidden, logits = run(made)
    assert np.isfinite(hidden).all() and np.isfinite(logits).all()  # no text at all among them
    other = made._replace(token=np.where((made.block == NEVER)[..., None], 60, made.token))
    np.testing.assert_array_equal(run(other)[1][:, FIRST:], logits[:, FIRST:])


def test_a_prompt_longer_than_the_model_reads_is_refused():
    with pytest.raises(UserError, match=r"7 text tokens.*at most 5"):
        sequence(length=7)


# Caches


def cached(model):
    """Sequence, slots to prefill, slots a step → hidden states and logits of all slots, by way of a cache."""

    @functools.partial(jax.jit, static_argnames="count", donate_argnums=1)
    def part(sequence, cache, slot, count):
        hidden, cache = model.run(sequence.slots(slot, count), cache, slot)
        return model.head.logits(model.norm(hidden)), cache

    def run(sequence, given, step):
        cache = model.empty_cache(4, SLOTS, model.layers())
        logits, cache = part(sequence, cache, 0, given)
        every = [logits]
        for slot in range(given, SLOTS, step):
            # Slots that aren't generated yet hold nothing that could help.
            unknown = np.arange(SLOTS) >= slot + step
            logits, cache = part(
                sequence._replace(token=np.where(unknown[:, None], 0, sequence.token)), cache, slot, step
            )
            every.append(logits)
        np.testing.assert_array_equal(cache.block, sequence.block)
        return np.concatenate(every, axis=1)

    return run


@pytest.fixture(scope="module")
def cached_run(model):
    return cached(model)


@pytest.mark.parametrize("step, known", [(1, 1), (2, 1), (1, 0)])
def test_cached_logits_equal_uncached_ones(run, cached_run, step, known):
    made = sequence(step, known=known)
    given = FIRST + known * FRAME if known else FIRST + FRAME  # the latter: some generated slots prefilled at once
    real = np.asarray(made.block != NEVER)  # padding sees other padding in a cache; nobody sees padding
    logits = cached_run(made, given, step)
    np.testing.assert_allclose(logits[real], run(made)[1][real], atol=1e-5)
    assert len(np.unique(logits[:, FIRST:].argmax(axis=-1))) > 5


# Switches that change nothing


@pytest.mark.parametrize("switches", [{"scan_layers": True}, {"remat": "full"}])
def test_scanned_and_rematerialised_layers_compute_the_same(model, run, switches):
    made = sequence(known=1)
    other = switched(model, **switches)
    wanted = run(made)[1]
    np.testing.assert_allclose(runner(other)(made)[1], wanted, atol=1e-5)
    real = np.asarray(made.block != NEVER)
    np.testing.assert_allclose(cached(other)(made, FIRST + FRAME, 4)[real][-1], wanted[real][-1], atol=1e-5)


@pytest.fixture(scope="module")
def gradient(model):
    @functools.cache
    def of(scan_layers, remat):
        graph, params = nnx.split(switched(model, scan_layers=scan_layers, remat=remat))

        def loss(params, sequence):
            model = nnx.merge(graph, params)
            logits = model.head.logits(model(sequence))
            return jnp.where(sequence.generated, jax.nn.logsumexp(logits, -1) - logits[..., 0], 0).mean()

        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params, sequence(known=1)))

    return of


@pytest.mark.parametrize("remat, scan_layers", list(zip(REMAT, itertools.cycle((True, False)), strict=False)))
def test_remat_and_scan_change_no_gradient(gradient, scan_layers, remat):
    wanted, found = gradient(False, "none"), gradient(scan_layers, remat)
    for (path, one), other in zip(jax.tree.leaves_with_path(wanted), jax.tree.leaves(found), strict=True):
        assert np.abs(one).max() > 0, path
        np.testing.assert_allclose(other, one, atol=1e-7 + 1e-5 * np.abs(one).max(), err_msg=str(path))


def test_bfloat16_is_near_float32(model, run):
    made = sequence(known=1)
    wanted, (hidden, logits) = run(made)[1], runner(switched(model, dtype="bfloat16"))(made)
    assert hidden.dtype == logits.dtype == np.float32  # the residual stream is never rounded
    error = np.abs(logits - wanted)[:, FIRST:]
    assert error.max() < 0.15 * wanted.std() and error.mean() < 0.03 * wanted.std()
    narrow, kept = switched(model, dtype="bfloat16"), jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    assert narrow.empty_cache(1, 8, narrow.layers()).key[0].dtype == kept


def test_sizes_that_do_not_divide_are_a_users_error(random_model):
    with pytest.raises(UserError, match="width 32, heads 5"):
        random_model(Transformer, dataclasses.replace(CONFIG, heads=5))
