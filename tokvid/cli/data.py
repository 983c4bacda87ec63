"""Datasets: `tokvid data shapes`, `mnist`, `folder`, `import`, and `curate`, which is in curate.py."""

import abc
import argparse
import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.cli.curate import Curate, check_unreadable, map_of, runner_arguments, unreadable_argument
from tokvid.cli.option_values import refuse
from tokvid.cli.options import Command, readable, seed_argument, size_argument
from tokvid.cli.printing import several
from tokvid.errors import UserError, did_you_mean
from tokvid.io.files import Outputs

if TYPE_CHECKING:
    from tokvid.input_pipeline.workers import Map

log = logging.getLogger(__name__)
SIZE, FPS = (64, 64), 8.0  # of stored frames unless said otherwise
MOST_NAMED = 5  # files in a warning


class _Dataset(Command):
    """A kind of dataset, and how its videos are stored."""

    def frames_arguments(self, parser: argparse.ArgumentParser, otherwise: str) -> None:
        """How frames are stored; `otherwise` says what holds where none of it is said."""
        size = f"store frames of this size, in pixels (default 64 64{otherwise})"
        size_argument(parser, size)
        fps = f"store this many frames per second (default 8{otherwise})"
        parser.add_argument("--fps", type=float, metavar="X", help=fps)

    def files_arguments(self, parser: argparse.ArgumentParser) -> None:
        """How files are fitted, and how many may be damaged."""
        parser.add_argument(
            "--fit",
            choices=("crop", "letterbox"),
            help="how clips of another aspect ratio become --size: cut off, or with black bars (default crop)",
        )
        unreadable_argument(parser)

    def store(self, options: argparse.Namespace, source: Any, name: str, mapped: "Map" = map) -> None:
        """Writes videos as they are, or as frames where --size or --fps is given."""
        from tokvid.input_pipeline.writing import Frames, write_records

        about, frames = {"source": name}, None
        if options.size is not None or options.fps is not None:
            frames = Frames(tuple(options.size or SIZE), options.fps or FPS)
        elif options.fit is not None:
            about["fit"] = options.fit  # for whoever reads the files
        count = write_records(options.out, source, frames, about, options.max_unreadable, mapped)
        stored = f", frames of {frames.size[0]}x{frames.size[1]} at {frames.fps:g} fps" if frames else ""
        print(f"{options.out}: {several(count, 'video')}{stored}")


class _Prepared(_Dataset):
    """A kind of dataset that TFDS prepares, too."""

    def common_arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        """What all kinds take."""
        parser.add_argument(
            "--out", type=outputs.folder, required=True, metavar="FOLDER", help="folder to write the dataset to"
        )
        self.frames_arguments(parser, "")
        self.tfds_argument(parser)

    def tfds_argument(self, parser: argparse.ArgumentParser) -> None:
        """--tfds."""
        tfds = "write a TensorFlow Dataset instead of tokvid's own format (needs pip install 'tokvid[tfds]')"
        parser.add_argument("--tfds", action="store_true", help=tfds)

    @abc.abstractmethod
    def source(self, options: argparse.Namespace) -> Any:
        """The videos."""

    @abc.abstractmethod
    def builder(self, options: argparse.Namespace, **where: Any) -> Any:
        """The builder of the same as a TensorFlow Dataset."""

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.input_pipeline.records import check_replaceable
        from tokvid.input_pipeline.writing import Frames, write_records

        check_frames(options)
        if options.tfds:
            self.prepare(options)
            return
        check_replaceable(options.out)
        frames = Frames(tuple(options.size or SIZE), options.fps or FPS)
        count = write_records(options.out, self.source(options), frames, {"source": self.name})
        print(f"{options.out}: {several(count, 'video')}")

    def prepare(self, options: argparse.Namespace) -> None:
        """Writes it as a TensorFlow Dataset."""
        from tokvid.input_pipeline.writing import prepare

        if options.out is None:
            raise UserError("--tfds needs --out, the folder to write to")
        if not str(options.out.absolute()).isprintable():
            raise UserError(f"TFDS can't write to {str(options.out)!a}: its path should have printable letters only")
        builder = self.builder(options, data_dir=str(options.out))
        counts, before = prepare(builder)
        said = ", ".join(f"{split} {count}" for split, count in counts.items())
        print(f"{builder.data_path}: {said}{' (prepared before; remove it to prepare it anew)' * before}")

    def refuse_stored(self, options: argparse.Namespace, *names: str) -> None:
        """UserError for options of frames where TFDS stores videos as they are."""
        refuse(options, names, f"doesn't go with {self.name} --tfds, which stores the videos as they are; leave it out")


