"""Generated clips beside real ones, and the likelihood of real ones: what is counted, and what perfect figures are."""

import dataclasses

import jax
import numpy as np
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.evaluate import generation, likelihood
from tokvid.evaluate.batches import EvaluationSet, Settings
from tokvid.evaluate.generation import MODES, evaluate_generation
from tokvid.evaluate.likelihood import CANDIDATES, caption_ranks, log_likelihood, other_captions
from tokvid.metrics.features import load_features
from tokvid.sampling.codec import encode_clips
from tokvid.transformer.layout import lay_out
from tokvid.types import token_batch

DATA = DataConfig(size=(16, 16), fps=(4.0,), frames=5, videos=100)
FEATURES = load_features("random-convolutions")


@pytest.fixture(autouse=True)
def few_training_clips(monkeypatch):
    monkeypatch.setattr(generation, "TRAINING_CLIPS", 6)


def tokens(models, frames, batch=3):
    config = models.transformer.config
    shape = (batch, frames, *config.latent[1:], config.subcodes)
    return np.random.default_rng(0).integers(config.vocabulary, size=shape, dtype=np.int32)


def test_a_window_counts_every_token_that_is_not_known(tiny_models):
    """Against the definition: the logarithms of the softmax at the targets, of one window."""
    given, captions = tokens(tiny_models, 4), ["a red circle", "", "a star"]
    text = np.stack([tiny_models.text.encode(caption, 32) for caption in captions])
    model = tiny_models.transformer.model
    for known in (0, 1):
        batch = token_batch(
            given, np.zeros(3, np.int32), np.full(3, 4, np.float32), text, np.tile(np.arange(4) < known, (3, 1))
        )
        sequence = lay_out(model.config, batch)
        logits = jax.jit(lambda sequence: model.head.logits(model(sequence)))(sequence)[:, -16:]
        chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), sequence.target[:, -16:], axis=-1)[..., 0]
        found = log_likelihood(tiny_models, given, 4.0, captions, known=known)
        np.testing.assert_allclose(found, chosen[:, 4 * known :].sum(axis=1), rtol=1e-3)


def test_longer_videos_are_a_chain_of_windows(any_models):
    """Each after the last latent frames of the one before; nothing counts twice, and nothing that isn't there."""
    given, captions = tokens(any_models, 5), ["a", "b", "c"]
    whole = log_likelihood(any_models, given, 4.0, captions, keep=2)
    first = log_likelihood(any_models, given[:, :4], 4.0, captions)
    # The last latent frame, after two known ones of a window that begins with latent frame 2: not a video's beginning.
    assert (whole < first).all()
    last = whole - first
    changed = given.copy()
    changed[:, :2] = (changed[:, :2] + 1) % any_models.transformer.config.vocabulary
    again = log_likelihood(any_models, changed, 4.0, captions, keep=2)
    np.testing.assert_allclose(again - log_likelihood(any_models, changed[:, :4], 4.0, captions), last, atol=1e-3)


def test_ranks_count_the_captions_that_fit_better(tiny_models, monkeypatch):
    fits = {f"caption {number}": float(number) for number in range(20)}
    monkeypatch.setattr(
        likelihood, "log_likelihood", lambda models, tokens, fps, captions: np.array([fits[c] for c in captions])
    )
    others = other_captions(list(fits), np.random.default_rng(0))
    better, own = caption_ranks(tiny_models, tokens(tiny_models, 4, 20), 4.0, list(fits), others)
    assert own.tolist() == list(fits.values()) and better[-1] == 0 and better[0] == CANDIDATES - 1
    assert (np.diff(better) <= 3).all()
    alike = ["caption 1"] * 2
    others = other_captions(alike, np.random.default_rng(0))
    better, _ = caption_ranks(tiny_models, tokens(tiny_models, 4, 2), 4.0, alike, others)
    assert better.tolist() == [0, 0]  # nothing to compare with


