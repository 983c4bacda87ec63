"""Trained models and other files: `tokvid reconstruct`, `export`, `import`, `inspect`."""

import argparse
import itertools
import json
import os
from pathlib import Path

from tokvid.cli.option_values import models_of, refuse
from tokvid.cli.options import (
    Command,
    Once,
    averaged,
    averaged_lora,
    footage,
    later_codes_argument,
    models_arguments,
    readable,
    scale_argument,
    size_argument,
    weights,
    weights_arguments,
)
from tokvid.cli.printing import in_any_case, say, several, table
from tokvid.errors import UserError
from tokvid.io.files import VIDEO_SUFFIXES, Outputs, check_suffix


class Reconstruct(Command):
    """A video through the tokenizer, streaming: PSNR, SSIM, tokens, bits per pixel."""

    name = "reconstruct"
    help = "encode a video to tokens and decode it again, to see what the tokenizer loses"
    details = "Prints PSNR (dB) and SSIM against the input, the number of tokens and the bits per pixel."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("file", type=footage, metavar="IN", help="video or image")
        parser.add_argument(
            "--out",
            type=outputs.file(*VIDEO_SUFFIXES, ".png"),
            required=True,
            metavar="FILE",
            help="video to write: .mp4 or .gif; .png for an image",
        )
        parser.add_argument(
            "--fps",
            type=float,
            metavar="X",
            help="frames per second, read and written (default: all frames of IN)",
        )
        size_argument(parser, "resize IN to so many pixels first (default: the size that the tokenizer was trained on)")
        parser.add_argument(
            "--fit",
            choices=("crop", "letterbox"),
            default="crop",
            help="if IN has another aspect ratio: cut off its edges, or add black bars (default crop)",
        )
        scale_argument(parser)
        later_codes_argument(parser)
        parser.add_argument("--json", action="store_true", help="print the figures as JSON")
        weights_arguments(parser)

    def run(self, options: argparse.Namespace) -> None:
        from tokvid import weights
        from tokvid.evaluate.reconstruction import Reconstruction, with_later_codes
        from tokvid.input_pipeline.clips import count_at, probe, stream_frames
        from tokvid.io.media import VideoWriter, write_image
        from tokvid.io.progress import MANY, counted
        from tokvid.sampling.film import enlarged, scale_for

        image = options.out.suffix.lower() == ".png"
        if image:
            if (count := probe(options.file).frames) > 1:
                raise UserError(f"{options.file} has {count} frames, {options.out} holds one; write .mp4 or .gif")
            refuse(options, ["fps"], "has no meaning for a picture; leave it out")
        tokenizer = weights.load(options.weights / "tokenizer", "tokenizer")
        if options.later_codes is not None:
            tokenizer = with_later_codes(tokenizer, options.later_codes)
        size = tuple(options.size or tokenizer.config.size)
        reconstruction = Reconstruction(tokenizer, size)
        scale = scale_for(size, options.scale or (1 if image else 0))  # pictures keep their size by default
        info = probe(options.file)
        fps = info.rate or 1.0 if options.fps is None else options.fps  # an image has no rate
        truth, total = stream_frames(options.file, fps=fps, size=size, fit=options.fit), count_at(info, fps)

        def write() -> None:
            if image:
                (image_HWC,) = reconstruction.frames(itertools.islice(truth, 1))
                write_image(options.out, enlarged(image_HWC, scale))
                return
            with VideoWriter(options.out, fps) as writer:
                shown = counted(truth, options.out.name, total, "frames", quiet=total < MANY)
                for frame_HWC in reconstruction.frames(shown):
                    writer.write(enlarged(frame_HWC, scale))

        def report() -> None:
            if reconstruction.complete:
                figures = {**reconstruction.figures(), "out": str(options.out)}
                say(json.dumps(figures) if options.json else table(figures))

        in_any_case(write, report)


class Export(Command):
    """Weights as one file for other programs."""

    name = "export"
    help = "write a model as one .safetensors file with PyTorch's conventions, for other programs"

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        model = "folder of one model: data/tokenizer, runs/mine/transformer, …"
        parser.add_argument("file", type=readable, metavar="MODEL", help=model)
        parser.add_argument(
            "--out", type=outputs.file(), required=True, metavar="FILE", help="file to write, .safetensors"
        )

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.portable import export

        print(f"{options.out}: {export(options.file, options.out)} tensors")


