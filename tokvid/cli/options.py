"""What commands share: their form, and their common arguments. Imports nothing slow."""

import abc
import argparse
import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tokvid.config import GUIDANCE, Sampling, Scheme
from tokvid.errors import UserError
from tokvid.input_pipeline.encoded import head_of
from tokvid.io.files import SHEET_SUFFIXES, VIDEO_SUFFIXES, Outputs, named_path
from tokvid.io.urls import URL, is_url
from tokvid.io.worlds import SHIPPED, WORLDS, weights_named

LARGEST_SCALE = 1000  # of a LoRA's update
METAVARS = {int: "N", float: "X", str: "TEXT"}
FIELDS = "Any field of the recipe (see tokvid/config.py) can be set: --train_tokenizer.steps 100, --data.fps 2 4 8, …"


class Command(abc.ABC):
    """A command: its name, help, arguments and work. To add one: a subclass, and its place in `main.COMMANDS`."""

    name: str
    help: str  # one line in the list of commands
    details: str = ""  # more sentences for its own --help
    epilog: str = ""
    sets_fields = False  # whether it takes a recipe's fields, too: they are in `options.fields`
    large_arrays = False  # whether it allocates and frees large arrays again and again, as training does
    less_memory = "use smaller videos, or fewer at a time"  # what to do where memory is short

    def add_to(self, commands: "argparse._SubParsersAction[Any]", outputs: Outputs) -> None:
        """Makes its parser among those of the other commands."""
        description = f"{self.help[0].upper()}{self.help[1:]}. {self.details}"
        epilog = f"{self.epilog} {FIELDS}" if self.sets_fields else self.epilog
        parser = commands.add_parser(self.name, help=self.help, description=description, epilog=epilog)
        self.arguments(parser, outputs)

    @abc.abstractmethod
    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        """Declares its arguments; what it writes has a type of `outputs`."""

    def joins(self, options: argparse.Namespace) -> bool:
        """Whether it shares its work with other processes, each of which computes for itself."""
        return False

    @abc.abstractmethod
    def run(self, options: argparse.Namespace) -> None:
        """Does the work. Imports what it needs here, so that no other command waits for it."""


def readable(text: str) -> URL | Path:
    """The type of what is read; a URL stays one until the command runs and fetches it."""
    return URL(text) if is_url(text) else named_path(text)


class Once(argparse.Action):
    """The action of an option of which there can be one only; usually, the last one counts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if getattr(namespace, self.dest) != self.default:
            several = "; `tokvid story` takes several prompts" if option_string == "--prompt" else ""
            parser.error(f"argument {option_string}: there can be one only{several}")
        setattr(namespace, self.dest, values)


def footage(text: str) -> URL | Path:
    """The type of a video or picture; refuses a path without a file before any weights are loaded."""
    if isinstance(path := readable(text), Path):
        try:
            head_of(path)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return path


def weights(text: str) -> URL | Path:
    """The type of weights: a name of WORLDS, or what is readable."""
    return weights_named(readable(text))


def lora(text: str) -> tuple[URL | Path, float]:
    """The type of a LoRA, FILE or FILE:SCALE."""
    file, scale = _with_factor(text, readable, 1.0)
    if not abs(scale) <= LARGEST_SCALE:
        raise argparse.ArgumentTypeError(f"the scale of {file} should be at most {LARGEST_SCALE}, got {scale:g}")
    return file, scale


def averaged(text: str) -> tuple[URL | Path, float]:
    """The type of weights to average with, NAME or NAME:SHARE."""
    return _with_factor(text, weights, 0.5)


def averaged_lora(text: str) -> tuple[URL | Path, float]:
    """The type of a LoRA to average with, FILE or FILE:SHARE."""
    return _with_factor(text, readable, 0.5)


def _with_factor(text: str, read: Callable[[str], URL | Path], otherwise: float) -> tuple[URL | Path, float]:
    name, colon, factor = text.rpartition(":")
    try:
        return (read(name), float(factor)) if colon and not Path(text).exists() else (read(text), otherwise)
    except ValueError as error:
        if Path(name).exists():
            raise argparse.ArgumentTypeError(f"what follows {name}: should be a number, got {factor!r}") from error
        return read(text), otherwise  # a colon of the name


def weights_arguments(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """--weights and --mesh; returns their group."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        type=weights,
        default=SHIPPED,
        metavar="NAME",
        help=f"trained weights: {' or '.join(WORLDS)}, which come with tokvid; a folder, as the --workdir of a "
        "training; or a URL, as hf://USER/NAME (default shapes)",
    )
    mesh_argument(group, "(default: one device)")
    return group


