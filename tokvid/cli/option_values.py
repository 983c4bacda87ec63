"""What the options that commands share are read as: settings, stories, models, saved videos. Imports nothing slow."""

import argparse
import dataclasses
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.cli.options import flag
from tokvid.cli.printing import several
from tokvid.config import Sampling
from tokvid.errors import UserError

if TYPE_CHECKING:
    from tokvid.api.stories import Settings
    from tokvid.api.video import Stream
    from tokvid.api.world import World
    from tokvid.sampling.models import Models
    from tokvid.sampling.story import Story

SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))
STORY = ("fps", "seed", "guidance", "last_guidance", "negative", "scheme")  # fields of a story that are flags, too


def refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """UserError where one of these options is given, which would change nothing."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False and value != "":
            raise UserError(f"{flag(name)} {why}")


def settings_of(options: argparse.Namespace) -> "Settings":
    """The settings of a story that are given on the command line."""
    changes: dict[str, Any] = {name: value for name in STORY if (value := getattr(options, name, None)) is not None}
    if sampling := {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}:
        changes["sampling"] = sampling
    return typing.cast("Settings", changes)


def sampling_of(options: argparse.Namespace, sampling: Sampling = Sampling()) -> Sampling:
    """How tokens are sampled, with the command line's values on top."""
    values = {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}
    return dataclasses.replace(sampling, **values)


def check_effects(sampling: Sampling, models: "Models", options: argparse.Namespace) -> None:
    """UserError for settings that are given but change nothing, as those of rounds where there are none."""
    from tokvid.sampling.levels import without_effect

    for name, why in without_effect(models, sampling).items():
        if getattr(options, name) is not None:
            raise UserError(f"{flag(name)} {why}")


def story_of(options: argparse.Namespace, story: "Story") -> "Story":
    """The story with the command line's values on top."""
    from tokvid.api.stories import has_idle_negatives, make_story

    settings = settings_of(options)
    for name in settings:
        if all(getattr(segment, name, None) is not None for segment in story.segments):
            raise UserError(f"{flag(name)} has no effect: each segment has its own {name}; change them in the story")
    story = make_story(story, None, settings)
    if options.negative and has_idle_negatives(story):
        raise UserError("--negative has no effect where guidance is 1; raise --guidance, or leave it out")
    return story


def models_of(options: argparse.Namespace, folder: Path | None = None) -> "Models":
    """The models of --weights (or in `folder`), with each --lora added."""
    from tokvid.api.world import load

    return load(folder or options.weights, loras=options.lora or ()).models


def world_of(options: argparse.Namespace, story: "Story") -> "World":
    """The models of --weights, with each --lora added, which know what the story asks for."""
    from tokvid.api.world import load

    world = load(options.weights, loras=options.lora or ())
    check_effects(story.sampling, world.models, options)
    return world


def save(stream: "Stream", options: argparse.Namespace, made: str = "") -> None:
    """Writes what `video_arguments` name, and says so; `made`: of the video (its frames and their rate)."""
    captions = getattr(options, "captions", False)
    stream.save(options.out, sheet=options.sheet, scale=options.scale, audio=options.audio, captions=captions)
    made = made or f"{several(stream.total, 'frame')} at {stream.fps:g} fps"
    print(f"{options.out}: {made}")
    if options.sheet is not None:
        print(f"{options.sheet}: a contact sheet of it")
