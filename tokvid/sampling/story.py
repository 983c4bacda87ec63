"""Stories: a sequence of prompts becomes one video, written as it is generated, and resumed after an interruption."""

import dataclasses
import itertools
import json
import numbers
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jaxtyping import Int, UInt8

from tokvid.config import GUIDANCE, HIGHEST_TEMPERATURE, LOW_GUIDANCE, Sampling, Scheme, check_guidance, check_seed
from tokvid.errors import UserError
from tokvid.input_pipeline.text import checked
from tokvid.io.files import once_each, read_limited
from tokvid.io.settings import from_dict
from tokvid.sampling.codec import StreamEncoder, frames_of, latent_frames_for
from tokvid.sampling.given import reduced
from tokvid.sampling.levels import Levels, rates_of, spans_of, videos
from tokvid.sampling.models import Models
from tokvid.sampling.prompts import Guidance, Prompt, make_prompt
from tokvid.sampling.window import Windows
from tokvid.tasks.tasks import TASKS

LARGEST_FILE = 1 << 20  # bytes of a story file
MOST_SECONDS = 24 * 3600.0
FASTEST = 240.0  # frames per second
NEXT_SEED = 7919  # from one segment to the next, and from one clip of a prompt to the next
STORY_SUFFIXES = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class Segment:
    """One prompt and its length; fields that are None are as in the story."""

    prompt: str
    seconds: float = 4.0
    seed: int | None = None
    guidance: float | None = None
    last_guidance: float | None = None
    negative: str | None = None

    def __post_init__(self) -> None:
        checked(self.prompt)
        checked(self.negative or "")
        if not isinstance(self.seconds, numbers.Real) or not 0 < self.seconds <= MOST_SECONDS:
            raise UserError(f"seconds should be above 0 and at most {MOST_SECONDS:g}, got {self.seconds!r:.40}")
        if self.seed is not None:
            check_seed(self.seed)
        for guidance in (self.guidance, self.last_guidance):
            if guidance is not None:
                check_guidance(guidance)


@dataclasses.dataclass(frozen=True)
class Story:
    """Segments one after another, at one frame rate.

    The guidance scale goes from `guidance` at a segment's beginning to `last_guidance` at its end (None: it stays);
    `negative` is the negative prompt. `scheme` None is hierarchical where the weights allow it.
    """

    segments: tuple[Segment, ...]
    fps: float = 8.0
    seed: int = 0
    guidance: float = GUIDANCE
    last_guidance: float | None = None
    negative: str = ""
    scheme: Scheme | None = None
    keep: int = 2  # latent frames that each window keeps of the one before
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if not self.segments:
            raise UserError("a story needs at least one segment with a prompt")
        if not all(isinstance(each, Segment) for each in self.segments):
            raise UserError('the segments of a Story should be Segments; tokvid.make_story(["…", "…"]) takes texts')
        if not isinstance(self.fps, numbers.Real) or not 0 < self.fps <= FASTEST:
            raise UserError(f"fps should be above 0 and at most {FASTEST:g}, got {self.fps!r:.40}")
        check_seed(self.seed)
        check_guidance(self.guidance)
        check_guidance(self.guidance if self.last_guidance is None else self.last_guidance)
        checked(self.negative)
        if self.seconds > MOST_SECONDS:
            raise UserError(f"all segments together should have at most {MOST_SECONDS:g} seconds, got {self.seconds:g}")

    def seed_of(self, number: int) -> int:
        """The seed of a segment: its own, or one that differs from the others'."""
        own = self.segments[number].seed
        return own if own is not None else (self.seed + NEXT_SEED * number) % 2**32

    @property
    def starts(self) -> list[float]:
        """The second at which each segment begins, and at which the last ends."""
        return [0.0, *itertools.accumulate(segment.seconds for segment in self.segments)]

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.starts[-1]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Each segment's first frame, and one past its last; a short segment may have none."""
        edges = [round(start * self.fps) for start in self.starts]
        edges[-1] = max(1, edges[-1])
        return list(itertools.pairwise(edges))

    @property
    def frames(self) -> int:
        """Its number of frames."""
        return self.spans[-1][1]


