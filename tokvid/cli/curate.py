"""`tokvid data curate`: raw videos become a dataset. And --runner, for the commands that read many files."""

import argparse
import collections
from typing import TYPE_CHECKING

from tokvid.cli.option_values import refuse
from tokvid.cli.options import Command, readable
from tokvid.errors import UserError
from tokvid.io.files import Outputs

if TYPE_CHECKING:
    from tokvid.input_pipeline.workers import Map

KEEP = "faults == 0"


class Curate(Command):
    """Cuts, scores and sorts out raw videos."""

    name = "curate"
    help = "cut raw videos into shots, score them, and keep the good ones as a folder of clips"
    details = (
        "Writes the clips with captions.jsonl, for `tokvid data folder` and --data.source folder, and shots.jsonl with "
        "the scores and faults of all shots, of those left out too. Faults are black, still, blurred, letterboxed, "
        "over_texted and duplicate. Captions are taken from the folder's captions.jsonl or captions.csv, where it has "
        "one. Clips that are whole files are copied; others are encoded again, without sound."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument(
            "file", type=readable, metavar="FOLDER", help="folder with videos, also in folders below it"
        )
        out = "folder to write the clips to (default: only look, and print what is found)"
        parser.add_argument("--out", type=outputs.folder, metavar="FOLDER", help=out)
        keep = (
            "which shots to keep: a filter over the fields of shots.jsonl and the names of the faults, as "
            f"'motion > 3 and seconds >= 2 and not blurred' (default '{KEEP}')"
        )
        parser.add_argument("--keep", default=KEEP, metavar="FILTER", help=keep)
        unreadable_argument(parser)
        runner_arguments(parser)

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.input_pipeline.curation import FIELDS, all_shots, check_curated, fields_of, write_shots
        from tokvid.input_pipeline.filters import filter_of

        check_unreadable(options)
        passes = filter_of(options.keep, FIELDS)
        if options.out is not None:
            check_curated(options.file, options.out)
        mapped = map_of(options)
        shots = all_shots(options.file, options.max_unreadable, mapped)
        kept = [shot for shot in shots if passes(fields_of(shot))]
        faults = collections.Counter(fault for shot in shots for fault in shot.faults)
        said = ", ".join(f"{count} {name}" for name, count in faults.most_common()) or "no faults"
        if not kept:
            raise UserError(
                f"none of the {len(shots)} shots ({said}) passes --keep {options.keep!r}; nothing was written"
            )
        print(f"{options.file}: {len(shots)} shots ({said})")
        if options.out is not None:
            write_shots(options.file, options.out, shots, kept, map if options.runner is None else mapped)
        seconds = sum(shot.seconds for shot in kept)
        print(f"{options.out or 'to keep'}: {len(kept)} clips, {seconds:.1f} s")


def unreadable_argument(parser: argparse.ArgumentParser) -> None:
    """--max-unreadable."""
    parser.add_argument(
        "--max-unreadable",
        type=float,
        default=0.1,
        metavar="X",
        help="fail if more than this fraction of the files cannot be read, from 0 to 1 (default 0.1)",
    )


def check_unreadable(options: argparse.Namespace) -> None:
    """UserError for a share of unreadable files that is none."""
    if not 0 <= options.max_unreadable <= 1:
        raise UserError(f"max-unreadable should be a share from 0 to 1, got {options.max_unreadable}")


def runner_arguments(parser: argparse.ArgumentParser) -> None:
    """--runner and --runner-option, for `map_of`."""
    runner = (
        "share the files out with Apache Beam (pip install 'tokvid[beam]'): direct, on this machine, or the name of a "
        "runner, as DataflowRunner, whose workers see the same folders (default: threads)"
    )
    parser.add_argument("--runner", metavar="NAME", help=runner)
    option = "an option of the runner, as direct_num_workers=4; may be repeated"
    parser.add_argument("--runner-option", action="append", metavar="NAME=VALUE", help=option)


def map_of(options: argparse.Namespace) -> "Map":
    """Where the files are read; with a runner, results pass through a folder beside --out."""
    from tokvid.input_pipeline.workers import Beam, in_threads

    if options.runner is None:
        refuse(options, ["runner_option"], "is for a runner; give --runner, too")
        return in_threads
    if options.out is None:
        raise UserError("--runner needs --out: results pass through files beside it")
    return Beam(options.runner, options.runner_option or [], options.out.absolute().parent)
