"""Stories from what people have at hand: prompts, segments, a mapping, a file."""

import dataclasses
import logging
import os
from collections.abc import Container, Mapping, Sequence
from typing import Any, TypedDict

from tokvid.config import GUIDANCE, Sampling, Scheme
from tokvid.errors import UserError
from tokvid.input_pipeline.captions import is_blank
from tokvid.input_pipeline.text import TextModel
from tokvid.io.settings import from_dict
from tokvid.io.urls import local, text_of
from tokvid.sampling import script
from tokvid.sampling.story import STORY_SUFFIXES, Segment, Story, defaults_of, load_story

log = logging.getLogger(__name__)

SECONDS = 4.0  # of a prompt in a story
MOST_WORDS = 8  # that a warning lists

StoryLike = Story | Mapping[str, Any] | Sequence[str | Segment | Mapping[str, Any]] | str | os.PathLike[str]


class Settings(TypedDict, total=False):
    """The settings of a story, as in a story file; those that are left out keep their values or their defaults.

    fps: frames per second (8).
    seed: random seed (0); the same seed gives the same video.
    guidance: classifier-free guidance scale; 1 disables it, more follows the text more.
    last_guidance: the scale at the end of each prompt, reached linearly (no change).
    negative: negative prompt, what should not be seen (none).
    scheme: "hierarchical" or "one-level" (hierarchical, if the weights were trained for it).
    keep: latent frames that each window keeps of the one before (2).
    sampling: a `Sampling`, or some of its fields: {"temperature": 0.9, "rows": 1}.
    """

    fps: float
    seed: int
    guidance: float
    last_guidance: float | None
    negative: str
    scheme: Scheme | None
    keep: int
    sampling: Sampling | Mapping[str, Any]


def make_story(story: StoryLike, seconds: float | None = None, settings: Settings | None = None) -> Story:
    """A story from a list of prompts or segments, a mapping as in story files, a file, or another story.

    A file is a story file (.yaml, .json) or a script (.txt, .srt, .fountain). `seconds` is the length of each prompt,
    or scene of a script, without its own (4); `settings` replace the story's. UserError for anything that is missing,
    unknown, mistyped or out of range.
    """
    if isinstance(story, str | os.PathLike):
        story, seconds = _told_in(story, seconds)
    if isinstance(story, Story | Mapping):
        if seconds is not None:
            raise UserError("seconds are for a list of prompts; in a story each segment has its own seconds")
        values = dataclasses.asdict(story) if isinstance(story, Story) else dict(story)
    elif isinstance(story, Sequence):
        length = SECONDS if seconds is None else seconds
        values = {"segments": [_segment(each, length) for each in story]}
    else:
        raise UserError(f"a story should be a list of prompts, a story or a story file, got {type(story).__name__}")
    where = "story" if isinstance(story, Mapping) else ""  # no more words where only settings can be wrong
    changes = dict(settings or {})
    if isinstance(sampling := changes.get("sampling", {}), Sampling):
        changes["sampling"] = dataclasses.asdict(sampling)
    elif isinstance(sampling, Mapping) and isinstance(values.get("sampling", {}), Mapping):
        changes["sampling"] = {**values.get("sampling", {}), **sampling}
    return from_dict(Story, _plain({**values, **changes}), where)


def _told_in(file: str | os.PathLike[str], seconds: float | None) -> tuple[Story, float | None]:
    """The story in a file, and the length that its prompts still need: none, after a script."""
    name, told = text_of(file).lower(), (*STORY_SUFFIXES, ".json")
    if not name.endswith((*told, *script.SUFFIXES)):
        raise UserError(
            f"{text_of(file)!r:.60} is no story file (.yaml, .json) or script ({', '.join(script.SUFFIXES)}); give "
            'one, or a list of prompts, ["…", "…"]'
        )
    path = local(text_of(file))
    if name.endswith(told):
        return load_story(path), seconds
    return script.read_script(path, SECONDS if seconds is None else seconds).story, None


def story_for(task: str, prompt: str, settings: Settings, draws: int = 1) -> Story:
    """A prompt for a task: with these settings, and the task's defaults, also of several draws."""
    asked = settings.get("sampling")
    temperature = asked.get("temperature") if isinstance(asked, Mapping) else None
    guidance, sampling = defaults_of(task, draws, temperature)
    if settings.get("negative") and guidance == 1:
        guidance = GUIDANCE  # at 1, a negative prompt has no effect
    return make_story(Story((Segment(prompt),), guidance=guidance, sampling=sampling), None, settings)


IDLE_NEGATIVES = "a negative prompt has no effect where guidance is 1; raise guidance, or leave it out"


def has_idle_negatives(story: Story) -> bool:
    """Whether it has negative prompts, but no guidance, without which they have no effect."""
    each = [(s.guidance, s.last_guidance, s.negative) for s in story.segments]
    own = (story.guidance, story.last_guidance, story.negative)
    told = [tuple(b if a is None else a for a, b in zip(of_segment, own, strict=True)) for of_segment in each]
    scales = {scale for *of_segment, _ in told for scale in of_segment if scale is not None}
    return scales == {1} and any(negative for *_, negative in told)


def texts_of(story: Story) -> list[str]:
    """All texts that the weights read, negative prompts included."""
    negatives = [segment.negative or "" for segment in story.segments]
    return [segment.prompt for segment in story.segments] + [story.negative, *negatives]


def warn_of_spelled(text: TextModel, prompts: Sequence[str], named: Container[str] = ()) -> list[str]:
    """Warns of words that mean nothing to the weights, once for all prompts: any prompt gives some video.

    Returns these words; those in `named` are left out.
    """
    each = dict.fromkeys(word for prompt in prompts for word in text.spelled(prompt))
    words = [word for word in each if word not in named]
    if not words:
        return []
    listed = ", ".join(map(repr, words[:MOST_WORDS])) + (", …" if len(words) > MOST_WORDS else "")
    lower = any(word != word.lower() and not text.spelled(word.lower()) for word in words)
    hint = "; try lower case" if lower else ""
    hint += "; tokvid inspect lists words that they know"
    log.warning("these weights hardly know %s: rare in their captions, or not there%s", listed, hint)
    return words


def _segment(each: str | Segment | Mapping[str, Any], seconds: float) -> Any:
    if isinstance(each, Segment):
        return dataclasses.asdict(each)
    if isinstance(each, Mapping):
        return {"seconds": seconds, **each}
    if isinstance(each, str) and is_blank(each):
        raise UserError("a prompt of the story is empty; write what its segment shows, or leave it out")
    return {"prompt": each, "seconds": seconds}


def _plain(value: Any) -> Any:
    """Tuples as lists, and NumPy's numbers as Python's, which `from_dict` wants."""
    if isinstance(value, Segment | Sampling):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
