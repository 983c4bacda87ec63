"""Model quality, measured: `tokvid evaluate`."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokvid.cli.option_values import SAMPLING, check_effects, models_of, refuse, sampling_of
from tokvid.cli.options import (
    Command,
    draws_argument,
    guidance_argument,
    later_codes_argument,
    models_arguments,
    processes_arguments,
    readable,
    sampling_arguments,
    scheme_argument,
    seed_argument,
    size_argument,
)
from tokvid.cli.printing import in_any_case, markdown, say, table
from tokvid.config import check_guidance, check_seed
from tokvid.errors import UserError
from tokvid.io.files import SHEET_SUFFIXES, Outputs, write_json, write_text

if TYPE_CHECKING:
    from tokvid.config import DataConfig
    from tokvid.evaluate.batches import Settings
    from tokvid.metrics.features import Features
    from tokvid.sampling.models import Models

Show = Callable[..., object]
TEXT, VIA_IMAGE = "text_to_video", "via_image"
SettingsOf = Callable[[str], "Settings"]  # of a task


class Evaluation(NamedTuple):
    """What `tokvid evaluate NAME` measures, the options of its own, and the function that does it."""

    help: str
    uses: frozenset[str]
    measure: Callable[[argparse.Namespace, SettingsOf, Show], dict[str, Any]]


def _shapes(options: argparse.Namespace, settings: SettingsOf, show: Show) -> dict[str, Any]:
    from tokvid.evaluate.shapes import evaluate_shapes
    from tokvid.evaluate.tasks import ALL, MEASURES, check_task, evaluate_tasks

    rates = options.fps or ()
    if options.task is None:
        refuse(options, ["sheet"], "is not for evaluate shapes; leave it out, or give a --task")
        models = _models(options, settings(TEXT))
        return evaluate_shapes(models, options.samples, options.seed, settings(TEXT), rates)
    check_task(options.task)
    models = _models(options, settings(TEXT if options.task == ALL else MEASURES[options.task].needs[0]))
    fps = _one_rate(options) if rates else None
    return evaluate_tasks(models, options.task, options.samples, options.seed, settings, fps, show)


def _reconstruction(options: argparse.Namespace, settings: SettingsOf, show: Show) -> dict[str, Any]:
    from tokvid import weights
    from tokvid.distributed import check_same
    from tokvid.evaluate.reconstruction import evaluate_reconstruction, with_later_codes

    tokenizer, data = weights.load(options.weights / "tokenizer", "tokenizer"), _data(options)
    check_same(tokenizer.about["fingerprint"])
    if options.later_codes is not None:
        tokenizer = with_later_codes(tokenizer, options.later_codes)
    if options.size is not None:
        data = dataclasses.replace(data, size=tuple(options.size))
    return evaluate_reconstruction(tokenizer, data, options.samples, options.seed, _features(options), show)


def _interpolation(options: argparse.Namespace, settings: SettingsOf, show: Show) -> dict[str, Any]:
    from tokvid.evaluate.interpolation import InterpolationSet, evaluate_interpolation

    data, factor = _data(options), 2 if options.factor is None else options.factor
    wanted = InterpolationSet(options.samples, factor, options.seed, _draws(options))
    how = settings("interpolation")
    return evaluate_interpolation(_models(options, how), data, wanted, how, show)


def _edits(options: argparse.Namespace, settings: SettingsOf, show: Show) -> dict[str, Any]:
    from tokvid.evaluate.batches import EvaluationSet
    from tokvid.evaluate.edits import ALL, MEASURES, check_edit, evaluate_edits

    name = options.task or ALL
    check_edit(name)
    data = _data(options)
    models = _models(options, settings(TEXT if name == ALL else MEASURES[name].task))
    fps = max(data.fps) if options.fps is None else _one_rate(options)
    wanted = EvaluationSet(options.samples, _seconds(options, 2.0), fps, options.seed)
    return evaluate_edits(models, data, name, wanted, settings, show)


def _mnist(options: argparse.Namespace, settings: SettingsOf, show: Show) -> dict[str, Any]:
    from tokvid.evaluate.mnist import evaluate_mnist

    if options.task not in (None, VIA_IMAGE):
        raise UserError(f"--task of evaluate mnist can be {VIA_IMAGE}, got {options.task!r:.80}")
    data = _trained_data(options)
    if options.data is not None:
        data = dataclasses.replace(data, path=str(options.data))
    via_image = options.task == VIA_IMAGE
    how = settings(TEXT)
    return evaluate_mnist(_models(options, how), data, options.samples, options.seed, how, show, via_image)


def _generation(options: argparse.Namespace, settings: SettingsOf, show: Show) -> dict[str, Any]:
    from tokvid.evaluate.batches import EvaluationSet
    from tokvid.evaluate.generation import evaluate_generation

    data = _data(options)
    models = _models(options, settings(TEXT))
    fps = max(data.fps) if options.fps is None else _one_rate(options)
    wanted = EvaluationSet(options.samples, _seconds(options, 3.0), fps, options.seed)
    return evaluate_generation(models, data, wanted, _features(options), settings(TEXT), show)


# In all processes of a job.
ALIKE = ("what", "samples", "seed", "task", "fps", "seconds", "factor", "draws", "features", "later_codes", "size")
SAMPLED = {"guidance", "lora", *SAMPLING}
EVALUATIONS = {
    "shapes": Evaluation(
        "clips generated from Moving Shapes prompts, or by one of the other tasks, whose attributes are read back from "
        "the pixels",
        frozenset({"fps", "scheme", "sheet", "task", *SAMPLED}),
        _shapes,
    ),
    "reconstruction": Evaluation(
        "the tokenizer alone: real clips encoded and decoded (PSNR, SSIM, …)",
        frozenset({"data", "features", "later_codes", "sheet", "size"}),
        _reconstruction,
    ),
    "interpolation": Evaluation(
        "frames generated between those of real clips, against the true ones; greedily and without guidance, unless "
        "--temperature or --guidance is given",
        frozenset({"data", "draws", "factor", "sheet", *SAMPLED}),
        _interpolation,
    ),
    "generation": Evaluation(
        "clips generated from the captions of real clips, against these clips",
        frozenset({"data", "features", "fps", "seconds", "sheet", "scheme", *SAMPLED}),
        _generation,
    ),
    "mnist": Evaluation(
        "clips generated from captions of Moving MNIST, along the axis that a digit was trained on and the other one, "
        "whose digit and motion are read back from the pixels",
        frozenset({"data", "scheme", "sheet", "task", *SAMPLED}),
        _mnist,
    ),
    "edits": Evaluation(
        "edits of real clips that should give the true ones: colours, a hidden box, the sides, twice the size",
        frozenset({"data", "fps", "seconds", "sheet", "task", *SAMPLED}),
        _edits,
    ),
}


class Evaluate(Command):
    """Figures of the weights, printed and written."""

    name = "evaluate"
    help = "measure model quality"
    details = " ".join(f"{name}: {evaluation.help}." for name, evaluation in EVALUATIONS.items())
    epilog = "Flags that do not apply to an evaluation are refused."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("what", choices=tuple(EVALUATIONS), help="what to measure, see above")
        parser.add_argument(
            "--samples", type=int, default=128, metavar="N", help="number of clips to measure (default 128)"
        )
        seed_argument(parser, 0)
        task = (
            "shapes: measure a task, see docs/tasks.md, zero_shot or via_image; edits: restyle, colourise, "
            "either with _from_first, inpaint, outpaint or upscale (default all); all: those that the weights know; "
            "mnist: via_image"
        )
        parser.add_argument("--task", metavar="NAME", help=task)
        parser.add_argument(
            "--data",
            type=readable,
            metavar="PATH",
            help="reconstruction, interpolation, generation, edits: dataset to measure on (default: the held-out part "
            "of the training data); mnist: the file of digits (default: the training's)",
        )
        parser.add_argument(
            "--fps",
            type=float,
            nargs="+",
            metavar="X",
            help="frames per second; shapes: one or more rates (default: all those trained on), generation, edits "
            "and --task: one rate (default: the highest trained on)",
        )
        parser.add_argument(
            "--seconds", type=float, metavar="X", help="generation, edits: duration of each clip in seconds (3, 2)"
        )
        parser.add_argument(
            "--factor",
            type=int,
            metavar="N",
            help="interpolation: keep every N-th frame and generate the others, N one of 2, 4, 8, … (default 2)",
        )
        draws_argument(parser, "interpolation: ", default=None)
        later_codes_argument(parser, "reconstruction: ")
        size_argument(
            parser, "reconstruction: size of the clips in pixels, also above that of training (default: the training's)"
        )
        parser.add_argument(
            "--features",
            metavar="NAME",
            help="reconstruction, generation: network that Fréchet and kernel distances are computed with; a name, an "
            "I3D's .safetensors file, for FVD, or a .py file that defines features() (default random-convolutions)",
        )
        scheme_argument(parser)
        guidance_argument(parser)
        group = parser.add_argument_group("output", "besides the table that is printed")
        sheet = "write a contact sheet (.png) of some of the clips; shapes: those of --task"
        group.add_argument("--sheet", type=outputs.file(*SHEET_SUFFIXES), metavar="FILE", help=sheet)
        group.add_argument("--json", type=outputs.file(), metavar="FILE", help="write the figures as JSON")
        group.add_argument("--markdown", type=outputs.file(), metavar="FILE", help="write them as a Markdown table")
        processes_arguments(
            parser, "which measures some of the batches of 32 clips; process 0 prints and writes the figures"
        )
        sampling_arguments(parser)
        models_arguments(parser)

    def joins(self, options: argparse.Namespace) -> bool:
        return True

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.distributed import check_same, first
        from tokvid.evaluate.batches import Settings, usual
        from tokvid.io.media import contact_sheet

        evaluation = EVALUATIONS[options.what]
        unused = frozenset().union(*(other.uses for other in EVALUATIONS.values())) - evaluation.uses
        refuse(options, sorted(unused), f"is not for evaluate {options.what}; leave it out")
        check_seed(options.seed)
        if options.guidance is not None:
            check_guidance(options.guidance)

        def settings(task: str) -> Settings:
            """The options, and the task's defaults."""
            begun = usual(task, _draws(options), options.temperature)
            guidance = begun.guidance if options.guidance is None else options.guidance
            return Settings(guidance, scheme=options.scheme, sampling=sampling_of(options, begun.sampling))

        check_same([str(getattr(options, name)) for name in ALIKE] + [dataclasses.asdict(settings(TEXT))])
        steps: list[Callable[[], object]] = []

        def show(rows: list[Any], **how: Any) -> None:
            if options.sheet is not None:
                steps.append(functools.partial(contact_sheet, options.sheet, rows, **how))

        figures = evaluation.measure(options, settings, show)
        if options.data is not None and "split" in figures:
            figures["split"] = str(options.data)
        if options.json is not None:
            steps.append(lambda: write_json(options.json, figures))
        if options.markdown is not None:
            steps.append(lambda: write_text(options.markdown, markdown(figures)))
        if first():
            in_any_case(lambda: say(table(figures)), *steps)