def models_arguments(parser: argparse.ArgumentParser) -> None:
    """--weights, --mesh and --lora, for `models_of`."""
    group = weights_arguments(parser)
    added = "a LoRA to add, trained with --train_transformer.lora; SCALE multiplies it (default 1); may be repeated"
    group.add_argument("--lora", type=lora, action="append", metavar="FILE[:SCALE]", help=added)


def mesh_argument(parser: "argparse._ActionsContainer", default: str) -> None:
    """--mesh."""
    parser.add_argument(
        "--mesh",
        type=int,
        nargs=4,
        metavar=("DATA", "FSDP", "TENSOR", "CONTEXT"),
        help="number of devices for data parallelism, fully sharded parameters, tensor and context parallelism; "
        f"-1: all that remain {default}",
    )


def video_arguments(parser: argparse.ArgumentParser, outputs: Outputs, out: str) -> None:
    """What a command takes that makes a video with the transformer, all but --fps."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=_video(outputs),
        default=out,
        metavar="FILE",
        help=f"video to write, .mp4 or .gif; an older one is replaced (default {out})",
    )
    group.add_argument(
        "--sheet",
        type=outputs.file(*SHEET_SUFFIXES),
        metavar="FILE",
        help="also write a contact sheet, a .png with some of the frames side by side",
    )
    audio = "sound to join to the video (.mp4 only): a .wav, .mp3, …, cut off or repeated to the video's length"
    group.add_argument("--audio", type=readable, metavar="FILE", help=audio)
    scale_argument(group)
    text = parser.add_argument_group("guidance", "how strongly the video follows its prompt")
    guidance_argument(text)
    last = "guidance scale at the end of each prompt, reached linearly from --guidance (default: no change)"
    text.add_argument("--last-guidance", type=float, metavar="X", help=last)
    text.add_argument("--negative", metavar="TEXT", help="negative prompt: what should not be seen (default: none)")
    sampling_arguments(parser)
    models_arguments(parser)


def _video(outputs: Outputs) -> Callable[[str], Path]:
    """The type of a video to write."""
    checked = outputs.file(*VIDEO_SUFFIXES)

    def read(text: str) -> Path:
        if text.lower().endswith(SHEET_SUFFIXES):
            raise argparse.ArgumentTypeError(
                f"{text} is a picture; give a video's name, .mp4 or .gif, and --sheet {text} for some of its frames"
            )
        return checked(text)

    return read


def scale_argument(parser: "argparse._ActionsContainer") -> None:
    """--scale; 0: not given."""
    scale = "enlarge every pixel N times, 1 to 64 (default: until the shorter side has 256 pixels or more)"
    parser.add_argument("--scale", type=int, default=0, metavar="N", help=scale)


def guidance_argument(parser: "argparse._ActionsContainer") -> None:
    """--guidance."""
    scale = f"classifier-free guidance scale; 1 disables guidance, more follows the text more (default {GUIDANCE:g})"
    parser.add_argument("--guidance", type=float, metavar="X", help=scale)


def sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `Sampling`; None: not given."""
    group = parser.add_argument_group(
        "sampling",
        "how tokens are sampled; a grid of tokens, a latent frame, stands for one or a few frames of the video",
    )
    hints = typing.get_type_hints(Sampling)
    for field in dataclasses.fields(Sampling):
        default = "" if field.default is None else f" (default {field.default})"
        text = f"{field.metadata['help']}{default}".replace("%", "%%")
        group.add_argument(flag(field.name), help=text, **_read_as(hints[field.name]))