class Shapes(_Prepared):
    """Moving Shapes, procedural."""

    name = "shapes"
    help = "Moving Shapes: generated videos of one moving shape, with captions"

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("--videos", type=int, default=1000, metavar="N", help="number of videos (default 1000)")
        seed_argument(parser, 0)
        held_out = "only the combinations of size, colour, shape and direction that training never sees"
        parser.add_argument("--held-out", action="store_true", help=held_out)
        self.common_arguments(parser, outputs)

    def source(self, options: argparse.Namespace) -> Any:
        from tokvid.shapes.drawing import ShapesDataset

        return ShapesDataset(options.videos, options.seed, options.held_out)

    def builder(self, options: argparse.Namespace, **where: Any) -> Any:
        from tokvid.input_pipeline.builders import MovingShapes

        if options.held_out:
            raise UserError("--held-out doesn't go with --tfds: that has the split held_out beside train")
        held_out, size, fps = math.ceil(options.videos / 10), tuple(options.size or SIZE), options.fps or FPS
        return MovingShapes(videos=options.videos, held_out=held_out, seed=options.seed, size=size, fps=fps, **where)


class Mnist(_Prepared):
    """Captioned Moving MNIST."""

    name = "mnist"
    help = "captioned Moving MNIST: moving digits, made from a file of MNIST"

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument(
            "file", type=readable, metavar="DIGITS", help="file of MNIST: .npz with images and labels, or an idx file"
        )
        split = "which videos to write (default train; with --tfds always both)"
        parser.add_argument("--split", choices=("train", "test"), help=split)
        seed_argument(parser, 0)
        self.common_arguments(parser, outputs)

    def source(self, options: argparse.Namespace) -> Any:
        from tokvid.input_pipeline.mnist import MovingMnist

        return MovingMnist(options.file, options.split or "train", options.seed)

    def builder(self, options: argparse.Namespace, **where: Any) -> Any:
        from tokvid.input_pipeline.builders import CaptionedMovingMnist

        self.refuse_stored(options, "size", "fps")
        refuse(options, ["split"], "doesn't go with --tfds: that has train, and test as held_out")
        return CaptionedMovingMnist(digits=options.file, seed=options.seed, **where)


