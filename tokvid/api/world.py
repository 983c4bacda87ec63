"""Trained models as an object, whose methods make videos: `tokvid.load("robots").story(["…", "…"])`."""

import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np

from tokvid import weights
from tokvid.api.arguments import fits, typed
from tokvid.api.edited import EditSettings, check_own, edited
from tokvid.api.inputs import Clip, Picture, own_rate, rate_of, read_clip, read_picture
from tokvid.api.many import Prompts, clips_of, fill
from tokvid.api.stories import (
    IDLE_NEGATIVES,
    Settings,
    StoryLike,
    has_idle_negatives,
    make_story,
    story_for,
    texts_of,
    warn_of_spelled,
)
from tokvid.api.verbs import verb
from tokvid.api.video import OnProgress, Stream, Video, check_fps
from tokvid.errors import UserError, suggestion
from tokvid.evaluate.reconstruction import Reconstruction
from tokvid.input_pipeline.picture import Fit
from tokvid.input_pipeline.tracks import load_track
from tokvid.io.compiled import keep_programs
from tokvid.io.urls import local, text_of
from tokvid.io.worlds import WORLDS
from tokvid.metrics.video import seam_ratio
from tokvid.sampling import edits
from tokvid.sampling.film import film, frames_before, show, size_of
from tokvid.sampling.levels import check_rows, rates_of, without_effect
from tokvid.sampling.many import batches_of, tell_many
from tokvid.sampling.models import Models, load_models
from tokvid.sampling.story import FASTEST, Opening, Segment, Story, encode_picture, encode_video
from tokvid.sampling.window import Windows
from tokvid.tasks.conditions import salient_points
from tokvid.transformer import lora_files

MOST_LARGER = 16
UNTRACKED_SECONDS = 2.0  # of an animated picture without a track
MOST_JUMP = 2.0  # of a loop, as a seam ratio, without a warning

log = logging.getLogger(__name__)

LoRALike = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]


def load(name: str | os.PathLike[str] = "shapes", *, loras: Sequence[LoRALike] = (), quiet: bool = False) -> "World":
    """Loads trained models.

    `name` is "shapes" or "robots", which come with tokvid; a folder, as the --workdir of a training; or a URL, as
    hf://USER/NAME. `loras` are files that a training of LoRAs wrote, or pairs of a file and a scale, which are added
    to the transformer. `quiet` shows no progress. Compiled programs are kept on disk, as the command line keeps them.
    UserError where weights are missing or damaged, or don't belong together.
    """
    keep_programs()
    folder = weights.find(text_of(name))
    if not folder.is_dir():
        known, close = " or ".join(WORLDS), suggestion(name, WORLDS)
        raise UserError(f"no weights folder {folder}{close}; name one (a training workdir is one), or {known}")
    world = World(folder, loras=_scaled(loras), quiet=quiet)
    _ = world.models if (folder / "transformer").is_dir() else world.tokenizer  # errors come now, not later
    return world


def _scaled(loras: Sequence[LoRALike]) -> list[lora_files.Scaled]:
    if not isinstance(loras, list | tuple):
        raise UserError(f"loras should be a list of files, or of pairs of a file and a scale, got {loras!r:.60}")
    pairs = [each if isinstance(each, tuple) else (each, 1.0) for each in loras]
    for pair in pairs:
        if len(pair) != 2 or not fits(float, pair[1]):
            raise UserError(f"a LoRA should be a file, or a pair of a file and a scale, got {pair!r:.60}")
    return [lora_files.Scaled(text_of(file), float(scale)) for file, scale in pairs]