def _one_rate(options: argparse.Namespace) -> float:
    rates: list[float] = options.fps
    if len(rates) > 1:
        what = "--task" if options.what == "shapes" else f"evaluate {options.what}"
        raise UserError(f"{what} is measured at one rate; give one --fps, not {len(rates)}")
    return rates[0]


def _seconds(options: argparse.Namespace, usual: float) -> float:
    return usual if options.seconds is None else options.seconds


def _draws(options: argparse.Namespace) -> int:
    return 1 if options.draws is None else options.draws


def _models(options: argparse.Namespace, settings: "Settings") -> "Models":
    """The models; UserError for options that change nothing beside these settings."""
    from tokvid.distributed import check_same

    models = models_of(options)
    check_effects(settings.sampling, models, options)
    check_same(models.mark)
    return models


def _features(options: argparse.Namespace) -> "Features":
    from tokvid.metrics.features import load_features

    return load_features(options.features or "random-convolutions")


def _data(options: argparse.Namespace) -> "DataConfig":
    """The data that the tokenizer was trained on, or the clips of --data at its size and rates."""
    import jax

    from tokvid.distributed import check_same
    from tokvid.input_pipeline.sources import fingerprint

    data = _trained_data(options)
    if options.data is not None:
        path: Path = options.data
        source = "records" if (path / "dataset.json").is_file() else "folder"
        data = dataclasses.replace(data, source=source, path=str(path), held_out=0)
    if jax.process_count() > 1:
        check_same(fingerprint(data))
    return data


def _trained_data(options: argparse.Namespace) -> "DataConfig":
    from tokvid import weights
    from tokvid.config import DataConfig
    from tokvid.io.settings import from_dict

    about = weights.describe(options.weights / "tokenizer", "tokenizer")
    return from_dict(DataConfig, about["data"], "the tokenizer's data")