def test_clips_without_other_captions_are_not_retrieved(tiny_models, monkeypatch):
    """Five clips have two captions to choose from beside their own, and one, alone in its batch, has none."""

    def others(captions, rng):
        return [["other", "more"] * (len(captions) > 1)] * len(captions)

    bit = -np.log(2) * 7 * 16 * 16  # for each pixel of seven frames
    monkeypatch.setattr(generation, "caption_ranks", lambda *a: (np.zeros(len(a[3])), np.full(len(a[3]), bit)))
    monkeypatch.setattr(generation, "other_captions", others)
    monkeypatch.setattr(generation, "BATCH", 5)
    figures = evaluate_generation(tiny_models, DATA, EvaluationSet(6, 1.5, 4.0, 0), FEATURES)
    assert figures["samples"] == 6 and figures["caption_retrieval_chance"] == pytest.approx(1 / 3)
    assert figures["bits_per_pixel"] == pytest.approx(1)
    monkeypatch.setattr(generation, "other_captions", lambda texts, rng: [[]] * len(texts))
    figures = evaluate_generation(tiny_models, DATA, EvaluationSet(6, 1.5, 4.0, 0), FEATURES)
    assert figures["caption_retrieval"] is figures["caption_retrieval_chance"] is None


def test_all_figures_of_a_model(tiny_models, by_two, monkeypatch):
    shown = []
    request = EvaluationSet(samples=6, seconds=1.5, fps=4.0, seed=0)
    monkeypatch.setattr(generation, "BATCH", 3)
    figures = evaluate_generation(
        tiny_models, DATA, request, FEATURES, Settings(), lambda rows, captions: shown.extend(captions)
    )
    assert figures["samples"] == 6 and figures["split"] == "held_out" and figures["bits_per_pixel"] > 0
    assert 0 <= figures["caption_retrieval"] <= figures["caption_preferred"] <= 1
    for name in MODES:
        by_second = {f"{metric}_1s" for metric in ("psnr", "ssim", "perceptual", "distance")}
        baselines = {f"{kind}_{metric}" for kind in ("repeat", "nearest") for metric in by_second | {"frechet"}}
        assert {"frechet", "kernel", "motion", "diversity", "copying"} | by_second <= figures[name].keys()
        assert baselines & figures[name].keys() == (baselines if name != "text" else set())
    assert (
        shown[1:4] == ["text", "first frame", "continuation"] and shown[0].startswith("truth: ") and len(shown) == 6 * 4
    )
    again = by_two(lambda: evaluate_generation(tiny_models, DATA, request, FEATURES))
    assert again == [figures, figures]


def test_clips_are_not_compared_with_themselves(tiny_models, monkeypatch):
    """Where none are held out, as of a folder that is given, all clips are measured."""
    monkeypatch.setattr(generation, "split_of", lambda data: "train")
    figures = evaluate_generation(tiny_models, DATA, EvaluationSet(6, 1.5, 4.0, 0), FEATURES)
    assert figures["split"] == "train" and "repeat_frechet" in figures["first_frame"]
    assert not [key for name in MODES for key in figures[name] if key == "copying" or key.startswith("nearest_")]


def test_true_clips_have_perfect_figures(tiny_models, monkeypatch):
    truths = []
    monkeypatch.setattr(
        generation, "encode_clips", lambda tokenizer, truth: truths.append(truth) or encode_clips(tokenizer, truth)
    )
    monkeypatch.setattr(generation, "generate_batch", lambda *asked: truths[-1])
    figures = evaluate_generation(tiny_models, DATA, EvaluationSet(6, 1.5, 4.0, 0), FEATURES)
    for name in MODES:
        of = figures[name]
        assert of["frechet"] == pytest.approx(0, abs=1e-4) and of["distance"] == of["diversity"] == 0
        assert of["motion"] == of["copying"] == 1 and of["psnr_1s"] == 100 and of["ssim_1s"] == 1
        assert of["distance_1s"] == of["perceptual_1s"] == 0
        if name != "text":
            assert of["repeat_psnr_1s"] < of["psnr_1s"] and of["repeat_distance"] > 0
            for metric in ("distance", "distance_1s", "perceptual_1s"):
                assert min(of[f"repeat_{metric}"], of[f"nearest_{metric}"]) > 0


