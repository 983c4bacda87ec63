"""The decoding ladder: quality against tokens per second, from single tokens to whole latent frames in rounds.

python scripts/ladder.py --weights runs/rows --samples 128 --json ladder.json --figure ladder.png

Each rung generates the same clips of Moving Shapes with the same weights, in the ways that these were trained for
(`layouts.rows`). Tokens per second are medians of several runs
after compilation, for one video and for a batch of 8; ratios are relative to single tokens. Only the transformer is
timed: the tokenizer's decoder takes the same time on every rung.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from tokvid.config import GUIDANCE, Sampling
from tokvid.errors import UserError
from tokvid.evaluate.batches import Settings
from tokvid.evaluate.shapes import evaluate_shapes
from tokvid.io.files import Outputs, write_json
from tokvid.sampling.models import Models, load_models
from tokvid.sampling.prompts import Prompt
from tokvid.sampling.window import RollingWindow, window_ends
from tokvid.weights import find

PROMPT = "a large red circle moves slowly to the right"
LATENT_FRAMES = 32  # of the videos that are timed: 8 seconds


def rungs(models: Models) -> dict[str, Sampling]:
    """Every way in which these weights were trained to draw."""
    rows = sorted(set(models.transformer.about.get("layouts", {}).get("rows", [0])))
    height, found = models.transformer.config.latent[1], {}
    for number in rows:
        if number == height:
            found |= {
                f"latent frame, {rounds} round{'s' * (rounds > 1)}": Sampling(rows=number, rounds=rounds)
                for rounds in (1, 4, 8, 16)
            }
        else:
            found["row by row" if number == 1 else f"{number} rows" if number else "token by token"] = Sampling(
                rows=number
            )
    return found


def tokens_per_second(models: Models, sampling: Sampling, batch: int, runs: int = 5) -> float:
    """Of the transformer alone, with guidance, at one level, over all windows of videos of LATENT_FRAMES."""
    window, rows, columns = models.transformer.config.latent
    text_BL = np.tile(models.text.encode(PROMPT, models.transformer.config.text_length), (batch, 1))
    scale_B, took = np.full(batch, GUIDANCE), []
    prompt = Prompt(0.0, text_BL, np.full_like(text_BL, -1), np.arange(batch), scale_B, scale_B)
    for _ in range(runs + 1):
        began, rolling = time.perf_counter(), RollingWindow(models, batch, 8.0, sampling=sampling)
        for first, end in itertools.pairwise([0, *window_ends(0, LATENT_FRAMES, window, keep=2)]):
            rolling.extend(prompt, np.full((batch, end - first), GUIDANCE))
        took.append(time.perf_counter() - began)
    return batch * LATENT_FRAMES * rows * columns / statistics.median(took[1:])


def figure(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Joint accuracy against tokens per second."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise UserError("the figure needs matplotlib: pip install matplotlib") from error
    fig, axes = plt.subplots(figsize=(7, 4.5))
    for name, row in found.items():
        axes.plot(row["tokens_per_second"], row["joint"], "o")
        place = (row["tokens_per_second"], row["joint"])
        axes.annotate(name.replace(", ", "\n"), place, xytext=(0, 8), textcoords="offset points", ha="center")
    axes.margins(0.2)
    axes.set(xscale="log", xlabel="tokens per second, one video", ylabel="all attributes right")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    fig.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    outputs = Outputs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=find, default="shapes")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--json", type=outputs.file())
    parser.add_argument("--figure", type=outputs.file(".png"), help=".png")
    options = parser.parse_args()
    models, found = load_models(options.weights), {}
    for name, sampling in rungs(models).items():
        one, many = (tokens_per_second(models, sampling, batch) for batch in (1, 8))
        settings = Settings(scheme="one-level", sampling=sampling)
        figures = evaluate_shapes(models, options.samples, 0, settings)
        found[name] = {
            "tokens_per_second": one,
            "tokens_per_second_of_8": many,
            "joint": figures["attributes"]["joint"],
            "held_out": figures["held_out"]["joint"],
            "seam_ratio": figures["seam_ratio"],
        }
        first = next(iter(found.values()))
        ratios = [found[name][key] / first[key] for key in ("tokens_per_second", "tokens_per_second_of_8")]
        print(
            f"{name:26} {one:7.0f} tokens/s ({ratios[0]:.1f}x), of eight {many:7.0f} ({ratios[1]:.1f}x); "
            f"joint {found[name]['joint']:.3f}, unseen {found[name]['held_out']:.3f}",
            flush=True,
        )
        if options.json:
            write_json(options.json, found)
    if options.figure:
        figure(found, options.figure)


if __name__ == "__main__":
    main()
