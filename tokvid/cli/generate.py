"""Videos from prompts: `tokvid story`, `generate`, `extend`."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokvid.cli.option_values import refuse, save, settings_of, story_of, world_of
from tokvid.cli.options import (
    Command,
    Once,
    footage,
    larger_argument,
    processes_arguments,
    prompt_argument,
    rate_argument,
    readable,
    scheme_argument,
    seed_argument,
    video_arguments,
)
from tokvid.cli.printing import several
from tokvid.config import check_seed
from tokvid.errors import UserError
from tokvid.io.files import VIDEO_SUFFIXES, Outputs, write_text

if TYPE_CHECKING:
    import numpy as np

    from tokvid.api.stories import Settings
    from tokvid.sampling.script import Script

MOST_PICTURES = 64  # to choose one from
CLIP, FOLDER = "clip.mp4", "clips"  # what `generate` writes by default
OF_THE_PICTURE = ("image_prompt", "image_seed", "choose")  # options for --via-image
MANY = ("batch", "folder", "distributed", "coordinator", "processes", "process")  # options for many clips


class Tell(Command):
    """A story file, a script, or prompts, to one video."""

    name = "story"
    help = "generate a long video from a sequence of prompts"
    details = (
        "The prompts come from a story file, a script or --prompt. Flags override what the story file says. A script "
        "is plain text (.txt, a scene for each paragraph), subtitles (.srt) or a screenplay (.fountain); it is also "
        "written as a story file beside the video, for editing."
    )
    epilog = "If it is interrupted, the same command goes on from there."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument(
            "file",
            nargs="?",
            type=readable,
            metavar="STORY",
            help="story file: prompts with their durations, see data/demo/story.yaml for an example; or a script, "
            ".txt, .srt or .fountain",
        )
        parser.add_argument(
            "--prompt", action="append", default=[], help="prompt of one segment; repeat it for the segments after it"
        )
        parser.add_argument(
            "--seconds",
            type=float,
            metavar="X",
            help="duration in seconds of each --prompt, and of a script's scenes without a timing (default 4)",
        )
        beginning_arguments(parser)
        parser.add_argument(
            "--fps", type=float, metavar="X", help="frames per second; --video is read at this rate, too (default 8)"
        )
        seed_argument(parser)
        scheme_argument(parser)
        captions = "also write the prompts as a track of subtitles, which players can show (.mp4 only)"
        parser.add_argument("--captions", action="store_true", help=captions)
        video_arguments(parser, outputs, "story.mp4")

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.input_pipeline.captions import is_blank
        from tokvid.sampling.script import SUFFIXES, read_script
        from tokvid.sampling.story import STORY_SUFFIXES, Segment, Story, load_story

        if (options.file is None) == (not options.prompt):
            both = ", not both" if options.prompt else ""
            raise UserError(f"give either a story file or one --prompt for each segment{both}")
        if any(is_blank(prompt) for prompt in options.prompt):
            raise UserError("a --prompt is empty; write what its segment shows, or leave it out")
        if options.file is not None and " " in options.file.name and not options.file.exists():
            raise UserError(f"there is no story file {options.file}; if that is a prompt, write --prompt before it")
        if options.captions and options.out.suffix.lower() == ".gif":
            raise UserError("--captions needs an .mp4, because a .gif has no subtitles; name one with --out")
        seconds, script = 4.0 if options.seconds is None else options.seconds, None
        if options.file is None:
            story = Story(tuple(Segment(prompt, seconds) for prompt in options.prompt))
        elif options.file.suffix.lower() in SUFFIXES:
            script = read_script(options.file, seconds)
            story = script.story
        elif options.seconds is None:
            try:
                story = load_story(options.file)
            except UserError as error:
                suffix = options.file.suffix.lower()
                if suffix in STORY_SUFFIXES or not options.file.exists():
                    raise
                if suffix in VIDEO_SUFFIXES:
                    raise UserError(f"{options.file} is a video, no story; continue it with tokvid extend") from error
                kinds = f"a story file ends in {' or '.join(STORY_SUFFIXES)}, a script in {', '.join(SUFFIXES)}"
                raise UserError(f"{options.file} is no story file: {kinds}; read as one: {error}") from error
        else:
            raise UserError("--seconds is for --prompt and scripts; in a story file each segment has its own seconds")
        story = story_of(options, story)
        stream = world_of(options, story).story.stream(
            story, image=options.image, video=options.video, larger=options.larger
        )
        with contextlib.ExitStack() as stack:
            if script is not None:
                path = options.out.with_suffix(".yaml")
                stack.enter_context(_story_file(path, script._replace(story=story), options.file.name))
            save(stream, options, f"{story.seconds:g} s, {several(len(story.segments), 'prompt')}")


@contextlib.contextmanager
def _story_file(path: Path, script: "Script", source: str) -> Iterator[None]:
    """Writes a script as a story file. Where a mistake ends the work, it is as before. It never replaces an edited one.

    Yields while the story is made.
    """
    from tokvid.sampling.script import is_as_written, story_file
    from tokvid.sampling.story import read_text

    before = read_text(path, "story") if path.exists() else None
    if before is not None and not is_as_written(before):
        raise UserError(
            f"{path} was edited, or isn't a script's, so it is kept: generate it by tokvid story {path}, delete it, or "
            "name another --out"
        )
    write_text(path, story_file(script, source))
    try:
        yield
    except UserError:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            write_text(path, before)
        raise
    print(f"{path}: the script as a story file")


class Generate(Command):
    """One prompt, one clip; or many clips at once."""

    name = "generate"
    help = "generate one clip from one prompt, or many clips from many"
    details = "It may begin with a picture of yours, or continue a video. With --prompts or --count, it fills a folder."
    epilog = "If many clips are interrupted, the same command makes those that are missing."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--prompt", action=Once, help='what to show; "" for no prompt')
        which.add_argument(
            "--prompts",
            type=readable,
            metavar="FILE",
            help='many clips: a prompt in each line or, in a .jsonl file, {"prompt": "…", "seed": 7, "seconds": 2, …}',
        )
        parser.add_argument(
            "--seconds",
            type=float,
            default=2.0,
            metavar="X",
            help="duration in seconds; with --video, of the new part (default 2)",
        )
        beginning_arguments(parser)
        via = parser.add_argument_group("by way of a picture", "a first frame, then a video that begins with it")
        via.add_argument("--via-image", action="store_true", help="draw the first frame as a picture of its own")
        via.add_argument("--image-prompt", metavar="TEXT", help="what the picture shows (default: --prompt)")
        via.add_argument("--image-seed", type=int, metavar="N", help="random seed of the picture (default: --seed)")
        choose = "only draw N pictures, with seeds from --image-seed on, into --sheet, to choose an --image-seed from"
        via.add_argument("--choose", type=int, metavar="N", help=choose)
        rate_argument(parser, "--video", "8, or ")
        seed_argument(parser)
        scheme_argument(parser)
        many = parser.add_argument_group("many clips")
        many.add_argument("--count", type=int, metavar="N", help="clips of each prompt, which differ by their seeds")
        many.add_argument("--batch", type=int, metavar="B", help="clips made at once, at most (default 8)")
        many.add_argument(
            "--folder",
            type=outputs.folder,
            metavar="FOLDER",
            help=f"folder for the clips, and an index.jsonl of them; it may have some of them (default {FOLDER})",
        )
        processes_arguments(parser, "with one --folder on a shared file system")
        video_arguments(parser, outputs, CLIP)

    def joins(self, options: argparse.Namespace) -> bool:
        return _are_many(options)

    def run(self, options: argparse.Namespace) -> None:
        if _are_many(options):
            refuse(options, ["via_image", *OF_THE_PICTURE], "doesn't go with many clips; leave it out")
            _fill(options)
            return
        refuse(options, MANY, "is for many clips; give --prompts or --count, or leave it out")
        if not options.via_image:
            refuse(options, list(OF_THE_PICTURE), "is for --via-image; give that, too")
            _generate(options)
            return
        refuse(options, ["image", "video"], "doesn't go with --via-image, which draws the first frame")
        _refuse_larger(options)
        _via_image(options)


class Extend(Command):
    """A video, and then new frames."""

    name = "extend"
    help = "continue a video"
    details = (
        "The output has the frames of IN, cropped and resized to the size of the model or --larger, and then the new "
        "ones."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.set_defaults(image=None)
        parser.add_argument("video", type=footage, metavar="IN", help="video to continue")
        prompt_argument(parser, "what happens next")
        parser.add_argument(
            "--seconds", type=float, default=2.0, metavar="X", help="duration of the new part in seconds (default 2)"
        )
        rate_argument(parser, "IN")
        larger_argument(parser)
        seed_argument(parser)
        scheme_argument(parser)
        video_arguments(parser, outputs, "extended.mp4")

    def run(self, options: argparse.Namespace) -> None:
        _generate(options)


def beginning_arguments(parser: argparse.ArgumentParser) -> None:
    """--image and --video."""
    beginning = parser.add_mutually_exclusive_group()
    beginning.add_argument("--image", type=footage, metavar="FILE", help="picture to use as the first frame")
    beginning.add_argument(
        "--video", type=footage, metavar="FILE", help="video to continue; its frames come first in the output"
    )
    larger_argument(parser)


def _refuse_larger(options: argparse.Namespace) -> None:
    if options.larger != 1:
        raise UserError("--larger needs a picture or a video whose detail is kept; leave it out")


def _are_many(options: argparse.Namespace) -> bool:
    return options.prompts is not None or options.count is not None


def _fill(options: argparse.Namespace) -> None:
    """A folder of clips."""
    from tokvid.distributed import first
    from tokvid.sampling.story import Segment, Story

    if options.out != Path(CLIP):
        raise UserError("--out is for one clip; name the --folder of many")
    refuse(options, ("image", "video", "sheet", "audio"), "is for one clip; leave out --prompts and --count")
    _refuse_larger(options)
    world = world_of(options, story_of(options, Story((Segment("", options.seconds),))))
    folder = options.folder or Path(FOLDER)
    try:
        rows = world.fill(
            folder,
            [options.prompt] if options.prompts is None else options.prompts,
            count=1 if options.count is None else options.count,
            seconds=options.seconds,
            batch=8 if options.batch is None else options.batch,
            scale=options.scale,
            **settings_of(options),
        )
    except KeyboardInterrupt as error:
        raise type(error)(f"interrupted; run the same command again for what is missing in {folder}") from None
    if first():
        print(f"{folder}: {several(len(rows), 'clip')} of these settings, listed in index.jsonl")


def _generate(options: argparse.Namespace) -> None:
    """One clip, from a prompt and maybe a picture or a video."""
    from tokvid.sampling.story import Segment, Story

    story = story_of(options, Story((Segment(options.prompt, options.seconds),)))
    stream = world_of(options, story).generate.stream(
        options.prompt,
        seconds=options.seconds,
        image=options.image,
        video=options.video,
        larger=options.larger,
        **settings_of(options),
    )
    known, new = several(stream.known, "frame"), several(stream.total - stream.known, "new one")
    save(stream, options, f"{known} of {options.video}, then {new} at {stream.fps:g} fps" if stream.known else "")


def _via_image(options: argparse.Namespace) -> None:
    """One clip whose first frame is drawn before, as a picture; or a sheet of such pictures."""
    from tokvid.io.media import contact_sheet
    from tokvid.sampling.story import Segment, Story

    story = story_of(options, Story((Segment(options.prompt, options.seconds),)))
    first_seed = story.seed if options.image_seed is None else options.image_seed
    check_seed(first_seed)
    if options.choose is not None and (options.sheet is None or not 1 <= options.choose <= MOST_PICTURES):
        raise UserError(
            f"--choose draws 1 to {MOST_PICTURES} pictures, got {options.choose}, and needs --sheet FILE.png"
        )
    world = world_of(options, story)
    shown = options.prompt if options.image_prompt is None else options.image_prompt

    def picture(seed: int) -> "np.ndarray":
        settings: Settings = {**settings_of(options), "seed": seed}
        return world.generate.stream(shown, seconds=1 / story.fps, **settings).video(quiet=True).frames

    if options.choose is not None:
        refuse(options, ["audio"], "is for a video; leave it out with --choose")
        seeds = [(first_seed + number) % 2**32 for number in range(options.choose)]
        rows = [picture(seed) for seed in seeds]
        contact_sheet(options.sheet, rows, captions=[f"--image-seed {seed}" for seed in seeds])
        print(f"{options.sheet}: {len(rows)} pictures; go on with one of the seeds in it, without --choose")
        return
    stream = world.via_image.stream(
        options.prompt,
        seconds=options.seconds,
        image_prompt=options.image_prompt,
        image_seed=options.image_seed,
        **settings_of(options),
    )
    save(stream, options)
