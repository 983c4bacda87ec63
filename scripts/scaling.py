"""How the held-out loss falls with compute: trains transformers of several sizes on the same tokens, and fits a law.

    python scripts/scaling.py configs/shapes64.py --tokens runs/shapes64 --workdir runs/scaling \\
        --json docs/scaling.json --figure docs/scaling.png

Learning rates are constant, and the held-out loss is that of averaged weights. The law is Chinchilla's, L = E + A/N^a +
B/D^b for N parameters and D windows (Hoffmann et al. 2022), fitted to all sizes but the largest, which it then
predicts. Then two sizes are trained for `--short` steps with each of several learning rates, to see whether the best
one stays. Runs that are there are resumed, or not repeated. Other options go to `tokvid train transformer`.
"""

import argparse
import importlib.util
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

from tokvid import weights
from tokvid.io.files import Outputs, write_json


class Size(NamedTuple):
    """Fields of `TransformerConfig`."""

    width: int
    layers: int
    heads: int
    mlp: int
    head_width: int


SIZES = (Size(64, 3, 2, 176, 64), Size(96, 4, 3, 256, 96), Size(160, 5, 5, 448, 128), Size(256, 8, 8, 704, 192))
SWEPT = SIZES[0], SIZES[2]
RATES = (1e-3, 4e-3, 1.6e-2)
POINTS = 12  # held-out losses of each run
HUBER = 1e-3  # where the loss of log L turns from squared to absolute, as in the paper
LEAST_STEP = 150  # the first steps, under warm-up, follow no law


class Point(NamedTuple):
    """A held-out loss in nats per token, after D windows of a model with N parameters."""

    parameters: float
    windows: float
    compute: float
    loss: float


class Run(NamedTuple):
    """A transformer that was trained: its number of parameters, FLOPs per window, and metrics."""

    parameters: int
    flops: float
    metrics: list[dict[str, Any]]

    def points(self, batch: int) -> list[Point]:
        """The held-out losses."""
        return [
            Point(self.parameters, row["step"] * batch, row["step"] * batch * self.flops, row["val_loss"])
            for row in self.metrics
            if "val_loss" in row and row["step"] >= LEAST_STEP
        ]


def link_inputs(workdir: Path, folder: Path, tokens: bool = True) -> None:
    """Links what a transformer is trained on into another workdir: the tokenizer, the text model and, maybe, tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in workdir.iterdir():
        if path.name in ("tokenizer", "text.model") or (tokens and path.name.startswith("tokens")):
            link = folder / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())


def train(options: argparse.Namespace, size: Size, name: str, **fields: Any) -> Run:
    """Trains a transformer of this size on the tokens there are; `fields` are those of `TrainConfig`."""
    folder = options.workdir / name
    link_inputs(options.tokens, folder)
    steps = fields["steps"]
    fields |= {"val_every": max(1, steps // POINTS), "sample_every": 10 * steps, "batch": options.batch}
    flags = {f"transformer.{field}": value for field, value in size._asdict().items()}
    flags |= {"transformer.kv_heads": size.heads}
    flags |= {f"train_transformer.{field}": value for field, value in fields.items()}
    command = [sys.executable, "-m", "tokvid", "train", "transformer", str(options.config), "--workdir", str(folder)]
    command += [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
    subprocess.run(command + options.more, check=True)
    return read(folder / "transformer")


def read(folder: Path) -> Run:
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    flops = [row["flops_per_second"] / row["clips_per_second"] for row in metrics if row.get("flops_per_second")]
    parameters = weights.parameter_count(weights.load(folder, "transformer").params)
    return Run(parameters, float(np.median(flops)), metrics)


def fit(known: list[Point]) -> np.ndarray:
    """E, A, a, B and b of the law, which minimise Huber's loss of log L, from several starts."""
    logs = np.log([[point.parameters, point.windows, point.loss] for point in known]).T

    def error(law: np.ndarray) -> float:
        e, a, alpha, b, beta = law
        n, d, loss = logs
        apart = np.logaddexp.reduce([np.full_like(n, e), a - alpha * n, b - beta * d]) - loss
        return float(np.where(np.abs(apart) < HUBER, apart**2 / 2, HUBER * (np.abs(apart) - HUBER / 2)).sum())

    starts = itertools.product((-2.0, 0.0), (0.0, 5.0), (0.3, 0.8), (0.0, 5.0), (0.3, 0.8))
    how = {"method": "Nelder-Mead", "options": {"maxiter": 20_000, "maxfev": 20_000, "fatol": 1e-12}}
    e, a, alpha, b, beta = min((minimize(error, start, **how) for start in starts), key=lambda found: found.fun).x
    return np.array([math.exp(e), math.exp(a), alpha, math.exp(b), beta])


