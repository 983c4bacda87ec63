"""Compares generated videos with real ones, on the held-out split of any dataset: `tokvid evaluate generation`."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.evaluate.batches import BATCH, EVALUATION_SEED, Settings, mean
from tokvid.evaluate.likelihood import CANDIDATES, caption_ranks
from tokvid.evaluate.reconstruction import LEAST_FOR_SSIM, SHOWN, some_clips, split_of
from tokvid.io.progress import progress
from tokvid.metrics.features import Features
from tokvid.metrics.video import frechet_distance, kernel_distance, psnr, ssim
from tokvid.sampling.levels import rates_of, videos
from tokvid.sampling.stream import Guidance, Models, encode_clips, frames_of, make_prompt

MODES = {"text": 0, "first_frame": 1, "continuation": 3}  # given latent frames per clip
TRAINING_CLIPS = 256  # searched for the nearest one


class Clips(NamedTuple):
    """Real clips (B, T, H, W, 3), their captions, and their tokens."""

    truth: np.ndarray
    captions: list[str]
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Request:
    """The clips to generate: `seconds` at `fps`, for `samples` held-out captions."""

    samples: int
    seconds: float
    fps: float
    seed: int

    @property
    def frames(self) -> int:
        """Frames per clip."""
        return 1 + round(self.seconds * self.fps)


def evaluate_generation(
    models: Models,
    data: DataConfig,
    request: Request,
    features: Features,
    settings: Settings = Settings(),
    show: Callable[..., object] = lambda rows, **how: None,
) -> dict[str, Any]:
    """Compares videos generated from the captions of held-out clips with these clips.

    For each of MODES: Fréchet and kernel distances by `features` (with those between two halves of the real clips);
    PSNR and SSIM against the real clip for each second, and the distance between their features, all compared with
    repeating the last given frame; motion energy ÷ that of the real clips; diversity, the difference between two seeds
    ÷ that between two real clips; copying, the distance to the nearest training clip ÷ that of the real clips (near 0:
    copied). Once: bits per pixel of the real clips, and the share of them that are likelier under their own caption
    than under any other. `show` gets the first clips as arguments for `contact_sheet`. UserError for fewer than 4
    clips.
    """
    if request.samples < 4 or min(data.size) < LEAST_FOR_SSIM or request.frames < 2:
        raise UserError(
            f"need 4 or more samples of 2 or more frames of {LEAST_FOR_SSIM} pixels or more, got {request.samples} of "
            f"{request.frames} frames of {data.size}"
        )
    rng = np.random.default_rng([EVALUATION_SEED, request.seed])
    wanted = dataclasses.replace(data, frames=request.frames, fps=(request.fps,))
    training = [clip_THWC for clip_THWC, _ in some_clips(wanted, "train", TRAINING_CLIPS, rng)]
    measured = _Measured(models, request, features, settings)
    with progress("evaluate generation", request.samples, "clips") as advance:
        for clips in _batches(models, wanted, request.samples, rng):
            measured.add(clips, rng)
            advance(len(clips.truth))
    if measured.clips < 4:
        raise UserError(
            f"only {measured.clips} videos have {request.frames} frames at {request.fps:g} fps and one caption; 4 are "
            "needed: use a shorter --seconds, or other --data"
        )
    show([video for video, _ in measured.rows], captions=[caption for _, caption in measured.rows])
    return {
        **measured.figures(features.extract(np.stack(training)) if training else None),
        "features": f"{features.name} {features.mark}",
        "split": split_of(data),
        **dataclasses.asdict(request),
        "samples": measured.clips,
        "weights": models.mark,
    }


class _Measured:
    """Accumulates the clips' figures, the features of all sets, and rows for a contact sheet."""

    def __init__(self, models: Models, request: Request, features: Features, settings: Settings):
        self.models, self.request, self.settings, self.extract = models, request, settings, features.extract
        self.modes = {name: known for name, known in MODES.items() if _given(models, known) < request.frames}
        self.scores: dict[str, list[float]] = collections.defaultdict(list)
        self.sets: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        self.rows: list[tuple[np.ndarray, str]] = []
        self.clips = self._batches = 0

    def add(self, clips: Clips, rng: np.random.Generator) -> None:
        """Generates videos in every mode for these clips, and compares them."""
        fps, count = self.request.fps, len(clips.truth)
        better_B, nats_B = caption_ranks(self.models, clips.tokens, fps, clips.captions, 0, rng)
        self.scores["retrieved"] += (better_B == 0).tolist()
        self.scores["bits_per_pixel"] += (-nats_B / np.log(2) / clips.truth[0, ..., 0].size).tolist()
        self.sets["truth"].append(self.extract(clips.truth))
        seeds = np.random.SeedSequence([EVALUATION_SEED, self.request.seed, self._batches]).generate_state(2 * count)
        shown = {"truth": clips.truth}
        for name, known in self.modes.items():
            generated, again = (
                _generate(self.models, clips, known, fps, self.settings, half) for half in np.split(seeds, 2)
            )
            self.sets[name].append(self.extract(generated))
            self.sets[f"{name} again"].append(self.extract(again))
            if given := _given(self.models, known):
                self.sets[f"{name} repeated"].append(self.extract(_repeated(clips.truth, given)))
            for truth_THWC, generated_THWC in zip(clips.truth, generated, strict=True):
                _compare(self.scores, name, truth_THWC, generated_THWC, given, fps)
            shown[name] = generated
        for index in range(min(count, SHOWN - self.clips)):
            titles = {"truth": f"truth: {clips.captions[index]}"}
            self.rows += [(video[index], titles.get(name, name.replace("_", " "))) for name, video in shown.items()]
        self.clips, self._batches = self.clips + count, self._batches + 1

    def figures(self, training_ND: np.ndarray | None) -> dict[str, Any]:
        """The figures of all modes, and the likelihood of the real clips."""
        sets = {name: np.concatenate(parts) for name, parts in self.sets.items()}
        halves = np.array_split(sets["truth"], 2)
        return {
            **{name: _figures(self.scores, sets, name, training_ND) for name in self.modes},
            "frechet_real_halves": frechet_distance(*halves),
            "kernel_real_halves": kernel_distance(*halves),
            "bits_per_pixel": mean(self.scores["bits_per_pixel"]),
            "caption_retrieval": mean(self.scores["retrieved"]),
            "caption_retrieval_chance": 1 / CANDIDATES,
        }


