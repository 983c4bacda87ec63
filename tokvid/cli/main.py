"""The `tokvid` command: reads arguments, calls `commands`, makes one line of a user's mistake. Imports nothing slow."""

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tokvid import __version__
from tokvid.cli.options import OF_RECIPES, SHIPPED
from tokvid.errors import Terminated, UserError, suggestion
from tokvid.io.files import SHEET_SUFFIXES, VIDEO_SUFFIXES, Outputs, named_path
from tokvid.io.urls import URL, is_url

LONGEST_LINE = 2000  # characters of an error


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, too."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}; see {self.prog} --help", 2)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = Parser(
        prog="tokvid",
        description="Text to video with discrete tokens: train it, tell long stories with it, measure it.",
        epilog="`tokvid COMMAND --help` tells more. The shipped weights are used unless --weights names others.",
    )
    top.add_argument("--version", action="version", version=f"tokvid {__version__}")
    outputs = Outputs()
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the shipped story from the shipped weights")
    demo.add_argument("--out", type=outputs.folder, default="demo", help="folder for the video, a sheet and a report")
    _weights(demo)

    story = commands.add_parser("story", help="a long video from a sequence of prompts")
    story.add_argument("file", nargs="?", type=_given, metavar="STORY.yaml", help="a story file; or give --prompt")
    story.add_argument("--prompt", action="append", default=[], help="one segment; repeat for the next ones")
    story.add_argument("--seconds", type=float, help="of each --prompt (default 4)")
    story.add_argument("--image", type=_given, help="the picture that the story begins with")
    _making(story, outputs, "story.mp4")

    generate = commands.add_parser("generate", help="one clip from one prompt")
    generate.add_argument("--prompt", required=True, help="may be empty: no text")
    generate.add_argument("--seconds", type=float, default=2.0, help="how long it is; with --video, how much is new")
    given = generate.add_mutually_exclusive_group()
    given.add_argument("--image", type=_given, help="the picture to begin with")
    given.add_argument("--video", type=_given, help="the video to go on from; its frames come first")
    _making(generate, outputs, "clip.mp4")

    extend = commands.add_parser("extend", help="go on from a video")
    extend.add_argument("video", type=_given, metavar="IN", help="its frames come first")
    extend.add_argument("--prompt", default="", help="what is to happen (default: no text)")
    extend.add_argument("--seconds", type=float, default=2.0, help="how much is new")
    _making(extend, outputs, "extended.mp4")

    interpolate = commands.add_parser("interpolate", help="more frames between those of a video")
    interpolate.add_argument("video", type=_given, metavar="IN")
    interpolate.add_argument("--factor", type=int, default=2, help="how many times as many, 2, 4, 8, … (default 2)")
    interpolate.add_argument("--prompt", default="", help="what it shows (default: no text)")
    _making(
        interpolate, outputs, "interpolated.mp4", fps="frames taken a second (default: the video's own)", scheme=False
    )

    loop = commands.add_parser("loop", help="new frames from a video's end back to its beginning")
    loop.add_argument("video", type=_given, metavar="IN")
    loop.add_argument("--prompt", default="", help="what it shows (default: no text)")
    _making(loop, outputs, "loop.mp4", scheme=False)

    reconstruct = commands.add_parser("reconstruct", help="a video through the tokenizer and back")
    reconstruct.add_argument("file", type=_given, metavar="IN")
    suffixes = (*VIDEO_SUFFIXES, ".png")
    reconstruct.add_argument(
        "--out", type=outputs.file(*suffixes), required=True, help=".mp4 or .gif (.png for an image)"
    )
    reconstruct.add_argument("--fps", type=float, help="frames taken a second (default: the video's own)")
    reconstruct.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: the tokenizer's")
    reconstruct.add_argument("--fit", choices=("crop", "letterbox"), default="crop")
    reconstruct.add_argument("--json", action="store_true", help="print the figures as JSON")
    _weights(reconstruct)

    train = commands.add_parser("train", help="train a model; again with the same --workdir: resume")
    train.add_argument("model", choices=("tokenizer", "transformer"))
    _recipe(train, outputs)
    _several(train)

    tokenize = commands.add_parser("tokenize", help="the token cache that the transformer is trained on")
    _recipe(tokenize, outputs)
    _several(tokenize)

    plan = commands.add_parser("plan", help="whether a recipe fits a TPU pod, and how fast it can be there; needs none")
    _config(plan)
    plan.add_argument("--topology", required=True, help="the TPU and its sizes: v5p:4x4x8, v5e:16x16, v6e:16x16, …")
    plan.add_argument("--slices", type=int, default=1, help="how many of them, along the mesh's data axis (default 1)")
    plan.add_argument(
        "--mesh", type=int, nargs=4, metavar=("D", "F", "T", "C"), help="data, fsdp, tensor, context; -1: what is left"
    )
    plan.add_argument("--only", choices=("training", "decoding"), help="one of the two programs, in half the time")
    plan.add_argument("--rows", type=int, help="rows drawn at once in decoding; 0 token by token (default)")
    plan.add_argument("--json", type=outputs.file(), metavar="FILE", help="write the figures there")
    plan.add_argument("--hlo", type=outputs.folder, metavar="FOLDER", help="write the compiled programs' text there")
    plan.epilog = f"Exit code: 0 it fits, 1 it doesn't, 2 a mistake in the arguments. {plan.epilog}"

    evaluate = commands.add_parser("evaluate", help="figures of what the weights are worth")
    evaluate.add_argument("what", choices=("shapes", "reconstruction", "interpolation", "generation"))
    evaluate.add_argument("--samples", type=int, default=128)
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--guidance", type=float, help="how closely to follow the text (default 3)")
    _sampling(evaluate)
    fps = "shapes: rates (default: those trained on); generation: one rate (default: the highest trained on)"
    evaluate.add_argument("--fps", type=float, nargs="+", help=fps)
    evaluate.add_argument("--seconds", type=float, help="generation: length of the clips (default 3)")
    evaluate.add_argument("--factor", type=int, help="interpolation: how many frames of one (default 2)")
    evaluate.add_argument("--data", type=_given, help="clips: a dataset folder (default: the data trained on)")
    evaluate.add_argument("--features", help="what distances look at; a name or a .py file")
    sheet = "draw some clips there (not of shapes)"
    evaluate.add_argument("--sheet", type=outputs.file(*SHEET_SUFFIXES), metavar="PNG", help=sheet)
    evaluate.add_argument("--json", type=outputs.file(), metavar="FILE", help="write the figures there")
    evaluate.add_argument("--markdown", type=outputs.file(), metavar="FILE", help="write them as a table there")
    _weights(evaluate)

    data = commands.add_parser("data", help="write a dataset")
    kinds = data.add_subparsers(dest="kind", required=True, metavar="shapes|mnist|folder")
    shapes = kinds.add_parser("shapes", help="Moving Shapes, procedural")
    shapes.add_argument("--videos", type=int, default=1000)
    shapes.add_argument("--seed", type=int, default=0)
    shapes.add_argument("--held-out", action="store_true", help="only the compositions that training never sees")
    mnist = kinds.add_parser("mnist", help="captioned Moving MNIST from a file of digits")
    mnist.add_argument("file", type=_given, metavar="DIGITS", help=".npz with images and labels, or an idx file")
    mnist.add_argument("--split", choices=("train", "test"), help="default train; with --tfds both")
    mnist.add_argument("--seed", type=int, default=0)
    folder = kinds.add_parser("folder", help="your own clips, with captions.jsonl or captions.csv beside them")
    folder.add_argument("file", type=_given, metavar="FOLDER")
    folder.add_argument("--max-unreadable", type=float, default=0.1, help="stop when a larger share cannot be read")
    folder.add_argument("--check", action="store_true", help="decode every frame of every file before taking it")
    folder.add_argument("--fit", choices=("crop", "letterbox"), help="how other shapes become --size (default crop)")
    for kind in (shapes, mnist, folder):
        looks = "; without it, the clips are only looked at" if kind is folder else ""
        kind.add_argument("--out", type=outputs.folder, required=not looks, help=f"the dataset's folder{looks}")
        files = "; with neither, files as they are" if kind is folder else ""
        size, fps = f"store frames of this size (default 64 64{files})", f"store frames at this rate (default 8{files})"
        kind.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=size)
        kind.add_argument("--fps", type=float, help=fps)
        kind.add_argument("--tfds", action="store_true", help="as a TFDS dataset (extra `tfds`), not plain records")

    export = commands.add_parser("export", help="weights as one file for other programs, PyTorch's way")
    export.add_argument("file", type=_given, metavar="MODEL", help="a folder: data/tokenizer, runs/mine/transformer")
    export.add_argument("--out", type=outputs.file(), required=True, help=".safetensors")

    bring = commands.add_parser("import", help="such a file as weights again")
    bring.add_argument("file", type=_given, metavar="FILE.safetensors")
    bring.add_argument("--out", type=outputs.folder, required=True, help="the folder; tokenizer/ or transformer/ in it")

    inspect = commands.add_parser("inspect", help="what a checkpoint, weights, token cache or dataset is")
    inspect.add_argument("path", type=_given)
    return top


