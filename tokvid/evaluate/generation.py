"""Compares generated videos with real ones, on the held-out split of any dataset: `tokvid evaluate generation`."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tokvid.config import DataConfig
from tokvid.distributed import first
from tokvid.errors import UserError
from tokvid.evaluate.batches import BATCH, EVALUATION_SEED, EvaluationSet, Settings, generate_batch, mean, measured
from tokvid.evaluate.clips import BEST
from tokvid.evaluate.likelihood import caption_ranks, other_captions
from tokvid.evaluate.reconstruction import SHOWN, check_clips, some_clips, split_of
from tokvid.io.progress import progress
from tokvid.metrics.features import Features, load_features, perceptual_distance
from tokvid.metrics.video import frechet_distance, kernel_distance, psnr, ssim
from tokvid.sampling.codec import encode_clips, frames_of
from tokvid.sampling.models import Models

MODES = {"text": 0, "first_frame": 1, "continuation": 3}  # given latent frames per clip
TRAINING_CLIPS = 256  # searched for the nearest one
Metrics = Mapping[str, Callable[[np.ndarray, np.ndarray], float]]
COMPARED: Metrics = {  # of a clip and the real one
    "psnr": lambda truth_THWC, video_THWC: min(psnr(truth_THWC, video_THWC), BEST),
    "ssim": ssim,
    "perceptual": perceptual_distance,
}


class Captioned(NamedTuple):
    """Real clips (B, T, H, W, 3), their captions, other captions to compare with each, and two seeds for each (2B,)."""

    truth: np.ndarray
    captions: list[str]
    others: list[list[str]]
    seeds: np.ndarray


def evaluate_generation(
    models: Models,
    data: DataConfig,
    wanted: EvaluationSet,
    features: Features,
    settings: Settings = Settings(),
    show: Callable[..., object] = lambda rows, **how: None,
) -> dict[str, Any]:
    """Compares videos generated from the captions of held-out clips with these clips.

    For each of MODES: Fréchet and kernel distances by `features` (with those between two halves of the real clips); for
    each second, PSNR and SSIM against the real clip, the perceptual distance from it and the distance between their
    features, and the last also of the whole clips; motion energy ÷ that of the real clips; diversity, the difference
    between two seeds ÷ that between two real clips; copying, the distance to the nearest training clip ÷ that of the
    real clips (near 0: copied). Where frames are given, the same of two videos that need no model: `repeat_`, the last
    given frame, and `nearest_`, what follows in the training clip whose first frames are nearest to the given ones.
    Where no clips are held out, those of training are measured, and neither copying nor `nearest_` is. Once: bits per
    pixel of the real clips; the share of them that are likelier under their own caption than under any other; and the
    share of the other captions under which a clip is less likely, half of them by chance. `show` gets the first clips
    as arguments for `contact_sheet`. UserError for fewer than 4 clips.
    """
    check_clips(wanted.samples, data.size)
    if wanted.frames < 2:
        raise UserError(f"clips should be of 2 or more frames, got {wanted.frames}; use a longer --seconds")
    features.check(wanted.frames)
    rng = np.random.default_rng([EVALUATION_SEED, wanted.seed])
    cut = dataclasses.replace(data, frames=wanted.frames, fps=(wanted.fps,))
    training_NTHWC = _training(cut, rng)
    modes = {name: known for name, known in MODES.items() if frames_of(known, models.temporal_patch) < wanted.frames}
    drawn = ((clips, len(clips.truth)) for clips in _batches(cut, wanted, rng))
    with progress("evaluate generation", wanted.samples, "clips", quiet=not first()) as advance:
        measure = functools.partial(_measure, models, training_NTHWC, modes, wanted.fps, features, settings)
        lists = measured(drawn, measure, advance)
    if (count := len(lists["bits_per_pixel"])) < 4:
        raise UserError(
            f"only {count} videos have {wanted.frames} frames at {wanted.fps:g} fps and one caption; 4 are needed: "
            "use a shorter --seconds, or other --data"
        )
    own = load_features("random-convolutions")
    shown = lists["rows"][: SHOWN * (1 + len(modes))]
    show([video for video, _ in shown], captions=[caption for _, caption in shown])
    return {
        **_all_figures(lists, modes, features, features.extract(training_NTHWC) if len(training_NTHWC) else None),
        "features": f"{features.name} {features.mark}",
        "perceptual_features": f"{own.name} {own.mark}",
        "split": split_of(data),
        **dataclasses.asdict(wanted),
        "samples": count,
        "weights": models.mark,
    }


def _training(data: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """Training clips (N, T, H, W, 3), perhaps none; and none where no clips are held out, which are measured then."""
    if split_of(data) == "train":
        return np.zeros((0, data.frames, *data.size, 3), np.uint8)
    clips = [clip_THWC for clip_THWC, _ in some_clips(data, "train", TRAINING_CLIPS, rng)]
    return np.stack(clips) if clips else np.zeros((0, data.frames, *data.size, 3), np.uint8)


def _measure(
    models: Models,
    training_NTHWC: np.ndarray,
    modes: Mapping[str, int],
    fps: float,
    features: Features,
    settings: Settings,
    clips: Captioned,
) -> dict[str, list[Any]]:
    """Generates videos in every mode for these clips: their figures, the features of all sets, and rows for a sheet."""
    lists = collections.defaultdict[str, list[Any]](list)
    tokens = encode_clips(models.tokenizer, clips.truth)
    better_B, nats_B = caption_ranks(models, tokens, fps, clips.captions, clips.others)
    for better, others in zip(better_B.tolist(), clips.others, strict=True):
        if others:  # captions to choose from
            lists["retrieved"].append(better == 0)
            lists["retrieved by chance"].append(1 / (1 + len(others)))
            lists["preferred"].append(1 - better / len(others))
    lists["bits_per_pixel"] += (-nats_B / np.log(2) / clips.truth[0, ..., 0].size).tolist()
    shown, truth_ND = {"truth": clips.truth}, features.extract(clips.truth)
    told = [(clips.truth.shape[1] / fps, clips.captions)]
    for name, known in modes.items():
        given = frames_of(known, models.temporal_patch)
        opening = clips.truth[:, :given] if given else None
        made, again = (generate_batch(models, fps, told, half, settings, opening) for half in np.split(clips.seeds, 2))
        compared = {"made": made, **_without_model(clips.truth, given, training_NTHWC)}
        for kind, video_BTHWC in {"again": again, **compared}.items():
            lists[f"{name} {kind} features"].append(features.extract(video_BTHWC))
        lists[f"{name} truth features"].append(truth_ND)
        for kind, video_BTHWC in {"truth": clips.truth, **compared}.items():
            metrics = COMPARED if kind in compared else {}
            for key, values in _by_second(clips.truth, video_BTHWC, given, fps, features, metrics).items():
                lists[f"{name} {kind} {key}"] += values
        shown[name] = made
    for index, caption in enumerate(clips.captions[:SHOWN]):
        titles = {"truth": f"truth: {caption}"}
        lists["rows"] += [(video[index], titles.get(name, name.replace("_", " "))) for name, video in shown.items()]
    return lists


def _without_model(truth_BTHWC: np.ndarray, given: int, training_NTHWC: np.ndarray) -> dict[str, np.ndarray]:
    """Videos that go on after the `given` first frames and need no model, none for no given frames."""
    if not given:
        return {}
    frames_T = np.minimum(np.arange(truth_BTHWC.shape[1]), given - 1)
    found = {"repeat": truth_BTHWC[:, frames_T]}
    if len(training_NTHWC):
        beginnings = training_NTHWC[:, :given].astype(np.float32)
        errors = [np.square(beginnings - each[:given]).mean(axis=(1, 2, 3, 4)) for each in truth_BTHWC]
        after = training_NTHWC[np.argmin(errors, axis=1), given:]
        found["nearest"] = np.concatenate([truth_BTHWC[:, :given], after], axis=1)
    return found


def _by_second(
    truth_BTHWC: np.ndarray, video_BTHWC: np.ndarray, given: int, fps: float, features: Features, metrics: Metrics
) -> dict[str, list[Any]]:
    """Of videos whose first `given` frames were given: motion; features and `metrics` of each second after these."""
    frames = truth_BTHWC.shape[1]
    starts = given + np.round(np.arange(0, frames - given - 0.5, fps)).astype(int)
    found: dict[str, list[Any]] = {
        "motion": [float(np.abs(np.diff(each.astype(np.float32), axis=0)).mean()) for each in video_BTHWC]
    }
    for second, start in enumerate(starts, 1):
        which = slice(start, given + round(second * fps))
        some_BTHWC = video_BTHWC[:, which]
        if some_BTHWC.shape[1] >= features.least_frames:
            found[f"features_{second}s"] = [features.extract(some_BTHWC)]
        pairs = list(zip(truth_BTHWC[:, which], some_BTHWC, strict=True))
        found |= {f"{name}_{second}s": [measure(*pair) for pair in pairs] for name, measure in metrics.items()}
    return found


def _all_figures(
    lists: dict[str, list[Any]], modes: Mapping[str, int], features: Features, training_ND: np.ndarray | None
) -> dict[str, Any]:
    """The figures of all modes, and the likelihood of the real clips."""
    halves = np.array_split(np.concatenate(lists[f"{next(iter(modes))} truth features"]), 2)
    return {
        **{name: _figures(lists, name, features, training_ND) for name in modes},
        f"{features.frechet}_real_halves": frechet_distance(*halves),
        "kernel_real_halves": kernel_distance(*halves),
        "bits_per_pixel": mean(lists["bits_per_pixel"]),
        "caption_retrieval": mean(lists["retrieved"]),
        "caption_retrieval_chance": mean(lists["retrieved by chance"]),
        "caption_preferred": mean(lists["preferred"]),
    }


def _batches(data: DataConfig, wanted: EvaluationSet, rng: np.random.Generator) -> Iterator[Captioned]:
    """Held-out clips with one caption each."""
    every = some_clips(data, split_of(data), 4 * wanted.samples, rng)
    single_caption = ((clip_THWC, captions[0].text) for clip_THWC, captions in every if len(captions) == 1)
    pairs = itertools.islice(single_caption, wanted.samples)
    for number in itertools.count():
        if not (some := list(itertools.islice(pairs, BATCH))):
            return
        captions = [text for _, text in some]
        seeds = np.random.SeedSequence([EVALUATION_SEED, wanted.seed, number]).generate_state(2 * len(some))
        yield Captioned(np.stack([clip_THWC for clip_THWC, _ in some]), captions, other_captions(captions, rng), seeds)


def _figures(
    lists: dict[str, list[Any]], mode: str, features: Features, training_ND: np.ndarray | None
) -> dict[str, float | None]:
    """The figures of one mode. Features of single videos are compared in standard deviations of the real clips'."""

    def features_of(kind: str, part: str = "") -> np.ndarray:
        return np.concatenate(lists[f"{mode} {kind} features{part}"])

    def apart(a_ND: np.ndarray, b_ND: np.ndarray, part: str = "") -> np.ndarray:
        scale_D = features_of("truth", part).std(axis=0) + 1e-6
        return np.sqrt(np.mean(np.square((a_ND - b_ND) / scale_D), axis=-1))

    truth_ND, made_ND = features_of("truth"), features_of("made")
    figures: dict[str, float | None] = {
        features.frechet: frechet_distance(truth_ND, made_ND),
        "kernel": kernel_distance(truth_ND, made_ND),
        "motion": sum(lists[f"{mode} made motion"]) / max(sum(lists[f"{mode} truth motion"]), 1e-9),
        "diversity": float(
            apart(made_ND, features_of("again")).mean() / apart(truth_ND, np.roll(truth_ND, 1, 0)).mean()
        ),
    }
    if training_ND is not None:
        nearest = [np.min(apart(each_ND[:, None], training_ND), axis=1).mean() for each_ND in (made_ND, truth_ND)]
        figures["copying"] = float(nearest[0] / max(nearest[1], 1e-9))
    for kind in ("made", "repeat", "nearest"):
        before, prefix = f"{mode} {kind} ", "" if kind == "made" else f"{kind}_"
        of_kind = {key.removeprefix(before): values for key, values in lists.items() if key.startswith(before)}
        if of_kind and kind != "made":
            figures[f"{prefix}{features.frechet}"] = frechet_distance(truth_ND, features_of(kind))
        for key, values in of_kind.items():
            if key.startswith("features"):
                part = key.removeprefix("features")
                distance_N = apart(features_of("truth", part), features_of(kind, part), part)
                figures[f"{prefix}distance{part}"] = float(distance_N.mean())
            elif key != "motion":
                figures[f"{prefix}{key}"] = mean(values)
    return figures