class World:
    """Trained models. Each verb makes a video: `world.generate(…)` gives a `Video`, whole and in memory, and
    `world.generate.stream(…)`, with the same arguments, a `Stream` of its frames. May be used from several threads.

    The settings of a story (`fps=8`, `seed=1`, `guidance=3`, …, see `Settings`) are keyword arguments of every verb
    that reads a prompt. A picture is a path, a URL, an array, uint8 (H, W, 3), or a PIL image. A clip is a path, a URL,
    a `Video`, an array, uint8 (T, H, W, 3), or a list of PIL images; an array's frames are taken one by one, while
    files and `Video`s are read at the rate of the new video. Where that isn't given, it is the clip's own, or the
    nearest of those between the slowest and the fastest that the weights were trained on.
    """

    def __init__(self, folder: Path, *, loras: Sequence[lora_files.Scaled] = (), quiet: bool = False):
        """The weights in `folder`, with LoRAs added, which are read when they are first needed."""
        self.folder, self.loras, self.quiet = folder, loras, quiet
        self._named: set[str] = set()  # unknown words, once warned of

    def __repr__(self) -> str:
        return f"World({str(self.folder)!r})"

    @functools.cached_property
    def models(self) -> Models:
        """The tokenizer, the transformer and the text model."""
        return load_models(self.folder, self.loras)

    @functools.cached_property
    def tokenizer(self) -> weights.Loaded:
        """The tokenizer, which needs no transformer."""
        return self.models.tokenizer if "models" in vars(self) else weights.load(self.folder / "tokenizer", "tokenizer")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its videos, in pixels."""
        return self.models.size

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the transformer was trained for."""
        return tuple(self.models.tasks)

    @verb
    def generate(
        self,
        prompt: str,
        *,
        seconds: float = 2.0,
        image: Picture | None = None,
        video: Clip | None = None,
        larger: int = 1,
        **settings: Unpack[Settings],
    ) -> Stream:
        """One clip from one prompt; "" is no prompt.

        It begins with `image`, or continues `video`, whose frames come first; `seconds` is the length of the new part.
        With either, it is `larger` times the world's size: what stands still keeps the detail of what was given.
        """
        story = make_story([Segment(prompt, seconds)], None, self._rated(video, settings))
        return self._told(story, image, video, larger)

    @verb
    def via_image(
        self,
        prompt: str,
        *,
        seconds: float = 2.0,
        image_prompt: str | None = None,
        image_seed: int | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """One clip by way of a picture: its first frame is drawn alone, then the rest, which follows it.

        The picture has a prompt and a seed of its own, or the clip's. To choose a picture, look at what
        `generate(image_prompt, seconds=1 / fps, seed=…)` makes of several seeds.
        """
        story = make_story([Segment(prompt, seconds)], None, settings)
        shown = prompt if image_prompt is None else image_prompt
        seed = {} if image_seed is None else {"seed": image_seed}
        picture = make_story([Segment(shown, 1 / story.fps)], None, cast(Settings, {**settings, **seed}))
        frames = self._told(picture, None, None, 1).video(quiet=True).frames
        return self._told(story, frames[0], None, 1)

    @verb
    def story(
        self,
        story: StoryLike,
        *,
        seconds: float | None = None,
        image: Picture | None = None,
        video: Clip | None = None,
        larger: int = 1,
        **settings: Unpack[Settings],
    ) -> Stream:
        """One video from several prompts, without cuts.

        `story` is a list of prompts, each `seconds` long (4); a list of segments, as {"prompt": "…", "seconds": 2,
        "seed": 7, "guidance": 4}; a story file or a script, a mapping with a story's fields, or a `Story`. The video
        begins with `image`, or continues `video`, whose frames come first; with either, it is `larger` times the
        world's size.
        """
        return self._told(make_story(story, seconds, settings), image, video, larger)

    def stream(
        self,
        story: StoryLike,
        *,
        image: Picture | None = None,
        video: Clip | None = None,
        larger: int = 1,
        windows: Windows | None = None,
        on_progress: OnProgress | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """`story.stream` for interactive programs.

        `on_progress(done, total)` is called with numbers of frames as they are made, and may raise to stop. `windows`
        is a dict, or another store, of tokens: a window whose prompt, seed and past are the same as before isn't
        generated again. So a stopped story goes on, and one with a changed segment keeps those before it.
        """
        return self._told(make_story(story, None, settings), image, video, larger, windows, on_progress)

    @typed
    def many(
        self,
        prompts: Prompts,
        *,
        count: int = 1,
        seconds: float = 2.0,
        batch: int = 8,
        **settings: Unpack[Settings],
    ) -> Iterator[Video]:
        """`count` clips of each prompt, `batch` of them at a time, to fill an accelerator.

        `prompts` is a list as `story` takes it, or a file: a .txt with a prompt in each line, or a .jsonl of
        {"prompt": "…", "seconds": 2, "seed": 7}. Clips of one prompt differ by their seeds; `Video.story` tells which
        it is. They come in the order of the prompts, or, where lengths differ, those of one length after another.
        """
        clips = clips_of(prompts, count, seconds, settings)
        batches_of(self.models, clips, batch)  # errors come now, not later
        self._warn(clips)
        batches = tell_many(self.models, clips, batch)
        pairs = (pair for numbers, videos in batches for pair in zip(numbers, videos, strict=True))
        return (Video(video_THWC, clips[number].fps, story=clips[number]) for number, video_THWC in pairs)

    @typed
    def fill(
        self,
        folder: str | os.PathLike[str],
        prompts: Prompts,
        *,
        count: int = 1,
        seconds: float = 2.0,
        batch: int = 8,
        scale: int = 0,
        **settings: Unpack[Settings],
    ) -> list[dict[str, Any]]:
        """The clips of `many` as .mp4 files in a folder. Returns their rows in its index.jsonl: file, prompt, seed, …

        Clips that the folder already has are not made again, so that the same call goes on after an interruption, and
        one with more prompts, or a higher `count`, adds to the folder.
        """
        clips = clips_of(prompts, count, seconds, settings)
        self._warn(clips)
        return fill(self.models, Path(text_of(folder)), clips, batch, scale)

    @verb
    def extend(
        self, video: Clip, prompt: str = "", *, seconds: float = 2.0, larger: int = 1, **settings: Unpack[Settings]
    ) -> Stream:
        """A video, and then `seconds` of new frames; `Video.known` is the number of its own.

        It is `larger` times the world's size: what stands still keeps the detail of the video's last frame.
        """
        story = make_story([Segment(prompt, seconds)], None, self._rated(video, settings))
        return self._told(story, None, video, larger)

    @verb
    def edit(
        self, video: Clip, task: str, prompt: str = "", *, larger: int = 1, **settings: Unpack[EditSettings]
    ) -> Stream:
        """A video made from another one by a task that the weights were trained for; see `World.tasks`.

        Besides the settings of a story, inpaint takes `box`, (left, top, width, height) in pixels, or `mask`, a clip
        that is white in what becomes new; outpaint `canvas`, as "16:9"; upscale `times`, 2, 4, …; variation `strength`.
        Restyle, reshape and colourise take `first`, a picture: the first frame as it should look, which the others
        follow. With it, and where pixels of the video are kept (colourise, inpaint, outpaint, interpolation), the new
        video can be `larger` times the world's size. Upscale and interpolation draw the likeliest tokens, without
        guidance, unless settings say otherwise.
        """
        own = {name: value for name, value in settings.items() if name not in Settings.__annotations__}
        check_own(task, own)
        plain = cast(Settings, {name: value for name, value in settings.items() if name not in own})
        story = self._of_task(story_for(task, prompt, self._rated(video, plain)))
        self._times(larger)
        total, parts, size = edited(self.models.for_task(task), story, task, video, own, larger)
        return Stream(parts, total, story.fps, size, _lasting(story, total))

    @verb
    def animate(
        self,
        picture: Picture,
        prompt: str = "",
        *,
        track: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        like: Clip | None = None,
        at_path: bool = False,
        seconds: float | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """A video that begins with a picture, whose object moves along a track, or as the prompt says.

        `track` is {"fps": 8, "points": [[[x, y], …], …]}, the points of each frame, from 0 to 1, or a JSON file of
        that; `like` is a clip whose object shows the path. The path is moved to begin at the picture's object, or, with
        `at_path`, stays where it is, and the object is drawn there from the first frame on. Where the prompt says
        another motion, it may win. Without either, the video has `seconds` (2), and the picture's tokens take the place
        of drawn ones: the weights need not be trained for that (zero-shot).
        """
        length = UNTRACKED_SECONDS if seconds is None else seconds
        story = self._of_task(make_story([Segment(prompt, length)], None, self._rated(like, settings)))
        if track is not None and like is not None:
            raise UserError("give a track or a clip whose object shows it, not both")
        if seconds is not None and not (track is None and like is None):
            raise UserError("a video along a track is as long as that; leave out seconds")
        if track is None and like is None:
            if at_path:
                raise UserError("at_path is for a path; give a track or a clip whose object shows it, or leave it out")
            total, parts = edits.animate_untrained(self.models, story, read_picture(picture, self.size))
        else:
            if track is not None:
                path = track if isinstance(track, Mapping) else local(text_of(track))
                points = iter(load_track(path, story.fps))
            else:
                _, size = edits.source_of(self.models, "animate", story.fps)
                frames = read_clip(cast(Clip, like), story.fps, size)
                points = (salient_points(frame_HWC[None])[0] for frame_HWC in frames)
            models = self.models.for_task("animate")
            total, parts = edits.animate(models, story, read_picture(picture, self.size), points, at_path)
        return Stream(parts, total, story.fps, self.size, _lasting(story, total))

    @verb
    def interpolate(
        self,
        video: Clip,
        factor: int = 2,
        prompt: str = "",
        *,
        draws: int = 1,
        larger: int = 1,
        **settings: Unpack[Settings],
    ) -> Stream:
        """The same video with `factor` times the frames: 2, 4, 8, …

        `fps` is the rate at which it is read (default: all its frames); the new one's is `factor` times as high. Its
        own frames stay as they are. New ones are drawn greedily and without guidance, unless settings say otherwise;
        where much is open, they show the mean of it. With several `draws`, they are the mean of as many, by default at
        temperature 1, which is nearer to the truth, and takes longer.
        It is `larger` times the world's size: what stands still keeps the detail of the given frames beside it.
        """
        rated: Settings = settings if "fps" in settings else {"fps": rate_of(video), **settings}
        story = self._of_task(story_for("interpolation", prompt, rated, draws))
        size = self._times(larger)
        models = self.models.for_task("interpolation")
        total, parts = edits.interpolate(models, story, read_clip(video, story.fps, size), factor, draws)
        return Stream(parts, total, story.fps * factor, size, _lasting(story, total, factor))

    @verb
    def loop(self, video: Clip, prompt: str = "", *, larger: int = 1, **settings: Unpack[Settings]) -> Stream:
        """A video that can be repeated without a seam: its frames, but for the first ones (`Stream.left_out`), and new
        ones from its end back to its beginning. It is `larger` times the world's size."""
        story = self._of_task(make_story([Segment(prompt)], None, self._rated(video, settings)))
        size = self._times(larger)
        models = self.models.for_task("infilling")
        edits.check_loop(models, story)
        opening = encode_video(models, read_clip(video, story.fps, size))
        video_THWC, new = edits.loop(models, story, opening)
        jump = seam_ratio(np.concatenate([video_THWC, video_THWC[:1]]), [len(video_THWC)])
        if jump > MOST_JUMP:
            log.warning(
                "the loop jumps where it begins again: by %.1f times the change between its other frames; a video "
                "whose motion leads back to its beginning closes better",
                jump,
            )
        known = len(video_THWC) - new
        about = {"known": known, "left_out": len(opening.frames_THWC) - known}
        return Stream(iter([video_THWC]), len(video_THWC), story.fps, size, _lasting(story, new), **about)

    @typed
    def reconstruct(
        self, video: Clip, *, fps: float | None = None, size: tuple[int, int] | None = None, fit: Fit = "crop"
    ) -> Video:
        """A video through the tokenizer and back. `Video.figures` has PSNR (dB), SSIM, tokens and bits per pixel.

        It is read at `fps` (default: all its frames) and, fitted by "crop" or "letterbox", at `size`, (height, width)
        (default: the tokenizer's).
        """
        size, fps = self.tokenizer.config.size if size is None else size, rate_of(video) if fps is None else fps
        if not isinstance(size, list | tuple) or [type(each) for each in size] != [int, int]:
            raise UserError(f"size should be two whole numbers, height and width, got {size!r:.60}")
        check_fps(fps)
        reconstruction = Reconstruction(self.tokenizer, size)
        frames = np.stack(list(reconstruction.frames(read_clip(video, fps, size, fit))))
        return Video(frames, fps, figures=reconstruction.figures())

    def _checked(self, story: Story) -> Story:
        """The story, if these weights know its settings; a warning names the words that they hardly know."""
        check_rows(self.models, story.sampling)
        self._warn([story])
        return story

    def _of_task(self, story: Story) -> Story:
        """The same of a prompt for a task."""
        if story.scheme is not None:
            raise UserError("scheme is for videos of prompts, this one is made at one level; leave it out")
        return self._checked(story)

    def _warn(self, stories: Sequence[Story]) -> None:
        """Of settings without effect, and of words that these weights hardly know: of each once, in however many."""
        idle = {name: why for story in stories for name, why in without_effect(self.models, story.sampling).items()}
        for name, why in idle.items():
            log.warning("%s has no effect: it %s", name, why)
        if any(map(has_idle_negatives, stories)):
            log.warning(IDLE_NEGATIVES)
        prompts = [prompt for story in stories for prompt in texts_of(story)]
        self._named.update(warn_of_spelled(self.models.text, prompts, self._named))

    def _rated(self, clip: Clip | None, settings: Settings) -> Settings:
        """The settings; where no `fps` is given, it is the clip's, within those that the weights were trained on."""
        if "fps" in settings or clip is None or (rate := own_rate(clip)) is None:
            return settings
        trained = self.models.transformer.about["fps"]
        return {"fps": min(max(rate, min(trained)), max(trained)), **settings}

    def _told(
        self,
        story: Story,
        image: Picture | None,
        video: Clip | None,
        larger: int,
        windows: Windows | None = None,
        on_progress: OnProgress | None = None,
    ) -> Stream:
        models, known, story = self.models, 0, self._checked(story)
        if video is None:
            rates_of(models, story.fps, story.scheme)
        opening = self._opening(story, image, video, larger)
        if video is not None and opening is not None:
            known = len(opening.frames_THWC)
        return Stream(
            show(models, story, opening, windows=windows),
            frames_before(opening) + story.frames,
            story.fps,
            size_of(models, opening),
            story,
            known=known,
            on_progress=on_progress,
            # A store of the caller's takes the place of the file in which `film` keeps windows.
            to_files=None if windows is not None else functools.partial(film, models, story, opening=opening),
        )

    def _times(self, larger: int) -> tuple[int, int]:
        """Height and width of videos with the detail of what is given."""
        if not 1 <= larger <= MOST_LARGER:
            raise UserError(f"larger should be 1 to {MOST_LARGER} times the weights' size, got {larger}")
        return self.size[0] * larger, self.size[1] * larger

    def _opening(self, story: Story, image: Picture | None, video: Clip | None, larger: int) -> Opening | None:
        size = self._times(larger)
        if image is not None and video is not None:
            raise UserError("give an image to begin with or a video to continue, not both")
        if image is not None:
            return encode_picture(self.models, read_picture(image, size))
        if video is not None:
            if story.scheme == "hierarchical":
                raise UserError("what goes on from a video is told at one level; leave out scheme hierarchical")
            return encode_video(self.models, read_clip(video, story.fps, size))
        if larger > 1:
            raise UserError("larger needs an image or a video whose detail is kept; give one, or leave larger out")
        return None


def _lasting(story: Story, frames: int, factor: int = 1) -> Story:
    """A prompt for a task as the story of what was made: so many frames, at `factor` times its rate."""
    fps = min(story.fps * factor, FASTEST)
    (segment,) = story.segments
    return dataclasses.replace(story, segments=(dataclasses.replace(segment, seconds=frames / fps),), fps=fps)
