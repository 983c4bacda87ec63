"""Videos from prompts: `tokvid demo`, `story`, `generate`, `extend`."""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tokvid.cli.options import (
    SHIPPED,
    WORLDS,
    Command,
    check_rounds,
    readable,
    scheme_argument,
    seed_argument,
    story_of,
    video_arguments,
    weights_arguments,
)
from tokvid.errors import UserError
from tokvid.io.files import Outputs, check_output, write_json

if TYPE_CHECKING:
    import numpy as np

    from tokvid.sampling.story import Opening
    from tokvid.sampling.stream import Models

DEMO_STORY, DEMO_PICTURE = "demo/story.yaml", "demo/opening.png"  # of a world; the picture is optional
DEMO_FILES = ("story.mp4", "story.gif", "sheet.png", "report.json")


class Demo(Command):
    """The shipped story: story.mp4, story.gif, sheet.png and report.json."""

    name = "demo"
    help = "generate the example story that comes with tokvid"
    details = (
        "Writes the video (twice), a contact sheet of its frames, and a report: the time it took, and the shapes, "
        "colours and motions read back from its pixels."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument(
            "--out",
            type=outputs.folder,
            default="demo",
            metavar="FOLDER",
            help=f"folder for {', '.join(DEMO_FILES)} (default demo)",
        )
        worlds = [name for name, folder in WORLDS.items() if (folder / DEMO_STORY).is_file()]
        parser.add_argument("--world", choices=worlds, default="shapes", help="which story (default shapes)")
        weights_arguments(parser)

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.evaluate.shapes import read_segments
        from tokvid.input_pipeline.clips import read_image
        from tokvid.sampling.film import film
        from tokvid.sampling.story import encode_picture, load_story
        from tokvid.sampling.stream import load_models

        world = WORLDS[options.world]
        weights = world if options.weights == SHIPPED else options.weights
        files = [options.out / name for name in DEMO_FILES]
        for file in files:
            check_output(file)
        mp4, gif, sheet, report = files
        began = time.monotonic()
        story, models = load_story(world / DEMO_STORY), load_models(weights)
        picture = world / DEMO_PICTURE
        opening = encode_picture(models, read_image(picture, models.size)) if picture.is_file() else None
        loaded = time.monotonic()
        frames: list[np.ndarray] = []
        seen: list[float] = []

        def watch(frame_HWC: "np.ndarray") -> None:
            frames.append(frame_HWC)
            seen.append(time.monotonic())

        film(models, story, [mp4, gif], sheet=sheet, opening=opening, watch=watch)
        ended = time.monotonic()
        figures = {
            "seconds": story.seconds,
            "fps": story.fps,
            "frames": len(frames),
            "segments": read_segments(story, frames) if options.world == "shapes" else [],
            "seconds_to_load": round(loaded - began, 2),
            "seconds_to_first_frame": round(seen[0] - began, 2),
            "seconds_to_make": round(ended - loaded, 2),
            "milliseconds_per_frame": round(1000 * (ended - loaded) / len(frames), 1),
            "weights": models.mark,
        }
        write_json(report, figures)
        print(f"{story.seconds:g} s of video from {len(story.segments)} prompts in {ended - began:.0f} s:")
        for file in files:
            print(f"  {file}")


class Tell(Command):
    """A story file, or prompts, to one video."""

    name = "story"
    help = "generate a long video from a sequence of prompts"
    details = "The prompts come from a story file or from --prompt. Flags override what the story file says."
    epilog = "If it is interrupted, the same command goes on from there."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument(
            "file",
            nargs="?",
            type=readable,
            metavar="STORY.yaml",
            help="story file: prompts with their durations, see data/demo/story.yaml for an example",
        )
        parser.add_argument(
            "--prompt", action="append", default=[], help="prompt of one segment; repeat it for the segments after it"
        )
        parser.add_argument(
            "--seconds", type=float, metavar="X", help="duration of each --prompt, in seconds (default 4)"
        )
        parser.add_argument("--image", type=readable, metavar="FILE", help="picture to use as the first frame")
        parser.add_argument("--fps", type=float, metavar="X", help="frames per second (default 8)")
        seed_argument(parser)
        scheme_argument(parser)
        video_arguments(parser, outputs, "story.mp4")

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.sampling.film import film
        from tokvid.sampling.story import Segment, Story, load_story
        from tokvid.sampling.stream import load_models

        if (options.file is None) == (not options.prompt):
            raise UserError("give either a story file or one --prompt for each segment")
        if options.file is None:
            seconds = 4.0 if options.seconds is None else options.seconds
            story = Story(tuple(Segment(prompt, seconds) for prompt in options.prompt))
        elif options.seconds is None:
            story = load_story(options.file)
        else:
            raise UserError("--seconds is for --prompt; in a story file each segment has its own seconds")
        story = story_of(options, story)
        models = load_models(options.weights)
        check_rounds(story.sampling, models, options)
        opening = None if options.image is None else _encoded(options.image, models)
        film(models, story, [options.out], sheet=options.sheet, scale=options.scale, opening=opening)
        print(f"{options.out}: {story.seconds:g} s, {len(story.segments)} prompt{'s' * (len(story.segments) > 1)}")


class Generate(Command):
    """One prompt, one clip."""

    name = "generate"
    help = "generate one clip from one prompt"
    details = "It may begin with a picture of yours, or continue a video."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("--prompt", required=True, help='what to show; "" for no prompt')
        parser.add_argument(
            "--seconds",
            type=float,
            default=2.0,
            metavar="X",
            help="duration in seconds; with --video, of the new part (default 2)",
        )
        beginning = parser.add_mutually_exclusive_group()
        beginning.add_argument("--image", type=readable, metavar="FILE", help="picture to use as the first frame")
        beginning.add_argument(
            "--video", type=readable, metavar="FILE", help="video to continue; its frames come first in the output"
        )
        parser.add_argument(
            "--fps", type=float, metavar="X", help="frames per second; --video is read at this rate, too (default 8)"
        )
        seed_argument(parser)
        scheme_argument(parser)
        video_arguments(parser, outputs, "clip.mp4")

    def run(self, options: argparse.Namespace) -> None:
        _generate(options, options.image)


class Extend(Command):
    """A video, and then new frames."""

    name = "extend"
    help = "continue a video"
    details = "The output has the frames of IN, resized to the size of the model, and then the new ones."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("video", type=readable, metavar="IN", help="video to continue")
        parser.add_argument("--prompt", default="", help="what happens next (default: no prompt)")
        parser.add_argument(
            "--seconds", type=float, default=2.0, metavar="X", help="duration of the new part in seconds (default 2)"
        )
        parser.add_argument(
            "--fps", type=float, metavar="X", help="frames per second of the output, at which IN is read (default 8)"
        )
        seed_argument(parser)
        scheme_argument(parser)
        video_arguments(parser, outputs, "extended.mp4")

    def run(self, options: argparse.Namespace) -> None:
        _generate(options, None)


def _generate(options: argparse.Namespace, image: Path | None) -> None:
    """One clip, from a prompt and maybe a picture or `options.video`."""
    from tokvid.input_pipeline.clips import stream_frames
    from tokvid.sampling.film import film
    from tokvid.sampling.story import Segment, Story, encode_video
    from tokvid.sampling.stream import frames_of, load_models

    story = story_of(options, Story((Segment(options.prompt, options.seconds),)))
    if options.video is not None and story.scheme == "hierarchical":
        raise UserError("what goes on from a video is told at one level; leave out --scheme hierarchical")
    models = load_models(options.weights)
    check_rounds(story.sampling, models, options)
    opening, known = None, 0
    if image is not None:
        opening = _encoded(image, models)
    if options.video is not None:
        opening = encode_video(models, stream_frames(options.video, fps=story.fps, size=models.size))
        latent_frames = len(opening.tokens_THWQ)
        known = len(opening.before_THWC) + frames_of(latent_frames, models.tokenizer.config.temporal_patch)
        if latent_frames == 1:  # which is the story's first frame
            story = dataclasses.replace(story, segments=(Segment(options.prompt, options.seconds + 1 / story.fps),))
    total = film(models, story, [options.out], sheet=options.sheet, scale=options.scale, opening=opening)
    parts = f"{known} frames of {options.video}, then {total - known} new ones" if known else f"{total} frames"
    print(f"{options.out}: {parts} at {story.fps:g} fps")


def _encoded(path: Path, models: "Models") -> "Opening":
    """The picture that a story begins with."""
    from tokvid.input_pipeline.clips import probe, read_image
    from tokvid.sampling.story import encode_picture

    if (frames := probe(path).frames) > 1:
        raise UserError(f"{path} is a video of {frames} frames; give a picture, or go on from it with tokvid extend")
    return encode_picture(models, read_image(path, models.size))