def test_what_needs_no_model_goes_on_after_the_given_frames():
    """The last of them, or what follows the most similar ones in a training clip."""
    training = np.random.default_rng(0).integers(0, 256, (4, 5, 16, 16, 3), np.uint8)
    truth = np.random.default_rng(1).integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
    truth[0, :3], truth[1, :3] = training[2, :3] // 2 + 60, training[1, :3]
    assert generation._without_model(truth, 0, training) == {}
    assert generation._without_model(truth, 3, training[:0]).keys() == {"repeat"}
    found = generation._without_model(truth, 3, training)
    for video in found.values():
        np.testing.assert_array_equal(video[:, :3], truth[:, :3])
    np.testing.assert_array_equal(found["repeat"][:, 3:], truth[:, [2, 2]])
    np.testing.assert_array_equal(found["nearest"][:, 3:], training[[2, 1], 3:])


def test_seconds_are_counted_from_the_given_frames():
    """Two and a half of them; the first two differ by one grey level, the last is equal."""
    truth = np.full((1, 11, 16, 16, 3), 100, np.uint8)
    made = truth.copy()
    made[:, 1:9] += 1
    found = generation._by_second(truth, made, 1, 4.0, FEATURES, generation.COMPARED)
    assert {key for key in found if "psnr" in key} == {"psnr_1s", "psnr_2s", "psnr_3s"}
    assert found["psnr_1s"] == found["psnr_2s"] == [pytest.approx(20 * np.log10(255))] and found["psnr_3s"] == [100]
    assert found["motion"] == [pytest.approx(2 / 10)]
    for fps in (23.976, 29.97):  # the last second would have no frame
        found = generation._by_second(
            truth.repeat(5, axis=1)[:, :48], made.repeat(5, axis=1)[:, :48], 0, fps, FEATURES, {}
        )
        assert all(len(each) for key, values in found.items() if key.startswith("features") for each in values)
        ends = generation._by_second(
            truth.repeat(6, axis=1)[:, : round(2 * fps)],
            made.repeat(6, axis=1)[:, : round(2 * fps)],
            0,
            fps,
            FEATURES,
            generation.COMPARED,
        )
        assert not any(np.isnan(value) for key in ends if "psnr" in key for value in ends[key])
    longer = dataclasses.replace(FEATURES, least_frames=4)
    assert "features_3s" not in generation._by_second(truth, made, 1, 4.0, longer, {})  # only two frames


def test_figures_with_features_that_have_a_name_of_their_own(tiny_models):
    """FVD in place of a Fréchet distance, and no video made for nothing where all would be too short."""
    fvd = dataclasses.replace(FEATURES, frechet="fvd", least_frames=7)
    figures = evaluate_generation(tiny_models, DATA, EvaluationSet(4, 1.5, 4.0, 0), fvd)
    assert figures["first_frame"].keys() >= {"fvd", "repeat_fvd"} and figures["fvd_real_halves"] > 0
    assert not any("frechet" in name for name in [*figures, *figures["first_frame"]])
    with pytest.raises(UserError, match="7 frames or more, got 6"):
        evaluate_generation(tiny_models, DATA, EvaluationSet(4, 1.25, 4.0, 0), fvd)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 3}, "samples should be 4 or more"),
        ({"seconds": 0.1}, "2 or more frames"),
        ({"seconds": 0.0}, "seconds should be above 0 and at most 1000000, got 0"),
        ({"seconds": float("inf")}, "seconds should be above 0 and at most 1000000, got inf"),
        ({"fps": float("nan")}, "fps should be above 0 and at most 1000000, got nan"),
        ({"seconds": 500.0}, "only 0"),
    ],
)
def test_too_little_to_compare(tiny_models, change, said):
    request = dataclasses.replace(EvaluationSet(6, 1.5, 4.0, 0), **change)
    with pytest.raises(UserError, match=said):
        evaluate_generation(tiny_models, DATA, request, FEATURES)
