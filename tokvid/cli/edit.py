"""Videos from videos: `tokvid edit`, `interpolate`, `loop`."""

import argparse
from typing import TYPE_CHECKING

from tokvid.cli.options import (
    Command,
    readable,
    save,
    seed_argument,
    settings_of,
    story_of,
    video_arguments,
    world_of,
)
from tokvid.io.files import Outputs
from tokvid.tasks.conditions import CONDITIONS
from tokvid.tasks.tasks import TASKS

if TYPE_CHECKING:
    from tokvid.api.world import World


class Edit(Command):
    """A video made from another one, by any task that reads a condition."""

    name = "edit"
    help = "make a video from another one, by a task that the weights were trained for"
    details = "The new video follows the prompt and what the task takes from IN."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        tasks = {name: task for name, task in TASKS.items() if len(task.conditions) == 1}
        parser.add_argument("video", type=readable, metavar="IN", help="video to make the new one from")
        helps = "; ".join(
            f"{name}: {task.help}, from {CONDITIONS[task.conditions[0]].help}" for name, task in tasks.items()
        )
        parser.add_argument("--task", required=True, choices=tuple(tasks), help=helps)
        parser.add_argument("--prompt", default="", help="what the new video shows (default: no prompt)")
        parser.add_argument("--fps", type=float, metavar="X", help="frames per second of the output (default 8)")
        seed_argument(parser)
        video_arguments(parser, outputs, "edited.mp4")

    def run(self, options: argparse.Namespace) -> None:
        world = _world(options)
        stream = world.edit.stream(options.video, options.task, options.prompt, **settings_of(options))
        save(stream, options)
        print(f"{options.out}: {stream.total} frames at {stream.fps:g} fps")


class Interpolate(Command):
    """A video with more frames between its own."""

    name = "interpolate"
    help = "generate frames between those of a video"
    details = "The output is as long as IN and smoother. The weights must have been trained for the interpolation task."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("video", type=readable, metavar="IN", help="video to make smoother")
        parser.add_argument(
            "--factor",
            type=int,
            default=2,
            metavar="N",
            help="multiply the frame rate by N: 2, 4, 8, … (default 2)",
        )
        parser.add_argument("--prompt", default="", help="what the video shows (default: no prompt)")
        parser.add_argument(
            "--fps",
            type=float,
            metavar="X",
            help="frames per second read from IN; the output has N times as many (default: all frames of IN)",
        )
        seed_argument(parser)
        video_arguments(parser, outputs, "interpolated.mp4")

    def run(self, options: argparse.Namespace) -> None:
        world = _world(options)
        stream = world.interpolate.stream(options.video, options.factor, options.prompt, **settings_of(options))
        save(stream, options)
        print(f"{options.out}: {stream.total} frames at {stream.fps:g} fps")


class Loop(Command):
    """A video that can be repeated without a seam."""

    name = "loop"
    help = "make a video loop: generate frames that lead from its end back to its beginning"
    details = "The weights must have been trained for the infilling task."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("video", type=readable, metavar="IN", help="video to loop")
        parser.add_argument("--prompt", default="", help="what the video shows (default: no prompt)")
        parser.add_argument(
            "--fps", type=float, metavar="X", help="frames per second of the output, at which IN is read (default 8)"
        )
        seed_argument(parser)
        video_arguments(parser, outputs, "loop.mp4")

    def run(self, options: argparse.Namespace) -> None:
        world = _world(options)
        stream = world.loop.stream(options.video, options.prompt, **settings_of(options))
        save(stream, options)
        first = f"{stream.left_out} frames" if stream.left_out > 1 else "frame"
        print(
            f"{options.out}: {stream.total} frames at {stream.fps:g} fps, the last {stream.total - stream.known} of "
            f"them new; left out: {options.video}'s first {first}"
        )


def _world(options: argparse.Namespace) -> "World":
    from tokvid.sampling.story import Segment, Story

    return world_of(options, story_of(options, Story((Segment(options.prompt),))))
