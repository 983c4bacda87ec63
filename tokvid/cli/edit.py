"""Videos from videos: `tokvid edit`, `interpolate`, `loop`."""

import argparse

from tokvid.cli.options import Command, check_rounds, readable, seed_argument, story_of, video_arguments
from tokvid.io.files import Outputs
from tokvid.tasks.conditions import CONDITIONS
from tokvid.tasks.tasks import TASKS


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
        from tokvid.input_pipeline.clips import stream_frames
        from tokvid.sampling import edits
        from tokvid.sampling.film import write
        from tokvid.sampling.story import Segment, Story
        from tokvid.sampling.stream import load_models

        models = load_models(options.weights)
        story = story_of(options, Story((Segment(options.prompt),)))
        check_rounds(story.sampling, models, options)
        fps, size = edits.source_of(models, options.task, story.fps)
        frames = stream_frames(options.video, fps=fps, size=size)
        count, videos = edits.edit(models, story, options.task, frames)
        write(videos, [options.out], story.fps, count, models.size, scale=options.scale, sheet=options.sheet)
        print(f"{options.out}: {count} frames at {story.fps:g} fps")


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
        from tokvid.input_pipeline.clips import probe, stream_frames
        from tokvid.sampling import edits
        from tokvid.sampling.film import write
        from tokvid.sampling.story import Segment, Story
        from tokvid.sampling.stream import load_models

        fps = (probe(options.video).rate or 1.0) if options.fps is None else options.fps
        models = load_models(options.weights)
        story = story_of(options, Story((Segment(options.prompt),), fps))
        check_rounds(story.sampling, models, options)
        frames = stream_frames(options.video, fps=fps, size=models.size)
        count, videos = edits.interpolate(models, story, frames, options.factor)
        fps *= options.factor
        write(videos, [options.out], fps, count, models.size, scale=options.scale, sheet=options.sheet)
        print(f"{options.out}: {count} frames at {fps:g} fps")


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
        from tokvid.input_pipeline.clips import stream_frames
        from tokvid.sampling import edits
        from tokvid.sampling.film import write
        from tokvid.sampling.story import Segment, Story, encode_video
        from tokvid.sampling.stream import load_models

        models = load_models(options.weights)
        story = story_of(options, Story((Segment(options.prompt),)))
        check_rounds(story.sampling, models, options)
        tokens_THWQ, before = encode_video(models, stream_frames(options.video, fps=story.fps, size=models.size))
        video_THWC, new = edits.loop(models, story, tokens_THWQ)
        count = len(video_THWC)
        write(
            iter([video_THWC]), [options.out], story.fps, count, models.size, scale=options.scale, sheet=options.sheet
        )
        left_out = 1 + len(before)
        print(
            f"{options.out}: {count} frames at {story.fps:g} fps, the last {new} of them new; left out: "
            f"{options.video}'s first {f'{left_out} frames' if left_out > 1 else 'frame'}"
        )
