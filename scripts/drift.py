"""How continuations of real clips change over a minute: sharpness, colour, motion and distance, for several weights.

    python scripts/drift.py --weights robots runs/earlier --data runs/robots/data \\
        --json drift.json --figure drift.png --sheet drift_sheet.png

The first three latent frames of held-out clips are continued with their captions, at one level. For each part of the
videos: fine detail relative to that of the given frames; the distance of the mean colour from theirs, in grey levels;
motion energy relative to that of the real clips; and the distance of features from the real clips', in their standard
deviations. "real" has the real clips after their given frames.
"""

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from tokvid import weights
from tokvid.config import DataConfig, Sampling
from tokvid.evaluate.batches import EVALUATION_SEED, Settings
from tokvid.evaluate.reconstruction import some_clips, split_of
from tokvid.io.files import Outputs, write_json
from tokvid.io.media import contact_sheet
from tokvid.io.settings import from_dict
from tokvid.metrics.features import load_features
from tokvid.metrics.video import detail
from tokvid.sampling.codec import encode_clips, frames_of
from tokvid.sampling.levels import videos
from tokvid.sampling.models import load_models
from tokvid.sampling.prompts import Guidance, make_prompt

GIVEN = 3  # latent frames
REAL = 3.0  # seconds of the real clips
SHOWN = 4  # clips on the sheet
FEATURES = load_features("random-convolutions")


def held_out(options: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """Real clips (B, T, H, W, 3) of REAL seconds, and their captions."""
    about = weights.describe(weights.find(options.weights[0]) / "tokenizer", "tokenizer")
    data = from_dict(DataConfig, about["data"], "the tokenizer's data")
    frames = 1 + round(REAL * options.fps)
    data = dataclasses.replace(data, path=str(options.data), frames=frames, fps=(options.fps,))
    clips = list(some_clips(data, split_of(data), options.clips, np.random.default_rng([EVALUATION_SEED, 0])))
    return np.stack([clip for clip, _ in clips]), [captions[0].text for _, captions in clips]


def continued(name: str, real_BTHWC: np.ndarray, captions: list[str], options: argparse.Namespace) -> np.ndarray:
    """The clips' beginnings, continued to `seconds` by the weights of this name."""
    models = load_models(weights.find(name))
    known = encode_clips(models.tokenizer, real_BTHWC)[:, :GIVEN]
    frames = frames_of(GIVEN, models.temporal_patch) + round(options.seconds * options.fps)
    settings = Settings(sampling=Sampling(temperature=options.temperature, top_p=options.top_p))
    prompt = make_prompt(models, captions, np.arange(len(captions)), Guidance(options.guidance))
    parts = videos(models, [prompt], settings.levels(models, [options.fps], frames), known)
    return np.concatenate(list(parts), axis=1)[:, :frames]


def motion(video_BTHWC: np.ndarray) -> float:
    return float(np.abs(np.diff(video_BTHWC.astype(np.float32), axis=1)).mean())


def compared(part_BTHWC: np.ndarray, given_BTHWC: np.ndarray, real_BTHWC: np.ndarray) -> dict[str, float]:
    """The figures of one part of all videos."""
    fine, before = (np.mean([detail(video_THWC) for video_THWC in some]) for some in (part_BTHWC, given_BTHWC))
    colour_BC = part_BTHWC.mean(axis=(1, 2, 3)) - given_BTHWC.mean(axis=(1, 2, 3))
    real_BD = FEATURES.extract(real_BTHWC)
    apart_BD = (FEATURES.extract(part_BTHWC) - real_BD) / (real_BD.std(axis=0) + 1e-6)
    return {
        "detail": float(fine / before),
        "colour": float(np.abs(colour_BC).mean()),
        "motion": motion(part_BTHWC) / motion(real_BTHWC),
        "distance": float(np.sqrt(np.square(apart_BD).mean(axis=-1)).mean()),
    }


def figure(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    names = ("detail", "colour", "motion", "distance")
    fig, all_axes = plt.subplots(1, len(names), figsize=(13, 3.2))
    for axes, name in zip(all_axes, names, strict=True):
        for label, rows in found.items():
            if label == "real":
                axes.axhline(rows[0][name], color="grey", ls="--", label=label)
            else:
                axes.plot([row["second"] for row in rows], [row[name] for row in rows], "o-", ms=3, label=label)
        axes.set(title=name, xlabel="seconds", ylim=(0, None))
        axes.grid(alpha=0.3)
    all_axes[0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=100)


def main() -> None:
    outputs = Outputs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fps", type=float, default=4.0)
    parser.add_argument("--part", type=float, default=3.0, help="seconds that are measured at once")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.99)
    parser.add_argument("--json", type=outputs.file(".json"))
    parser.add_argument("--figure", type=outputs.file(".png"))
    parser.add_argument("--sheet", type=outputs.file(".png"))
    options = parser.parse_args()
    if options.figure and not importlib.util.find_spec("matplotlib"):
        parser.error("--figure needs matplotlib: pip install matplotlib")
    real, captions = held_out(options)
    found: dict[str, list[dict[str, Any]]] = {}
    rows, labels, part = [], [], round(options.part * options.fps)
    for name in options.weights:
        video = continued(name, real, captions, options)
        given, new = np.split(video, [video.shape[1] - round(options.seconds * options.fps)], axis=1)
        if not found:
            found["real"] = [
                {"second": REAL / 2, **compared(real[:, given.shape[1] :], real[:, : given.shape[1]], real)}
            ]
        found[name] = [
            {"second": (first + part / 2) / options.fps, **compared(new[:, first : first + part], given, real)}
            for first in range(0, new.shape[1] - part + 1, part)
        ]
        rows += list(video[:SHOWN])
        labels += [f"{name}: {caption}" for caption in captions[:SHOWN]]
    for name, each in found.items():
        for row in each:
            print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    if options.json:
        write_json(options.json, found)
    if options.figure:
        figure(found, options.figure)
    if options.sheet:
        contact_sheet(options.sheet, rows, captions=labels, columns=10)


if __name__ == "__main__":
    main()