def _given(models: Models, latent_frames: int) -> int:
    """The number of frames in `latent_frames` latent frames."""
    return frames_of(latent_frames, models.tokenizer.config.temporal_patch)


def _batches(models: Models, data: DataConfig, samples: int, rng: np.random.Generator) -> Iterator[Clips]:
    """Held-out clips with one caption each."""
    every = some_clips(data, split_of(data), 4 * samples, rng)
    single_caption = ((clip_THWC, captions[0].text) for clip_THWC, captions in every if len(captions) == 1)
    pairs = itertools.islice(single_caption, samples)
    while some := list(itertools.islice(pairs, BATCH)):
        truth = np.stack([clip_THWC for clip_THWC, _ in some])
        yield Clips(truth, [text for _, text in some], encode_clips(models.tokenizer, truth))


def _generate(
    models: Models, clips: Clips, known: int, fps: float, settings: Settings, seeds_B: np.ndarray
) -> np.ndarray:
    """Videos of the clips' captions that begin with their first `known` latent frames."""
    frames = clips.truth.shape[1]
    prompt = make_prompt(models, clips.captions, seeds_B, Guidance(settings.guidance))
    levels = settings.levels(models, rates_of(models, fps, settings.scheme) if known < 2 else [fps], frames)
    made = videos(models, [prompt], levels, clips.tokens[:, :known])
    return np.concatenate(list(made), axis=1)[:, :frames]


def _repeated(truth_BTHWC: np.ndarray, given: int) -> np.ndarray:
    """The real clips, with every frame after the first `given` ones replaced by the last of these."""
    return truth_BTHWC[:, np.minimum(np.arange(truth_BTHWC.shape[1]), given - 1)]


def _compare(
    scores: dict[str, list[float]],
    name: str,
    truth_THWC: np.ndarray,
    generated_THWC: np.ndarray,
    given: int,
    fps: float,
) -> None:
    """Adds the figures of one clip whose first `given` frames were given."""
    others = {"": generated_THWC}
    if given:
        others["repeat_"] = _repeated(truth_THWC[None], given)[0]
    for second in range(int(np.ceil((len(truth_THWC) - given) / fps))):
        part = slice(given + round(second * fps), given + round((second + 1) * fps))
        for kind, video_THWC in others.items():
            scores[f"{name} {kind}psnr_{second + 1}s"].append(min(psnr(truth_THWC[part], video_THWC[part]), 100.0))
            scores[f"{name} {kind}ssim_{second + 1}s"].append(ssim(truth_THWC[part], video_THWC[part]))
    for kind, video_THWC in (("made", generated_THWC), ("true", truth_THWC)):
        change = np.abs(np.diff(video_THWC.astype(np.float32), axis=0)).mean()
        scores[f"{name} motion {kind}"].append(float(change))


def _figures(
    scores: dict[str, list[float]], sets: dict[str, np.ndarray], name: str, training_ND: np.ndarray | None
) -> dict[str, float | None]:
    """The figures of one mode. Features of single videos are compared in standard deviations of the real clips'."""
    truth_ND, generated_ND, scale_D = sets["truth"], sets[name], sets["truth"].std(axis=0) + 1e-6

    def apart(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
        return np.sqrt(np.mean(np.square((a_ND - b_ND) / scale_D), axis=-1))

    motion = [sum(scores[f"{name} motion {kind}"]) for kind in ("made", "true")]
    figures = {
        "frechet": frechet_distance(truth_ND, generated_ND),
        "kernel": kernel_distance(truth_ND, generated_ND),
        "distance": float(apart(truth_ND, generated_ND).mean()),
        "motion": motion[0] / max(motion[1], 1e-9),
        "diversity": float(
            apart(generated_ND, sets[f"{name} again"]).mean() / apart(truth_ND, np.roll(truth_ND, 1, 0)).mean()
        ),
        **{
            key.removeprefix(f"{name} "): mean(values)
            for key, values in scores.items()
            if key.startswith(name) and "motion" not in key
        },
    }
    if (repeated_ND := sets.get(f"{name} repeated")) is not None:
        figures["repeat_frechet"] = frechet_distance(truth_ND, repeated_ND)
        figures["repeat_distance"] = float(apart(truth_ND, repeated_ND).mean())
    if training_ND is not None:
        nearest = [np.min(apart(each_ND[:, None], training_ND), axis=1).mean() for each_ND in (generated_ND, truth_ND)]
        figures["copying"] = float(nearest[0] / nearest[1])
    return figures