def _given(text: str) -> URL | Path:
    """What is read; a URL stays one until the command runs and fetches it."""
    return URL(text) if is_url(text) else named_path(text)


def _weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights", type=_given, default=SHIPPED, help="a folder of weights (default: the shipped ones)"
    )
    command.add_argument(
        "--mesh",
        type=int,
        nargs=4,
        metavar=("DATA", "FSDP", "TENSOR", "CONTEXT"),
        help="spread the work over so many devices along each axis; -1: all that are left (default: one device)",
    )


def _making(
    command: argparse.ArgumentParser,
    outputs: Outputs,
    out: str,
    fps: str = "frames a second (default 8)",
    scheme: bool = True,
) -> None:
    command.add_argument("--out", type=outputs.file(*VIDEO_SUFFIXES), default=out, help=f".mp4 or .gif (default {out})")
    command.add_argument("--sheet", type=outputs.file(*SHEET_SUFFIXES), help="also a contact sheet, .png")
    command.add_argument("--fps", type=float, help=fps)
    command.add_argument("--seed", type=int)
    command.add_argument("--guidance", type=float, help="how closely to follow the text; 1 is plainly (default 3)")
    command.add_argument("--last-guidance", type=float, help="at each segment's end (default: as at its beginning)")
    command.add_argument("--negative", help="a text to turn away from")
    _sampling(command, scheme)
    command.add_argument("--scale", type=int, default=0, help="enlarge pixels so many times (default: to 256 or more)")
    _weights(command)


