"""Compares generated videos with real ones, on the held-out split of any dataset: `tokvid evaluate generation`."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tokvid.config import DataConfig
from tokvid.distributed import first
from tokvid.errors import UserError
from tokvid.evaluate.batches import BATCH, EVALUATION_SEED, Settings, mean, measured
from tokvid.evaluate.likelihood import CANDIDATES, caption_ranks, other_captions
from tokvid.evaluate.reconstruction import LEAST_FOR_SSIM, SHOWN, some_clips, split_of
from tokvid.io.progress import progress
from tokvid.metrics.features import Features
from tokvid.metrics.video import frechet_distance, kernel_distance, psnr, ssim
from tokvid.sampling.given import restored
from tokvid.sampling.levels import rates_of, videos
from tokvid.sampling.stream import Guidance, Models, encode_clips, frames_of, make_prompt

MODES = {"text": 0, "first_frame": 1, "continuation": 3}  # given latent frames per clip
TRAINING_CLIPS = 256  # searched for the nearest one


class Clips(NamedTuple):
    """Real clips (B, T, H, W, 3), their captions, other captions to compare with each, and two seeds for each (2B,)."""

    truth: np.ndarray
    captions: list[str]
    others: list[list[str]]
    seeds: np.ndarray


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
            f"samples should be 4 or more, of 2 or more frames of {LEAST_FOR_SSIM} pixels or more, got "
            f"{request.samples} of {request.frames} frames of {data.size}"
        )
    features.check(request.frames)
    rng = np.random.default_rng([EVALUATION_SEED, request.seed])
    wanted = dataclasses.replace(data, frames=request.frames, fps=(request.fps,))
    training = [clip_THWC for clip_THWC, _ in some_clips(wanted, "train", TRAINING_CLIPS, rng)]
    modes = {name: known for name, known in MODES.items() if _given(models, known) < request.frames}
    drawn = ((clips, len(clips.truth)) for clips in _batches(wanted, request, rng))
    with progress("evaluate generation", request.samples, "clips", quiet=not first()) as advance:
        lists = measured(drawn, lambda clips: _measure(models, clips, modes, request.fps, features, settings), advance)
    if (count := len(lists["bits_per_pixel"])) < 4:
        raise UserError(
            f"only {count} videos have {request.frames} frames at {request.fps:g} fps and one caption; 4 are needed: "
            "use a shorter --seconds, or other --data"
        )
    shown = lists["rows"][: SHOWN * (1 + len(modes))]
    show([video for video, _ in shown], captions=[caption for _, caption in shown])
    return {
        **_all_figures(lists, modes, features, features.extract(np.stack(training)) if training else None),
        "features": f"{features.name} {features.mark}",
        "split": split_of(data),
        **dataclasses.asdict(request),
        "samples": count,
        "weights": models.mark,
    }


def _measure(
    models: Models, clips: Clips, modes: Mapping[str, int], fps: float, features: Features, settings: Settings
) -> dict[str, list[Any]]:
    """Generates videos in every mode for these clips: their figures, the features of all sets, and rows for a sheet."""
    lists = collections.defaultdict[str, list[Any]](list)
    tokens = encode_clips(models.tokenizer, clips.truth)
    better_B, nats_B = caption_ranks(models, tokens, fps, clips.captions, clips.others, 0)
    lists["retrieved"] += (better_B == 0).tolist()
    lists["bits_per_pixel"] += (-nats_B / np.log(2) / clips.truth[0, ..., 0].size).tolist()
    shown, sets = {"truth": clips.truth}, {"truth": clips.truth}
    for name, known in modes.items():
        given = _given(models, known)
        sets[name], sets[f"{name} again"] = (
            _generate(models, clips, tokens[:, :known], fps, settings, half) for half in np.split(clips.seeds, 2)
        )
        shown[name] = sets[name]
        if given:
            sets[f"{name} repeated"] = _repeated(clips.truth, given)
        for truth_THWC, generated_THWC in zip(clips.truth, shown[name], strict=True):
            _compare(lists, name, truth_THWC, generated_THWC, given, fps)
    for name, video_BTHWC in sets.items():
        lists[f"features of {name}"].append(features.extract(video_BTHWC))
    for index, caption in enumerate(clips.captions[:SHOWN]):
        titles = {"truth": f"truth: {caption}"}
        lists["rows"] += [(video[index], titles.get(name, name.replace("_", " "))) for name, video in shown.items()]
    return lists


def _all_figures(
    lists: dict[str, list[Any]], modes: Mapping[str, int], features: Features, training_ND: np.ndarray | None
) -> dict[str, Any]:
    """The figures of all modes, and the likelihood of the real clips."""
    mark = "features of "
    sets = {name.removeprefix(mark): np.concatenate(parts) for name, parts in lists.items() if name.startswith(mark)}
    halves = np.array_split(sets["truth"], 2)
    return {
        **{name: _figures(lists, sets, name, features, training_ND) for name in modes},
        f"{features.frechet}_real_halves": frechet_distance(*halves),
        "kernel_real_halves": kernel_distance(*halves),
        "bits_per_pixel": mean(lists["bits_per_pixel"]),
        "caption_retrieval": mean(lists["retrieved"]),
        "caption_retrieval_chance": 1 / CANDIDATES,
    }


def _given(models: Models, latent_frames: int) -> int:
    """The number of frames in `latent_frames` latent frames."""
    return frames_of(latent_frames, models.tokenizer.config.temporal_patch)


def _batches(data: DataConfig, request: Request, rng: np.random.Generator) -> Iterator[Clips]:
    """Held-out clips with one caption each."""
    every = some_clips(data, split_of(data), 4 * request.samples, rng)
    single_caption = ((clip_THWC, captions[0].text) for clip_THWC, captions in every if len(captions) == 1)
    pairs = itertools.islice(single_caption, request.samples)
    for number in itertools.count():
        if not (some := list(itertools.islice(pairs, BATCH))):
            return
        captions = [text for _, text in some]
        seeds = np.random.SeedSequence([EVALUATION_SEED, request.seed, number]).generate_state(2 * len(some))
        yield Clips(np.stack([clip_THWC for clip_THWC, _ in some]), captions, other_captions(captions, rng), seeds)


def _generate(
    models: Models, clips: Clips, opening: np.ndarray, fps: float, settings: Settings, seeds_B: np.ndarray
) -> np.ndarray:
    """Videos of the clips' captions that begin with latent frames of theirs, or with none."""
    frames = clips.truth.shape[1]
    prompt = make_prompt(models, clips.captions, seeds_B, Guidance(settings.guidance))
    rates = rates_of(models, fps, settings.scheme) if opening.shape[1] < 2 else [fps]
    made = videos(models, [prompt], settings.levels(models, rates, frames), opening)
    given = np.moveaxis(clips.truth[:, : _given(models, opening.shape[1])], 1, 0)
    return np.concatenate(list(restored(made, iter(given))), axis=1)[:, :frames]


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
    scores: dict[str, list[float]],
    sets: dict[str, np.ndarray],
    name: str,
    features: Features,
    training_ND: np.ndarray | None,
) -> dict[str, float | None]:
    """The figures of one mode. Features of single videos are compared in standard deviations of the real clips'."""
    truth_ND, generated_ND, scale_D = sets["truth"], sets[name], sets["truth"].std(axis=0) + 1e-6

    def apart(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
        return np.sqrt(np.mean(np.square((a_ND - b_ND) / scale_D), axis=-1))

    motion = [sum(scores[f"{name} motion {kind}"]) for kind in ("made", "true")]
    figures = {
        features.frechet: frechet_distance(truth_ND, generated_ND),
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
        figures[f"repeat_{features.frechet}"] = frechet_distance(truth_ND, repeated_ND)
        figures["repeat_distance"] = float(apart(truth_ND, repeated_ND).mean())
    if training_ND is not None:
        nearest = [np.min(apart(each_ND[:, None], training_ND), axis=1).mean() for each_ND in (generated_ND, truth_ND)]
        figures["copying"] = float(nearest[0] / nearest[1])
    return figures