def predicted(law: np.ndarray, point: Point) -> float:
    """The loss by the law."""
    e, a, alpha, b, beta = law
    return float(e + a / point.parameters**alpha + b / point.windows**beta)


def figure(runs: list[list[Point]], law: np.ndarray, swept: dict[str, dict[str, float]], path: Path) -> None:
    """Losses against compute, with the law's; and against learning rates."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for number, points in enumerate(runs):
        compute = [point.compute for point in points]
        label = f"{points[0].parameters / 1e6:.1f} M parameters"
        (line,) = left.plot(compute, [point.loss for point in points], "o", ms=4, label=label)
        style = "--" if number == len(runs) - 1 else "-"
        left.plot(compute, [predicted(law, point) for point in points], style, color=line.get_color())
    left.plot([], [], "k-", label="law, fitted")
    left.plot([], [], "k--", label="law, predicted")
    left.set(xscale="log", yscale="log", xlabel="FLOPs of training", ylabel="held-out loss, nats per token")
    left.yaxis.set_major_formatter("{x:.1f}")
    left.yaxis.set_minor_formatter("{x:.1f}")
    left.xaxis.set_minor_formatter("")
    for name, losses in swept.items():
        right.plot([float(rate) for rate in losses], list(losses.values()), "o-", ms=4, label=f"width {name}")
    right.set(xscale="log", xlabel="learning rate", ylabel="held-out loss, nats per token")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    fig.tight_layout()
    fig.savefig(path, dpi=80)


def main() -> None:
    outputs = Outputs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--tokens", type=Path, required=True, help="workdir with tokenizer, tokens and text model")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs=len(SIZES), default=(3600, 2400, 1200, 480), help="of each size")
    parser.add_argument("--short", type=int, default=240, help="steps with each learning rate")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=outputs.file(".json"))
    parser.add_argument("--figure", type=outputs.file(".png"))
    options, options.more = parser.parse_known_args()
    if options.figure and not importlib.util.find_spec("matplotlib"):
        parser.error("--figure needs matplotlib: pip install matplotlib")
    how = {"schedule": "stable", "decay": 0.0, "ema": 0.98}
    runs = [
        train(options, size, f"width{size.width}", steps=steps, **how).points(options.batch)
        for size, steps in zip(SIZES, options.steps, strict=True)
    ]
    swept: dict[str, dict[str, float]] = {}
    for size in SWEPT:
        losses = swept.setdefault(str(size.width), {})
        for rate in RATES:
            how = {"steps": options.short, "learning_rate": rate, "schedule": "stable", "decay": 0.4, "ema": 0.9}
            run = train(options, size, f"width{size.width}_rate{rate:g}", **how)
            losses[f"{rate:g}"] = [row["val_loss"] for row in run.metrics if "val_loss" in row][-1]
    law = fit([point for points in runs[:-1] for point in points])
    errors = [[abs(predicted(law, point) / point.loss - 1) for point in points] for points in runs]
    result = {
        "rates": swept,
        "law": dict(zip(("E", "A", "a", "B", "b"), law.tolist(), strict=True)),
        "mean_error_of_fit": float(np.mean([error for each in errors[:-1] for error in each])),
        "mean_error_of_prediction": float(np.mean(errors[-1])),
        "error_at_the_end": predicted(law, runs[-1][-1]) / runs[-1][-1].loss - 1,
        "runs": [[point._asdict() for point in points] for points in runs],
    }
    if options.json:
        write_json(options.json, result)
    if options.figure:
        figure(runs, law, swept, options.figure)
    print(json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=2))


if __name__ == "__main__":
    main()
