"""The video that comes with tokvid, made anew: `tokvid demo`."""

import argparse
import time
from typing import TYPE_CHECKING

from tokvid.cli.option_values import models_of
from tokvid.cli.options import Command, models_arguments
from tokvid.io.files import Outputs, check_output, write_json
from tokvid.io.worlds import SHIPPED, WORLDS

if TYPE_CHECKING:
    import numpy as np

STORY, PICTURE = "demo/story.yaml", "demo/opening.png"  # of a world; the picture is optional
FILES = ("story.mp4", "story.gif", "sheet.png", "report.json")


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
            help=f"folder for {', '.join(FILES)} (default demo)",
        )
        worlds = [name for name, folder in WORLDS.items() if (folder / STORY).is_file()]
        parser.add_argument("--world", choices=worlds, default="shapes", help="which story (default shapes)")
        models_arguments(parser)

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.evaluate.shapes import read_segments
        from tokvid.input_pipeline.clips import probe, read_image
        from tokvid.sampling.film import film
        from tokvid.sampling.story import encode_picture, load_story

        world = WORLDS[options.world]
        weights = world if options.weights == SHIPPED else options.weights
        files = [options.out / name for name in FILES]
        for file in files:
            check_output(file)
        mp4, gif, sheet, report = files
        began = time.monotonic()
        story, models = load_story(world / STORY), models_of(options, weights)
        picture = world / PICTURE
        opening = None
        if picture.is_file():
            info, (height, width) = probe(picture), models.size
            larger = max(1, min(info.height // height, info.width // width))
            opening = encode_picture(models, read_image(picture, (larger * height, larger * width)))
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
            "segments": read_segments(story, frames)
            if options.world == "shapes"
            else [{"prompt": segment.prompt, "seconds": segment.seconds} for segment in story.segments],
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