class Import(Command):
    """Such a file as weights again."""

    name = "import"
    help = "read a model from a file that `tokvid export` wrote"

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("file", type=readable, metavar="FILE.safetensors", help="the exported model")
        parser.add_argument(
            "--out",
            type=outputs.folder,
            required=True,
            metavar="FOLDER",
            help="weights folder; the model is written to tokenizer/ or transformer/ in it",
        )

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.portable import bring_in

        kind = bring_in(options.file, options.out)
        print(f"{options.out / kind}: a {kind}")


class Merge(Command):
    """Weights and LoRAs, or several weights, made into one."""

    name = "merge"
    help = "add LoRAs to weights, or average weights, and write the result as weights"
    details = (
        "Weights with LoRAs merged generate the same videos as with the same --lora. The average of weights and of "
        "those that were trained from them is often better than both."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        models_arguments(parser)
        average = (
            "weights to average with, which have the same tokenizer and text model; SHARE is theirs (default 0.5), the "
            "rest that of --weights; may be repeated"
        )
        parser.add_argument("--average", type=averaged, action="append", metavar="NAME[:SHARE]", help=average)
        average_lora = (
            "a LoRA to average --lora with, factor by factor, where both were trained from the same one; SHARE is its "
            "(default 0.5)"
        )
        parser.add_argument(
            "--average-lora", type=averaged_lora, action=Once, metavar="FILE[:SHARE]", help=average_lora
        )
        out = "weights folder to write, for --weights; with --average-lora, the new LoRA's file"
        parser.add_argument("--out", type=outputs.folder, required=True, metavar="FOLDER", help=out)

    def run(self, options: argparse.Namespace) -> None:
        from tokvid import weights
        from tokvid.io.urls import local
        from tokvid.transformer import lora_files

        loras, others = options.lora or [], options.average or []
        if options.average_lora is not None:
            if len(loras) != 1 or loras[0][1] != 1 or others:
                raise UserError("--average-lora takes one --lora, without a scale, and no --average")
            check_suffix(options.out, ".safetensors")
            (one, _), (other, share) = loras[0], options.average_lora
            lora_files.average_loras(options.out, one, other, share)
            print(f"{options.out}: {1 - share:g} of {one} and {share:g} of {other}")
            return
        if not loras and not others:
            raise UserError("there is nothing to merge; name a LoRA, --lora FILE, or weights, --average NAME")
        for folder in (options.weights, *(local(name) for name, _ in others)):
            if os.path.realpath(folder) == os.path.realpath(options.out):  # again, it would merge what is merged
                raise UserError(f"the output {options.out} would replace weights that are read; name another folder")
        models = models_of(options)
        beside = (*weights.TOKENIZER_FILES, *weights.text_files(options.weights))
        if other := [name for name in beside if _differ(options.weights / name, options.out / name)]:
            raise UserError(f"{options.out} has another {other[0]} than {options.weights}; choose another --out")
        merged = models.transformer
        for name, share in others:
            merged = weights.averaged(merged, weights.load(local(name) / "transformer", "transformer"), share)
        about = weights.facts(merged.about)
        mark = weights.save(options.out / "transformer", "transformer", merged.config, merged.params, **about)
        weights.copy_files(options.weights, options.out, beside)
        if not others:  # averages are weights that no LoRA was trained on
            files = lora_files.task_loras(options.weights / "transformer").values()
            names = {str(file.relative_to(options.weights)) for file in files}
            weights.copy_files(options.weights, options.out, sorted(names))
        parts = [several(len(loras), "LoRA")] * bool(loras) + [f"{len(others)} averaged"] * bool(others)
        print(f"{options.out}: weights {mark}, with {' and '.join(parts)}")


def _differ(source: Path, there: Path) -> bool:
    return there.exists() and there.read_bytes() != source.read_bytes()


class Inspect(Command):
    """What a file or folder is, in a few lines."""

    name = "inspect"
    help = "describe a file or folder: weights, a checkpoint, a token cache, a dataset, a story, a video"

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument(
            "path", type=weights, metavar="PATH", help="what to describe; or a name of weights, as for --weights"
        )
        parser.add_argument(
            "--all", action="store_true", help="of weights, every setting of the model and its training"
        )

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.cli.inspection import what_is

        print(table(what_is(options.path, options.all)))