def _sampling(command: argparse.ArgumentParser, scheme: bool = True) -> None:
    command.add_argument("--temperature", type=float, help="below 1 surer, 0 always the likeliest (default 0.8)")
    command.add_argument("--top-k", type=int)
    command.add_argument("--top-p", type=float, help="only the likeliest codes, of this share together (default 1)")
    command.add_argument(
        "--rows", type=int, help="rows drawn at once; 0 token by token, all of them in rounds (default 0)"
    )
    command.add_argument("--rounds", type=int, help="in which all rows are drawn (default 8)")
    if scheme:
        command.add_argument(
            "--scheme",
            choices=("hierarchical", "one-level"),
            help="from low rates to high ones (default where the weights can), or at once",
        )


def _recipe(command: argparse.ArgumentParser, outputs: Outputs) -> None:
    _config(command)
    command.add_argument("--workdir", type=outputs.folder, required=True)


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=_given, metavar="CONFIG.py", help="a recipe, see configs/")
    command.epilog = "Any field of the recipe can be changed: --train_tokenizer.steps 100, --data.path clips, …"


def _several(command: argparse.ArgumentParser) -> None:
    several = command.add_argument_group(
        "several processes",
        "one job; all are given the same arguments and one --workdir, on a file system that all see",
    )
    several.add_argument(
        "--distributed",
        action="store_true",
        help="find the others: for TPU VMs (SLURM, Open MPI, GKE are noticed)",
    )
    several.add_argument("--coordinator", default="", metavar="HOST:PORT", help="where process 0 is to listen")
    several.add_argument("--processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, metavar="I", help="which this is, from 0 on")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. Exit codes: 0 done, 1 `plan` says no, 2 the user's mistake (one line says which), 130 and
    143 interrupted."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and options.command not in OF_RECIPES:
        hint = suggestion(rest[0], (f"--{name.replace('_', '-')}" for name in vars(options)))
        _fail(f"unrecognized arguments: {' '.join(rest)}{hint}; see tokvid {options.command} --help", 2)
    for stream in (sys.stdout, sys.stderr):  # names of files may be no UTF-8, and a terminal may have no Chinese
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(level=logging.WARNING, format="tokvid: %(message)s")
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        with _terminable():
            from tokvid.cli import commands

            commands.run(options, rest)
            sys.stdout.flush()
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt as error:
        _fail(str(error) or "interrupted", 143 if isinstance(error, Terminated) else 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
    except MemoryError:
        _fail("there is not enough memory for this; use smaller videos, or fewer at a time", 2)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Terminated meanwhile. (Training handles it in its own way.)"""

    def terminate(number: int, frame: object) -> NoReturn:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
    print(f"tokvid: {line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + '…'}", file=sys.stderr)
    sys.exit(code)