def _read_as(hint: Any) -> dict[str, Any]:
    """What `add_argument` needs for a field of this type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is Literal:
        return {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) is types.UnionType:  # T | None
        return _read_as(typing.get_args(hint)[0])
    return {"type": hint, "metavar": METAVARS[hint]}


def scheme_argument(parser: argparse.ArgumentParser) -> None:
    """--scheme."""
    parser.add_argument(
        "--scheme",
        choices=typing.get_args(Scheme),
        help="hierarchical: keyframes at a low frame rate first, then the frames between them; one-level: all frames "
        "in order (default: hierarchical if the weights were trained for it)",
    )


def larger_argument(parser: argparse._ActionsContainer, only: str = "") -> None:
    """--larger; `only`: begins its help with the tasks that it is for."""
    larger = (
        f"{only}N times as high and wide as the weights' videos: what stands still keeps the detail of the picture or "
        "video that is given (default 1)"
    )
    parser.add_argument("--larger", type=int, default=1, metavar="N", help=larger)


def draws_argument(parser: argparse._ActionsContainer, only: str = "", default: int | None = 1) -> None:
    """--draws; `only`: begins its help with the evaluation that it is for."""
    draws = (
        f"{only}how often new frames are drawn: the mean of several draws, by default at temperature 1, is nearer to "
        "the truth, and takes longer (default 1, greedily)"
    )
    parser.add_argument("--draws", type=int, default=default, metavar="N", help=draws)


def size_argument(parser: argparse.ArgumentParser, help: str) -> None:
    """--size, of frames."""
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=help)


def later_codes_argument(parser: argparse.ArgumentParser, only: str = "") -> None:
    """--later-codes; `only`: begins its help with the evaluation that it is for."""
    parser.add_argument(
        "--later-codes",
        type=int,
        metavar="N",
        help=f"{only}sub-codes that a token has after the first frame, 0 for all (default: the weights')",
    )


def rate_argument(parser: argparse.ArgumentParser, clip: str, otherwise: str = "") -> None:
    """--fps of a video that is made from another one, `clip`; None: not given. `otherwise`: the default without it."""
    own = f"{clip}'s own, within those that the weights were trained on"
    rate = f"frames per second of the output, at which {clip} is read, too (default: {otherwise}{own})"
    parser.add_argument("--fps", type=float, metavar="X", help=rate)


def prompt_argument(parser: argparse.ArgumentParser, what: str = "what the video shows") -> None:
    """--prompt of a video that is made from another one, which says `what`."""
    parser.add_argument("--prompt", action=Once, default="", help=f"{what} (default: no prompt)")


def seed_argument(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """--seed; None: not given, of a story, which may have its own."""
    parser.add_argument("--seed", type=int, default=default, metavar="N", help="random seed (default 0)")


def recipe_arguments(parser: argparse.ArgumentParser, outputs: Outputs) -> None:
    """The recipe and --workdir."""
    config_argument(parser)
    parser.add_argument(
        "--workdir",
        type=outputs.folder,
        required=True,
        metavar="FOLDER",
        help="folder of this training run: checkpoints, logs, tokens, weights; the same for all three steps",
    )


def config_argument(parser: argparse.ArgumentParser) -> None:
    """The recipe."""
    recipe = "recipe: a Python file with the settings of the data, both models and their training, as those in configs/"
    parser.add_argument("config", type=readable, metavar="CONFIG.py", help=recipe)


def processes_arguments(
    parser: argparse.ArgumentParser, how: str = "with one --workdir on a shared file system"
) -> None:
    """How several processes become one job."""
    group = parser.add_argument_group(
        "several processes", f"for work on several machines: start the same command on each, {how}"
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="let JAX find the other processes, as on TPU VMs (on SLURM, Open MPI and GKE it does so anyway)",
    )
    group.add_argument(
        "--coordinator", default="", metavar="HOST:PORT", help="address at which process 0 listens, given to all"
    )
    group.add_argument("--processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process", type=int, metavar="I", help="index of this process, from 0 to N-1")


def flag(name: str) -> str:
    """last_guidance → --last-guidance"""
    return f"--{name.replace('_', '-')}"
