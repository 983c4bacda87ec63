"""Trains a transformer in three stages: pictures, all clips, the best clips (Blattmann et al. 2023); measures each.

    python scripts/three_stages.py configs/robots.py --tokens runs/robots --clips runs/robots/clips --held-out 96 \\
        --workdir runs/stages --json runs/stages/stages.json

`--tokens` is a workdir with a tokenizer, its tokens of all clips, and a text model; `--clips` is the folder of these
clips, of which the last `--held-out` stay out. `tokvid data curate` finds the best ones. Beside the three stages, two
controls train as long, one without pictures and one with all clips to the end. Each stage and each control is measured
with `tokvid evaluate generation` on the same held-out clips. What is there is resumed, or not repeated. Other options
go to `tokvid train transformer`.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from scaling import link_inputs

from tokvid.config import Recipe, load_recipe
from tokvid.io.files import Outputs, write_json
from tokvid.tasks.tasks import TASKS

TRAINING, BEST = "training_clips", "best_clips"
FIGURES = ("frechet", "distance", "motion", "psnr_1s")


class Stage(NamedTuple):
    """A training of the transformer from the weights of `start` ("": random ones), on all clips or the best ones."""

    name: str
    start: str
    stage: int  # whose steps it takes; a control without pictures takes those of two stages
    best: bool = False
    pictures: bool = False


STAGES = (
    Stage("pictures", "", 0, pictures=True),
    Stage("clips", "pictures", 1),
    Stage("best", "clips", 2, best=True),
    Stage("clips_to_the_end", "clips", 2),
    Stage("no_pictures", "", 1),
)


def run(*command: object) -> None:
    """A command of tokvid."""
    subprocess.run([sys.executable, "-m", "tokvid", *map(str, command)], check=True)


def count(folder: Path) -> int:
    """The clips of a folder."""
    return len((folder / "captions.jsonl").read_text(encoding="utf-8").splitlines())


def best_clips(options: argparse.Namespace, recipe: Recipe) -> Path:
    """The dataset of the best training clips, in the size of the recipe's stored frames."""
    lines = (options.clips / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    lines = lines[: len(lines) - options.held_out]
    training, best, dataset = (options.workdir / name for name in (TRAINING, BEST, "best_data"))
    if dataset.exists():
        return dataset
    for line in lines:
        name = json.loads(line)["file"]
        (training / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.clips / name, training / name)
    (training / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not best.exists():
        run("data", "curate", training, "--out", best, "--keep", options.keep)
    size = [math.ceil(side * recipe.data.zoom) for side in recipe.data.size]
    run("data", "folder", best, "--out", dataset, "--size", *size, "--fps", max(recipe.data.fps))
    return dataset


def train(options: argparse.Namespace, recipe: Recipe, stage: Stage, dataset: Path) -> Path:
    """The workdir of the trained stage."""
    folder: Path = options.workdir / stage.name
    link_inputs(options.tokens, folder, tokens=not stage.best)
    steps = options.steps[stage.stage] + (0 if stage.start or stage.pictures else options.steps[0])
    flags = [f"--train_transformer.steps={steps}"]
    if stage.start:
        flags += [f"--train_transformer.start={options.workdir / stage.start}"]
    if stage.best:
        training, best = (count(options.workdir / name) for name in (TRAINING, BEST))
        flags += [f"--data.path={dataset}", "--data.held_out=0", "--train_transformer.val_every=0"]
        flags += [f"--tokens.videos={recipe.tokens.videos * best // training}"]
        if not (folder / "tokens").exists():
            run("tokenize", options.config, "--workdir", folder, *options.more, *flags)
    if stage.pictures:
        videos = [task for task in recipe.layouts.tasks if TASKS[task].conditions]
        flags += ["--layouts.lengths=1", *(f"--layouts.tasks.{task}=0" for task in videos)]
    run("train", "transformer", options.config, "--workdir", folder, *options.more, *flags)
    return folder


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """The figures of a workdir's weights."""
    path = folder / "generation.json"
    if not path.exists():
        how = ["--samples", options.samples, "--seconds", options.seconds, "--fps", options.fps, "--guidance", 1.5]
        sheet = ["--sheet", folder / "generation.png", "--json", path]
        run("evaluate", "generation", "--weights", folder, *how, "--temperature", 1, *sheet)
    figures = json.loads(path.read_text())
    return {task: {name: figures[task][name] for name in FIGURES} for task in ("text", "first_frame")} | {
        "likelihood": {"bits_per_pixel": figures["bits_per_pixel"], "retrieval": figures["caption_retrieval"]}
    }


def main() -> None:
    outputs = Outputs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--tokens", type=Path, required=True, help="workdir with tokenizer, tokens and text model")
    parser.add_argument("--clips", type=Path, required=True, help="folder of the clips, with captions.jsonl")
    parser.add_argument("--held-out", type=int, required=True, help="clips at the end that stay out, as data.held_out")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--keep", default="faults == 0", help="the best clips, a filter of data curate")
    parser.add_argument("--steps", type=int, nargs=3, default=(600, 600, 300), help="of each stage")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--fps", type=float, default=4)
    parser.add_argument("--json", type=outputs.file(".json"))
    options, options.more = parser.parse_known_args()
    recipe = load_recipe(options.config, options.more)
    dataset = best_clips(options, recipe)
    figures = {}
    for stage in STAGES:
        figures[stage.name] = measure(options, train(options, recipe, stage, dataset))
        print(json.dumps({stage.name: figures[stage.name]}), flush=True)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
