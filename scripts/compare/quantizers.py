"""Compares every quantizer with every layer order after the same training, in a table.

python scripts/compare/quantizers.py --data runs/clips/data --out runs/quantizers

All train on the same clips in the same order, with equal steps, codes (4096) and layers, and are evaluated on the same
held-out clips. Writes table.md and, per row, the training folder and figures; a second run resumes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tokvid import weights
from tokvid.config import DataConfig, Recipe, TokenizerConfig, TrainConfig
from tokvid.evaluate.reconstruction import evaluate_reconstruction
from tokvid.io.files import Outputs, read_json, write_json, write_text
from tokvid.metrics.features import load_features
from tokvid.train.loop import train
from tokvid.train.tokenizer_step import TokenizerTraining

QUANTIZERS: dict[str, dict[str, Any]] = {
    "FSQ": {"quantizer": "fsq", "levels": (8, 8, 8, 8)},
    "VQ": {"quantizer": "vq", "codes": 4096},
    "LFQ": {"quantizer": "lfq", "codes": 4096},
}
ORDERS = {  # eight layers each
    "space², time² | time², space² (Phenaki)": (("space",) * 2 + ("time",) * 2, ("time",) * 2 + ("space",) * 2),
    "(space, time)² | (space, time)²": (("space", "time") * 2, ("space", "time") * 2),
    "space, time | (space, time)³": (("space", "time"), ("space", "time") * 3),
}
COLUMNS = ("psnr", "ssim", "codes_used", "perplexity")


def row(options: argparse.Namespace, quantizer: str, order: str) -> dict[str, Any]:
    """Trains and evaluates one combination, or reads what it came to before."""
    folder = options.out / f"{quantizer}-{list(ORDERS).index(order)}"
    if (folder / "figures.json").exists():
        return read_json(folder / "figures.json", "figures")
    size = (options.size, options.size)
    data = DataConfig("records", str(options.data), held_out=40, size=size, frames=7, fps=(2.0, 4.0), threads=1)
    encoder, decoder = ORDERS[order]
    tokenizer = TokenizerConfig(
        size=size, patch=8, width=128, heads=4, mlp=384, encoder=encoder, decoder=decoder, **QUANTIZERS[quantizer]
    )
    training = TrainConfig(
        steps=options.steps,
        batch=4,
        optimizer="muon",
        learning_rate=3e-3,
        warmup=50,
        ema=0.99,
        save_every=0,
        sample_every=0,
    )
    train(TokenizerTraining(Recipe(data=data, tokenizer=tokenizer, train_tokenizer=training)), training, folder)
    found = evaluate_reconstruction(
        weights.load(folder, "tokenizer"),
        data,
        40,
        seed=0,
        features=load_features("random-convolutions"),
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(line["clips_per_second"] / training.batch for line in lines if "clips_per_second" in line)
    found["steps_per_second"] = rates[len(rates) // 2]
    write_json(folder / "figures.json", found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what `tokvid data folder` wrote; 40 are kept out")
    parser.add_argument("--out", type=Outputs().folder, required=True, help="a folder")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    names = (*COLUMNS, "steps_per_second")
    lines = [f"| quantizer | encoder \\| decoder | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for order in ORDERS:
        for quantizer in QUANTIZERS:
            found = row(options, quantizer, order)
            shown = order.replace("|", "\\|")
            lines.append(f"| {quantizer} | {shown} | {' | '.join(f'{found[name]:.4g}' for name in names)} |")
            print(lines[-1], flush=True)
            write_text(options.out / "table.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
