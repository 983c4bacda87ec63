"""Videos from videos and pictures: `tokvid edit`, `animate`, `interpolate`, `loop`, `highlights`."""

import argparse
from typing import TYPE_CHECKING

from tokvid.cli.option_values import refuse, save, settings_of, story_of, world_of
from tokvid.cli.options import (
    Command,
    draws_argument,
    footage,
    larger_argument,
    prompt_argument,
    rate_argument,
    readable,
    seed_argument,
    video_arguments,
)
from tokvid.cli.printing import several
from tokvid.config import LOW_GUIDANCE
from tokvid.io.files import Outputs
from tokvid.tasks.conditions import CONDITIONS
from tokvid.tasks.tasks import OTHER_VERBS, TASKS

if TYPE_CHECKING:
    from tokvid.api.world import World


class Edit(Command):
    """A video made from another one, by any task that reads a condition or some of its tokens."""

    name = "edit"
    help = "make a video from another one, by a task that the weights were trained for"
    details = (
        "The new video follows the prompt and what the task takes from IN. "
        f"{' and '.join(name for name, task in TASKS.items() if task.certain)} draw the likeliest tokens, without "
        "guidance, unless --temperature or --guidance is given; "
        f"{', '.join(name for name, task in TASKS.items() if task.placed)} have guidance "
        f"{LOW_GUIDANCE:g} by default."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        tasks = {name: task for name, task in TASKS.items() if task.edits}
        parser.add_argument("video", type=footage, metavar="IN", help="video to make the new one from")
        helps = "; ".join(
            f"{name}: {task.help}, from {CONDITIONS[task.conditions[0]].help if task.conditions else 'a video'}"
            for name, task in tasks.items()
        )
        parser.add_argument("--task", required=True, type=_task, choices=tuple(tasks), help=helps)
        prompt_argument(parser, "what the new video shows")
        rate_argument(parser, "IN")
        seed_argument(parser)
        own = parser.add_argument_group("of single tasks")
        own.add_argument(
            "--box",
            type=int,
            nargs=4,
            metavar=("LEFT", "TOP", "WIDTH", "HEIGHT"),
            help="inpaint: part that becomes new, in pixels of IN",
        )
        mask = "inpaint: picture, or video of as many frames, of the size of IN; what is white in it becomes new"
        own.add_argument("--mask", type=footage, metavar="FILE", help=mask)
        own.add_argument("--canvas", metavar="W:H", help="outpaint: form of the wider or higher video, as 16:9")
        times = "upscale: the video is scaled to half the weights' size, then made 2, 4, … times as large (default 2)"
        own.add_argument("--times", type=int, metavar="N", help=times)
        strength = "variation: share of the tokens that are drawn again, above 0 and up to 1 (default 0.5)"
        own.add_argument("--strength", type=float, metavar="X", help=strength)
        first = "restyle, reshape, colourise: picture, the first frame as it should look; the others follow it"
        own.add_argument("--first", type=footage, metavar="PICTURE", help=first)
        larger_argument(own, "with --first, and for colourise, inpaint, outpaint, interpolation: ")
        video_arguments(parser, outputs, "edited.mp4")

    def run(self, options: argparse.Namespace) -> None:
        names = TASKS[options.task].settings
        others = [name for task in TASKS.values() for name in task.settings if name not in names]
        refuse(options, others, f"is not for task {options.task}; leave it out")
        world = _world(options)
        own = {name: value for name in names if (value := getattr(options, name)) is not None}
        stream = world.edit.stream(
            options.video, options.task, options.prompt, larger=options.larger, **settings_of(options), **own
        )
        save(stream, options)


class Animate(Command):
    """A picture that moves."""

    name = "animate"
    help = "make what a picture shows move along a track"
    details = (
        "The video begins with the picture. The track, a JSON file or taken from another video, is moved to begin at "
        "the picture's object. With --zero-shot there is none: the video follows the prompt, with weights that need no "
        "training for that."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("picture", type=footage, metavar="PICTURE", help="picture of the object")
        how = parser.add_mutually_exclusive_group(required=True)
        how.add_argument(
            "--track",
            type=readable,
            metavar="FILE.json",
            help='path of the object: {"fps": 8, "points": [[[x, y]], …]}, for each frame its points, from 0 to 1',
        )
        how.add_argument("--like", type=footage, metavar="VIDEO", help="video whose object shows the path")
        how.add_argument("--zero-shot", action="store_true", help="begin with the picture, without a track")
        at_path = "leave the track where it is, and draw the object where it begins, before the picture's background"
        parser.add_argument("--at-path", action="store_true", help=at_path)
        prompt = (
            "what moves and how, which keeps the object's form; where it says another motion than the track, it may win"
        )
        prompt_argument(parser, prompt)
        seconds = "duration with --zero-shot, in seconds (default 2)"
        parser.add_argument("--seconds", type=float, metavar="X", help=seconds)
        rate_argument(parser, "--like", "8, or ")
        seed_argument(parser)
        video_arguments(parser, outputs, "animated.mp4")

    def run(self, options: argparse.Namespace) -> None:
        if options.zero_shot:
            refuse(options, ["at_path"], "is for a track; leave it out with --zero-shot")
        else:
            refuse(options, ["seconds"], "is for --zero-shot; the track decides the duration")
        stream = _world(options).animate.stream(
            options.picture,
            options.prompt,
            track=options.track,
            like=options.like,
            at_path=options.at_path,
            seconds=options.seconds,
            **settings_of(options),
        )
        save(stream, options)


class Interpolate(Command):
    """A video with more frames between its own."""

    name = "interpolate"
    help = "generate frames between those of a video"
    details = (
        "The output is as long as IN and smoother; IN's own frames stay as they are. New ones are drawn greedily and "
        "without guidance, and show the mean of what is open, unless --temperature or --guidance is given. The weights "
        "must be trained for interpolation."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("video", type=footage, metavar="IN", help="video to make smoother")
        parser.add_argument(
            "--factor",
            type=int,
            default=2,
            metavar="N",
            help="multiply the frame rate by N: 2, 4, 8, … (default 2)",
        )
        draws_argument(parser)
        prompt_argument(parser)
        parser.add_argument(
            "--fps",
            type=float,
            metavar="X",
            help="frames per second read from IN; the output has N times as many (default: all frames of IN)",
        )
        larger_argument(parser)
        seed_argument(parser)
        video_arguments(parser, outputs, "interpolated.mp4")

    def run(self, options: argparse.Namespace) -> None:
        world = _world(options)
        stream = world.interpolate.stream(
            options.video,
            options.factor,
            options.prompt,
            draws=options.draws,
            larger=options.larger,
            **settings_of(options),
        )
        save(stream, options)


class Loop(Command):
    """A video that can be repeated without a seam."""

    name = "loop"
    help = "make a video loop: generate frames that lead from its end back to its beginning"
    details = "The weights must have been trained for the infilling task."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("video", type=footage, metavar="IN", help="video to loop")
        prompt_argument(parser)
        rate_argument(parser, "IN")
        seed_argument(parser)
        larger_argument(parser)
        video_arguments(parser, outputs, "loop.mp4")

    def run(self, options: argparse.Namespace) -> None:
        world = _world(options)
        stream = world.loop.stream(options.video, options.prompt, larger=options.larger, **settings_of(options))
        new, first = stream.total - stream.known, f"{stream.left_out} frames" if stream.left_out > 1 else "frame"
        made = f"{several(stream.total, 'frame')} at {stream.fps:g} fps, the last {new} of them new"
        save(stream, options, f"{made}; left out: {options.video}'s first {first}")


class Highlights(Command):
    """The best of a long video."""

    name = "highlights"
    help = "cut the best short clips out of a long video"
    details = (
        "A clip counts the more, the more the motion changes in it, the more moves and the sharper it is; a "
        "cut is where one begins or ends. The clips have no sound. No weights are needed."
    )

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        parser.add_argument("video", type=footage, metavar="IN", help="the long video")
        seconds = "duration of each clip in seconds (default 4)"
        parser.add_argument("--seconds", type=float, default=4.0, metavar="X", help=seconds)
        parser.add_argument("--count", type=int, default=5, metavar="N", help="number of clips (default 5)")
        folder = "folder for the clips, a contact sheet.png, and highlights.jsonl with their times and measures"
        parser.add_argument(
            "--out", type=outputs.folder, default="highlights", metavar="FOLDER", help=f"{folder} (default highlights)"
        )

    def run(self, options: argparse.Namespace) -> None:
        from tokvid.api.highlights import highlights

        rows = highlights(options.video, options.out, seconds=options.seconds, count=options.count)
        for row in rows:
            print(f"{options.out / row['file']}: from {row['start']:.2f} s, score {row['score']:.2f}")


def _task(name: str) -> str:
    if name in OTHER_VERBS:
        raise argparse.ArgumentTypeError(f"{name} has a command of its own, tokvid {OTHER_VERBS[name]}")
    return name


def _world(options: argparse.Namespace) -> "World":
    from tokvid.sampling.story import Segment, Story

    return world_of(options, story_of(options, Story((Segment(options.prompt),))))