class _Loader(yaml.SafeLoader):
    """Plain values only. No aliases: a few bytes can expand to gigabytes. No duplicate keys: one would be lost."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names: set[str] = set()
        for name, mark in ((str(key.value), key.start_mark) for key, _ in node.value):
            if name in names:
                raise yaml.MarkedYAMLError(problem=f"{name!r:.40} is there twice", problem_mark=mark)
            names.add(name)
        return super().construct_mapping(node, deep)


def defaults_of(task: str, draws: int = 1, temperature: Any = None) -> tuple[float, Sampling]:
    """The default guidance scale and sampling of a task: greedy where the truth leaves little to chance.

    Several draws, of which the mean is wanted, are drawn as likely as they are, whatever the weights name. A
    `temperature` that is asked for is then that of all latent frames.
    """
    if TASKS[task].certain:
        usual = Sampling(temperature=0.0) if draws == 1 else Sampling(temperature=1.0, later_temperature=1.0)
        asked: Any = temperature if isinstance(temperature, numbers.Real) else 0
        if not 0 < asked <= HIGHEST_TEMPERATURE:  # of others, whoever sets it says what is wrong
            return 1.0, usual
        # Between given frames, all latent frames are later ones: where only the first one's changed, none would.
        return 1.0, Sampling(temperature=float(asked), later_temperature=float(asked))
    return LOW_GUIDANCE if TASKS[task].placed else GUIDANCE, Sampling()


def load_story(path: str | Path) -> Story:
    """Reads a story, YAML or JSON: `fps`, `seed`, `guidance`, `sampling`, …, and `segments` with `prompt`, `seconds`, …

    UserError for a file that is missing, too large, not UTF-8, not YAML, or that has unknown or mistyped fields.
    """
    text = read_text(path, "story")
    try:
        is_json = Path(path).suffix.lower() == ".json"
        read = json.loads(text, object_pairs_hook=once_each) if is_json else _Loader(text).get_single_data()
        return from_dict(Story, read, "story")
    except json.JSONDecodeError as error:
        raise UserError(f"story {path} is not valid JSON: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        hint = "; indent with spaces, and quote a prompt that has a colon" if syntax else ""
        raise UserError(f"story {path}{line}: {error.problem or error.context}{hint}") from error
    except UserError as error:
        raise UserError(f"story {path}: {error}") from error
    except Exception as error:  # PyYAML raises nearly anything on values such as `!!int ""`
        raise UserError(f"story {path} is not valid YAML: {type(error).__name__} {error}") from error


def story_text(story: Story) -> str:
    """A story as YAML that `load_story` reads back to an equal one; fields with their default value are left out."""
    return yaml.safe_dump(story_values(story), allow_unicode=True, sort_keys=False, width=120)


def story_values(story: Story) -> dict[str, Any]:
    """The fields of a story file: those that haven't their default values, and `segments` at the end."""
    values = _changed(story)
    del values["segments"]
    always = ({"prompt": each.prompt, "seconds": each.seconds} for each in story.segments)
    segments = [{**fields, **_changed(each)} for fields, each in zip(always, story.segments, strict=True)]
    return {**values, "segments": segments}