class Folder(_Prepared):
    """A folder of clips; without --out, it is only looked at."""

    name = "folder"
    help = "your own clips: a folder with captions.jsonl or captions.csv"
    details = (
        'A line of captions.jsonl is {"file": "a.mp4", "caption": "…"}; captions.csv has the columns file and caption. '
        "Files that cannot be read are named and skipped."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("file", type=readable, metavar="FOLDER", help="folder of clips")
        out = "folder to write the dataset to (default: only check the clips, write nothing)"
        parser.add_argument("--out", type=outputs.folder, metavar="FOLDER", help=out)
        self.frames_arguments(parser, "; with neither --size nor --fps, files are stored as they are")
        self.tfds_argument(parser)
        self.files_arguments(parser)
        parser.add_argument(
            "--check", action="store_true", help="decode every frame of every file first, to find hidden damage (slow)"
        )
        runner_arguments(parser)

    def source(self, options: argparse.Namespace) -> Any:
        from tokvid.input_pipeline.folder import FolderSource

        with _warnings_unless_it_fails():
            source = FolderSource(
                options.file,
                fit=options.fit or "crop",
                max_unreadable=options.max_unreadable,
                full=options.check,
                mapped=map_of(options),
            )
            if left := source.without_line():
                named = ", ".join(left[:MOST_NAMED]) + (", …" if len(left) > MOST_NAMED else "")
                log.warning("%s left out, without a line in the captions file: %s", several(len(left), "video"), named)
            return source

    def builder(self, options: argparse.Namespace, **where: Any) -> Any:
        from tokvid.input_pipeline.builders import ClipFolder

        self.refuse_stored(options, "size", "fps", "fit")
        return ClipFolder(folder=options.file, max_unreadable=options.max_unreadable, full=options.check, **where)

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.input_pipeline.records import check_replaceable

        check_frames(options)
        check_unreadable(options)
        if options.tfds:
            refuse(options, ["runner", "runner_option"], "doesn't go with --tfds; leave it out")
            self.prepare(options)
            return
        if options.out is None:
            refuse(options, ["size", "fps", "fit"], "is for what is written; give --out, too")
            source = self.source(options)
            print(f"{options.file}: {several(len(source), 'video')} can be used, {len(source.unreadable)} cannot")
            return
        check_replaceable(options.out)
        self.store(options, self.source(options), self.name, map if options.runner is None else map_of(options))


class Import(_Dataset):
    """Other people's data."""

    name = "import"
    help = "other people's data: Hugging Face datasets, parquet, HDF5, .npz, WebDataset shards, lists of URLs"
    details = (
        "Tables (.parquet, or a folder that save_to_disk of `datasets` wrote) hold bytes of videos or pictures beside "
        "captions; .hdf5 and .npz hold frames, uint8; .csv and .jsonl list addresses, whose files are fetched into the "
        "cache first. Fields are found by their usual names. Rows and videos that cannot be read are named and skipped."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("file", type=readable, metavar="PATH", help="file or folder, also by URL: hf://datasets/…")
        out = "folder to write the dataset to"
        parser.add_argument("--out", type=outputs.folder, required=True, metavar="FOLDER", help=out)
        kind = "parquet, hdf5, npz, webdataset or urls (default: by the names of the files)"
        parser.add_argument("--from", dest="kind_of_file", metavar="KIND", help=kind)
        parser.add_argument(
            "--split", metavar="NAME", help="which part to read, where there are several (default train)"
        )
        parser.add_argument("--video", metavar="NAME", help="field that holds the videos, the frames or the addresses")
        parser.add_argument("--caption", metavar="NAME", help="field that holds the captions")
        text = "caption of all videos that have none (default: each must have one)"
        parser.add_argument("--text", metavar="TEXT", help=text)
        rate = "rate of frames in .hdf5 and .npz files that don't say it (default 8)"
        parser.add_argument("--rate", type=float, metavar="X", help=rate)
        self.frames_arguments(parser, "; with neither --size nor --fps, videos are stored as they are")
        self.files_arguments(parser)

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.input_pipeline.records import check_replaceable
        from tokvid.input_pipeline.sources import SUFFIXES, source_for

        check_frames(options)
        check_unreadable(options)
        if options.rate is not None and not 0 < options.rate <= 1000:
            raise UserError(f"rate should be above 0 and at most 1000, got {options.rate}")
        check_replaceable(options.out)
        kind = options.kind_of_file or source_for(options.file)
        if kind not in SUFFIXES.values():
            raise UserError(did_you_mean(kind, dict.fromkeys(SUFFIXES.values()), "kind of file"))
        with _warnings_unless_it_fails():
            source = self.opened(options, kind)
        self.store(options, source, kind)

    def opened(self, options: argparse.Namespace, kind: str) -> Any:
        """The videos in files of a kind."""
        from tokvid.config import DataConfig
        from tokvid.input_pipeline.foreign import Choices
        from tokvid.input_pipeline.sources import open_source, source_of

        fit: Any = options.fit or "crop"
        config = DataConfig(source=kind, path=str(options.file), fit=fit, max_unreadable=options.max_unreadable)
        try:
            read = source_of(config).read
        except UserError as error:  # it needs a package, which is worth installing only for a file that is there
            if isinstance(options.file, Path) and not options.file.exists():
                raise UserError(f"{options.file} is not there; give a file, or a folder of them") from error
            raise
        if kind not in ("hdf5", "npz"):
            refuse(options, ["rate"], f"is for frames; {kind} holds files, which say their own")
        if read is None:
            refuse(options, ["split", "video", "caption", "text"], f"is not for {kind}; leave it out")
            return open_source(config)
        names = {name: getattr(options, name) or "" for name in ("split", "video", "caption")}
        return read(options.file, Choices(**names, text=options.text, fps=options.rate or Choices().fps, fit=fit))


class Data(Command):
    """Writes a dataset as records, or prepares it with TFDS."""

    name = "data"
    help = "write a dataset to train on"
    details = "Train on it with the recipe's fields --data.source records (tfds after --tfds) and --data.path FOLDER."
    kinds: tuple[Command, ...] = (Shapes(), Mnist(), Folder(), Import(), Curate())

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        metavar = "|".join(kind.name for kind in self.kinds)
        commands = parser.add_subparsers(dest="kind", required=True, metavar=metavar)
        for kind in self.kinds:
            kind.add_to(commands, outputs)

    def run(self, options: argparse.Namespace) -> None:
        next(kind for kind in self.kinds if kind.name == options.kind).run(options)


def check_frames(options: argparse.Namespace) -> None:
    """UserError where frames cannot be stored like this."""
    if options.size is not None and min(options.size) < 1:
        raise UserError(f"size should be 1 or more pixels, got {options.size[0]} {options.size[1]}")
    if options.fps is not None and not 0.001 <= options.fps <= 1000:
        raise UserError(f"fps should be 0.001 to 1000, got {options.fps}")


@contextlib.contextmanager
def _warnings_unless_it_fails() -> Iterator[None]:
    """Holds warnings back until all went well: an error says by itself what it is about."""
    import logging.handlers  # slow, for it brings sockets

    ours, held = logging.getLogger("tokvid"), logging.handlers.MemoryHandler(1_000_000, logging.CRITICAL)
    ours.addHandler(held)
    ours.propagate = False
    try:
        yield
    finally:
        ours.propagate = True
        ours.removeHandler(held)
    for record in held.buffer:
        ours.handle(record)
