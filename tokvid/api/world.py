"""Trained models as an object, whose methods make videos: `tokvid.load("robots").story(["…", "…"])`."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Unpack

from tokvid import weights
from tokvid.api.inputs import Clip, Picture, read_clip, read_picture
from tokvid.api.stories import Settings, StoryLike, make_story
from tokvid.api.verbs import verb
from tokvid.api.video import OnProgress, Stream
from tokvid.api.worlds import WORLDS, weights_named
from tokvid.errors import UserError, suggestion
from tokvid.io.compiled import keep_programs
from tokvid.io.urls import local
from tokvid.sampling.film import film, frames_before, show
from tokvid.sampling.levels import check_rows, rates_of
from tokvid.sampling.story import Opening, Segment, Story, encode_picture, encode_video
from tokvid.sampling.stream import Models, Windows, frames_of, load_models


def load(name: str | os.PathLike[str] = "shapes", *, quiet: bool = False) -> "World":
    """Loads trained models.

    `name` is "shapes" or "robots", which come with tokvid; a folder, as the --workdir of a training; or a URL, as
    hf://USER/NAME. `quiet` shows no progress. Compiled programs are kept on disk, as the command line keeps them.
    UserError where weights are missing or damaged, or don't belong together.
    """
    keep_programs()
    folder = local(weights_named(name))
    if not folder.is_dir():
        known, close = " or ".join(WORLDS), suggestion(name, WORLDS)
        raise UserError(f"no weights folder {folder}{close}; name one (a training workdir is one), or {known}")
    world = World(folder, quiet=quiet)
    _ = world.models if (folder / "transformer").is_dir() else world.tokenizer  # errors come now, not later
    return world


class World:
    """Trained models. Each verb makes a video: `world.generate(…)` gives a `Video`, whole and in memory, and
    `world.generate.stream(…)`, with the same arguments, a `Stream` of its frames. May be used from several threads.

    The settings of a story (`fps=8`, `seed=1`, `guidance=3`, …, see `Settings`) are keyword arguments of every verb
    that reads a prompt. A picture is a path, a URL, an array, uint8 (H, W, 3), or a PIL image. A clip is a path, a URL,
    a `Video`, an array, uint8 (T, H, W, 3), or a list of PIL images; an array's frames are taken one by one, while
    files and `Video`s are read at the rate of the new video.
    """

    def __init__(self, folder: Path, *, quiet: bool = False):
        """The weights in `folder`, which are read when they are first needed."""
        self.folder, self.quiet = folder, quiet

    def __repr__(self) -> str:
        return f"World({str(self.folder)!r})"

    @functools.cached_property
    def models(self) -> Models:
        """The tokenizer, the transformer and the text model."""
        return load_models(self.folder)

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
        **settings: Unpack[Settings],
    ) -> Stream:
        """One clip from one prompt; "" is no prompt.

        It begins with `image`, or continues `video`, whose frames come first; `seconds` is the length of the new part.
        """
        return self._told(make_story([Segment(prompt, seconds)], None, settings), image, video)

    @verb
    def story(
        self,
        story: StoryLike,
        *,
        seconds: float | None = None,
        image: Picture | None = None,
        video: Clip | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """One video from several prompts, without cuts.

        `story` is a list of prompts, each `seconds` long (4); a list of segments, as {"prompt": "…", "seconds": 2,
        "seed": 7, "guidance": 4}; a story file, a mapping with its fields, or a `Story`. The video begins with `image`,
        or continues `video`, whose frames come first.
        """
        return self._told(make_story(story, seconds, settings), image, video)

    def stream(
        self,
        story: StoryLike,
        *,
        image: Picture | None = None,
        video: Clip | None = None,
        windows: Windows | None = None,
        on_progress: OnProgress | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """`story.stream` for interactive programs.

        `on_progress(done, total)` is called with numbers of frames after each part, and may raise to stop. `windows` is
        a dict, or another store, of tokens: a window whose prompt, seed and past are the same as before isn't generated
        again. So a stopped story goes on, and one with a changed segment keeps those before it.
        """
        return self._told(make_story(story, None, settings), image, video, windows, on_progress)

    @verb
    def extend(self, video: Clip, prompt: str = "", *, seconds: float = 2.0, **settings: Unpack[Settings]) -> Stream:
        """A video, and then `seconds` of new frames; `Video.known` is the number of its own."""
        return self._told(make_story([Segment(prompt, seconds)], None, settings), None, video)

    def _told(
        self,
        story: Story,
        image: Picture | None,
        video: Clip | None,
        windows: Windows | None = None,
        on_progress: OnProgress | None = None,
    ) -> Stream:
        models, known = self.models, 0
        check_rows(models, story.sampling)
        rates_of(models, story.fps, story.scheme)
        opening = self._opening(story, image, video)
        if video is not None and opening is not None:
            latent_frames = len(opening.tokens_THWQ)
            known = len(opening.before_THWC) + frames_of(latent_frames, models.tokenizer.config.temporal_patch)
            if latent_frames == 1:  # which is the story's first frame
                first, *others = story.segments
                longer = dataclasses.replace(first, seconds=first.seconds + 1 / story.fps)
                story = dataclasses.replace(story, segments=(longer, *others))
        return Stream(
            show(models, story, opening, windows=windows),
            frames_before(models, opening) + story.frames,
            story.fps,
            models.size,
            story,
            known=known,
            on_progress=on_progress,
            to_files=functools.partial(film, models, story, opening=opening),
        )

    def _opening(self, story: Story, image: Picture | None, video: Clip | None) -> Opening | None:
        if image is not None and video is not None:
            raise UserError("give an image to begin with or a video to continue, not both")
        if image is not None:
            return encode_picture(self.models, read_picture(image, self.size))
        if video is not None:
            if story.scheme == "hierarchical":
                raise UserError("what goes on from a video is told at one level; leave out scheme hierarchical")
            return encode_video(self.models, read_clip(video, story.fps, self.size))
        return None