def _changed(config: Any) -> dict[str, Any]:
    """The fields that differ from their defaults, as plain values."""
    values = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }
    return {name: _changed(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def read_text(path: str | Path, kind: str) -> str:
    """UTF-8 text of a `kind` of file. UserError where it is missing, too large or no text."""
    try:
        return read_limited(path, kind, LARGEST_FILE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{kind} {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def opening_frames(latent_frames: int, temporal_patch: int) -> int:
    """The frames of an opening that come before the story: none of an image, which is the story's first frame."""
    return frames_of(latent_frames, temporal_patch) if latent_frames > 1 else 0


def joins(story: Story, models: Models) -> list[int]:
    """The first frame of each window but the first, for measuring seams."""
    patch = models.temporal_patch
    spans = spans_of(models, story.starts[:-1], story.fps, latent_frames_for(story.frames, patch), keep=story.keep)
    return [frames_of(span.first, patch) for span in spans if span.first]


def prompts_of(story: Story, models: Models, before: float = 0.0) -> list[Prompt]:
    """A prompt for each segment: the first from 0 s on, the others `before` seconds later than in the story."""
    prompts = []
    for number, (start, segment) in enumerate(zip(story.starts, story.segments, strict=False)):
        guidance = Guidance(
            segment.guidance if segment.guidance is not None else story.guidance,
            segment.last_guidance if segment.last_guidance is not None else story.last_guidance,
            segment.negative if segment.negative is not None else story.negative,
        )
        at = start + before if number else 0.0
        prompts.append(make_prompt(models, [segment.prompt], np.array([story.seed_of(number)]), guidance, at))
    return prompts


def levels_of(story: Story, models: Models, frames: int, rates: Sequence[float] = ()) -> Levels:
    """The levels of a video of so many frames, sampled as the story says, at its own rate or these."""
    latent_frames = latent_frames_for(frames, models.temporal_patch)
    return Levels(rates or [story.fps], latent_frames, story.keep, story.sampling)


def tell(
    models: Models,
    story: Story,
    windows: Windows | None = None,
    opening: Int[np.ndarray, "t h w q"] | None = None,
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """The frames of a story, uint8 (T, H, W, 3), a few at a time, in memory that doesn't grow with its length.

    `opening`: tokens (T', H', W', Q) of an image, which becomes the story's first frame, or of a video at the story's
    rate, whose frames come before the story; after a video, the story is generated at one level. Windows are added to
    `windows`; those that it already holds, from this story or from one that begins alike, are not generated again.
    """
    opening_THWQ = models.no_tokens(1)[0] if opening is None else opening
    patch = models.temporal_patch
    before = opening_frames(len(opening_THWQ), patch)
    rates = rates_of(models, story.fps, story.scheme) if len(opening_THWQ) < 2 else [story.fps]
    prompts = prompts_of(story, models, before / story.fps)
    levels = levels_of(story, models, before + story.frames, rates)
    yield from first_frames(before + story.frames, videos(models, prompts, levels, opening_THWQ[None], windows=windows))


def first_frames(
    count: int, videos: Iterator[UInt8[np.ndarray, "b t h w 3"]]
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """The first `count` frames (T, H, W, 3) of batches of one video, without the padding of its last latent frame."""
    for video_BTHWC in videos:
        yield video_BTHWC[0][:count]
        count -= min(count, video_BTHWC.shape[1])


def encode_opening(
    models: Models, frames: Iterator[UInt8[np.ndarray, "h w 3"]], size: tuple[int, int] | None = None
) -> Int[np.ndarray, "tl hl wl q"]:
    """Frames uint8 (H, W, 3) → tokens (T', H', W', Q) of all full latent frames. `size` is by default the models'."""
    encoder = StreamEncoder(models.tokenizer, 1, size or models.size)
    return np.concatenate([encoder.feed(frame_HWC[None, None]) for frame_HWC in frames], axis=1)[0]


class Opening(NamedTuple):
    """What a story begins with or goes on from: tokens (T', H', W', Q), and the given frames, uint8 (T, H, W, 3).

    The tokens are those of the last frames; a few frames may come before them. The frames may be a whole number of
    times as large as the models', and then the story's are, too.
    """

    tokens_THWQ: Int[np.ndarray, "tl hl wl q"]
    frames_THWC: UInt8[np.ndarray, "t h w 3"]
    is_first: bool = False  # the story's own first frame, a picture; a video comes before it

    def before(self, temporal_patch: int) -> int:
        """The number of frames before those of the tokens."""
        return len(self.frames_THWC) - frames_of(len(self.tokens_THWQ), temporal_patch)


def encode_picture(models: Models, image_HWC: UInt8[np.ndarray, "h w 3"]) -> Opening:
    """An image, uint8 (H, W, 3) of the models' size or a multiple, as the first frame of a story."""
    return Opening(encode_opening(models, iter([reduced(image_HWC, models.size)])), image_HWC[None], is_first=True)


def encode_video(models: Models, frames: Iterator[UInt8[np.ndarray, "h w 3"]]) -> Opening:
    """A video, uint8 (H, W, 3) of the models' size or a multiple, as the opening of a story.

    Latent frames are aligned to the video's end: its first frames, too few to fill another one, have no tokens.
    """
    given_THWC = np.stack(list(frames))
    before = (len(given_THWC) - 1) % models.temporal_patch
    aligned = (reduced(frame_HWC, models.size) for frame_HWC in given_THWC[before:])
    return Opening(encode_opening(models, aligned), given_THWC)
