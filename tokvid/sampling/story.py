"""Stories: a sequence of prompts becomes one video, written as it is made, resumed where it was interrupted."""

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from jaxtyping import Int, UInt8

from tokvid.config import GUIDANCE, Sampling, Scheme, check_guidance, check_seed, from_dict
from tokvid.errors import UserError
from tokvid.input_pipeline.text import checked
from tokvid.io.files import atomic
from tokvid.sampling.levels import Levels, rates_of, spans_of, videos
from tokvid.sampling.stream import (
    Guidance,
    Models,
    Prompt,
    StreamDecoder,
    StreamEncoder,
    frames_of,
    latent_frames_for,
    make_prompt,
)

LARGEST_FILE = 1 << 20  # bytes of a story file
MOST_SECONDS = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class Segment:
    """One prompt and how long it holds; what is not said is as in the story."""

    prompt: str
    seconds: float = 4.0
    seed: int | None = None
    guidance: float | None = None
    last_guidance: float | None = None
    negative: str | None = None

    def __post_init__(self) -> None:
        checked(self.prompt)
        checked(self.negative or "")
        if not 0 < self.seconds <= MOST_SECONDS:
            raise UserError(f"seconds should be above 0 and at most {MOST_SECONDS:g}, got {self.seconds}")
        if self.seed is not None:
            check_seed(self.seed)
        for guidance in (self.guidance, self.last_guidance):
            if guidance is not None:
                check_guidance(guidance)


@dataclasses.dataclass(frozen=True)
class Story:
    """What is to be told: segments one after another at one frame rate.

    Guidance goes from `guidance` at a segment's beginning to `last_guidance` at its end (None: it stays), away from the
    text `negative`. `scheme` None is hierarchical where the weights can be.
    """

    segments: tuple[Segment, ...]
    fps: float = 8.0
    seed: int = 0
    guidance: float = GUIDANCE
    last_guidance: float | None = None
    negative: str = ""
    scheme: Scheme | None = None
    keep: int = 2  # latent frames that each window takes over from the one before
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if not self.segments:
            raise UserError("a story needs at least one segment with a prompt")
        if not 0 < self.fps <= 240:
            raise UserError(f"fps should be above 0 and at most 240, got {self.fps}")
        check_seed(self.seed)
        check_guidance(self.guidance)
        check_guidance(self.guidance if self.last_guidance is None else self.last_guidance)
        checked(self.negative)
        if self.seconds > MOST_SECONDS:
            raise UserError(f"all segments together should have at most {MOST_SECONDS:g} seconds, got {self.seconds:g}")

    @property
    def starts(self) -> list[float]:
        """The second at which each segment begins, and the one at which the last ends."""
        return [0.0, *itertools.accumulate(segment.seconds for segment in self.segments)]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.starts[-1]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The first frame of every segment, and one past its last; a segment may be too short for any."""
        edges = [round(start * self.fps) for start in self.starts]
        edges[-1] = max(1, edges[-1])
        return list(itertools.pairwise(edges))

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return self.spans[-1][1]


class _Loader(yaml.SafeLoader):
    """Plain values only. No aliases: a few bytes of them stand for gigabytes. No key twice: the first would be lost."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not used here", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names: set[str] = set()
        for name, mark in ((str(key.value), key.start_mark) for key, _ in node.value):
            if name in names:
                raise yaml.MarkedYAMLError(problem=f"{name!r:.40} is there twice", problem_mark=mark)
            names.add(name)
        return super().construct_mapping(node, deep)


def load_story(path: str | Path) -> Story:
    """Reads a YAML story, of plain values: `fps`, `seed`, `guidance`, `sampling`, and `segments` of prompt, seconds, …

    UserError for a file that is missing, too large, not UTF-8, not YAML, or has unknown or mistyped fields.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise UserError(f"it has more than {LARGEST_FILE} bytes; split it")
        loader = _Loader(data.decode("utf-8"))
        return from_dict(Story, loader.get_single_data(), "story")
    except OSError as error:
        raise UserError(f"cannot read story {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"story {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"story {path}{line}: {error.problem or error.context}") from error
    except UserError as error:
        raise UserError(f"story {path}: {error}") from error
    except Exception as error:  # PyYAML raises nearly anything on values such as `!!int ""`
        raise UserError(f"story {path} is not valid YAML: {type(error).__name__} {error}") from error


def frames_given(latent_frames: int, temporal_patch: int) -> int:
    """How many given frames come before a story. One picture doesn't: it is the story's first frame."""
    return frames_of(latent_frames, temporal_patch) if latent_frames > 1 else 0


def joins(story: Story, models: Models) -> list[int]:
    """Frames at which a new window begins (the first frame that it makes), for measuring seams."""
    patch = models.tokenizer.config.temporal_patch
    spans = spans_of(models, story.starts[:-1], story.fps, latent_frames_for(story.frames, patch), keep=story.keep)
    return [frames_of(span.first, patch) for span in spans if span.first]


def prompts_of(story: Story, models: Models, before: float = 0.0) -> list[Prompt]:
    """What each segment asks of the models; the first one from 0 s on, the others after `before` seconds more."""
    prompts = []
    for number, (start, segment) in enumerate(zip(story.starts, story.segments, strict=False)):
        # A segment of its own seed always comes out the same from the same past; others differ by their number.
        seed = segment.seed if segment.seed is not None else (story.seed + 7919 * number) % 2**32
        guidance = Guidance(
            segment.guidance if segment.guidance is not None else story.guidance,
            segment.last_guidance if segment.last_guidance is not None else story.last_guidance,
            segment.negative if segment.negative is not None else story.negative,
        )
        at = start + before if number else 0.0
        prompts.append(make_prompt(models, [segment.prompt], np.array([seed]), guidance, at))
    return prompts


def tell(
    models: Models, story: Story, partial: Path, opening: Int[np.ndarray, "t h w q"] | None = None
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """The frames of a story, uint8 (T, H, W, 3), a few at a time, in memory that doesn't grow with its length.

    `opening`: tokens (T', H', W', Q) of an image, which becomes the story's first frame, or of a video at the story's
    rate, whose frames come before the story; that is told at one level. Tokens are kept in the file `partial`, and
    those of lower levels beside it, as they are made: when it is there already and belongs to the same story and
    weights, what it holds is decoded, not generated again. `forget` removes them when the video is safe.
    """
    given_THWQ = models.no_tokens(1)[0] if opening is None else opening
    patch, identity = models.tokenizer.config.temporal_patch, _identity(models, story, given_THWQ)
    before = frames_given(len(given_THWQ), patch)
    rates = rates_of(models, story.fps, story.scheme) if len(given_THWQ) < 2 else [story.fps]
    with contextlib.ExitStack() as stack:

        def kept(fps: float) -> _Partial:
            path = partial if fps == story.fps else partial.with_name(f"{partial.name}.{fps:g}fps")
            return stack.enter_context(_Partial(path, identity, models))

        frames = videos(
            models,
            prompts_of(story, models, before / story.fps),
            Levels(rates, latent_frames_for(before + story.frames, patch), story.keep, story.sampling),
            given_THWQ[None],
            kept=kept,
        )
        yield from first_frames(before + story.frames, frames)


def first_frames(
    count: int, videos: Iterator[UInt8[np.ndarray, "b t h w 3"]]
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """The first `count` frames (T, H, W, 3) of batches of one video: what fills up its last latent frame is dropped."""
    for video_BTHWC in videos:
        yield video_BTHWC[0][:count]
        count -= min(count, video_BTHWC.shape[1])


def forget(partial: Path) -> None:
    """Removes what `tell` keeps."""
    for path in (partial, *partial.parent.glob(f"{glob.escape(partial.name)}.*fps")):
        path.unlink(missing_ok=True)


def encode_opening(
    models: Models, frames: Iterator[UInt8[np.ndarray, "h w 3"]], size: tuple[int, int] | None = None
) -> Int[np.ndarray, "tl hl wl q"]:
    """Frames uint8 (H, W, 3) → tokens (T', H', W', Q); a last latent frame that isn't full is left out.

    They have the models' size, unless another is given.
    """
    encoder = StreamEncoder(models.tokenizer, 1, size or models.size)
    return np.concatenate([encoder.feed(frame_HWC[None, None]) for frame_HWC in frames], axis=1)[0]


class Opening(NamedTuple):
    """What comes before a story: tokens (T', H', W', Q), and frames before those, uint8 (T, H, W, 3), maybe none."""

    tokens_THWQ: Int[np.ndarray, "tl hl wl q"]
    before_THWC: UInt8[np.ndarray, "t h w 3"]


def encode_picture(models: Models, image_HWC: UInt8[np.ndarray, "h w 3"]) -> Opening:
    """A picture, uint8 (H, W, 3) of the models' size, as the first frame of a story."""
    return Opening(encode_opening(models, iter([image_HWC])), np.zeros((0, *image_HWC.shape), np.uint8))


def encode_video(models: Models, frames: Iterator[UInt8[np.ndarray, "h w 3"]]) -> Opening:
    """All of a video, uint8 (H, W, 3) of the models' size.

    Latent frames end where the video does. Its first frames, too few to fill another one, are left as the tokenizer
    sees them.
    """
    patch, count = models.tokenizer.config.temporal_patch, 0
    encoders = [StreamEncoder(models.tokenizer, 1, models.size) for _ in range(patch)]  # one for each frame to begin at
    parts: list[list[np.ndarray]] = [[] for _ in encoders]
    first: list[np.ndarray] = []
    for frame_HWC in frames:
        count += 1
        first += [frame_HWC] * (len(first) < patch)
        for encoder, tokens in zip(encoders[:count], parts, strict=False):
            tokens.append(encoder.feed(frame_HWC[None, None]))
    before = (count - 1) % patch
    video_THWC = np.stack(first)
    filled_THWC = np.concatenate([video_THWC[:before], *[video_THWC[before - 1 : before]] * (1 + patch - before)])
    ids_BTHWQ = StreamEncoder(models.tokenizer, 1, models.size).feed(filled_THWC[None])
    shown_BTHWC = StreamDecoder(models.tokenizer, 1, *ids_BTHWQ.shape[2:4]).feed(ids_BTHWQ)
    return Opening(np.concatenate(parts[before], axis=1)[0], shown_BTHWC[0, :before])


def _identity(models: Models, story: Story, given_THWQ: Int[np.ndarray, "t h w q"]) -> str:
    """What decides every token of a story, as 16 hex digits."""
    text = json.dumps(dataclasses.asdict(story), sort_keys=True) + models.mark
    return hashlib.sha256(text.encode() + given_THWQ.tobytes()).hexdigest()[:16]


class _Partial:
    """The tokens of a story so far, in a file: a line that says whose they are, then int32 latent frames."""

    def __init__(self, path: Path, identity: str, models: Models):
        self._shape = models.no_tokens(1).shape[2:]
        self._path, self._vocabulary = path, models.transformer.config.vocabulary
        self._line = f"tokvid story {identity}\n".encode()
        self._bytes = 4 * math.prod(self._shape)
        self.latent_frames = 0  # whole ones that were there

    def __enter__(self) -> "_Partial":
        if not self._belongs():
            with atomic(self._path) as temporary:
                temporary.write_bytes(self._line)
        self._file = open(self._path, "r+b")
        self.latent_frames = (self._path.stat().st_size - len(self._line)) // self._bytes
        return self

    def _belongs(self) -> bool:
        try:
            with open(self._path, "rb") as file:
                return file.read(len(self._line)) == self._line
        except FileNotFoundError:
            return False

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, latent_frames: int) -> Iterator[Int[np.ndarray, "t h w q"]]:
        """The first so many that were kept, one at a time (1, H, W, Q); what comes after them is dropped."""
        self._file.seek(len(self._line))
        for _ in range(latent_frames):
            tokens_THWQ = np.frombuffer(self._file.read(self._bytes), "<i4").reshape(1, *self._shape)
            if not 0 <= tokens_THWQ.min() <= tokens_THWQ.max() < self._vocabulary:
                raise UserError(f"{self._path} is damaged; remove it, and the story begins anew")
            yield tokens_THWQ.astype(np.int32)
        self._file.truncate(self._file.tell())

    def add(self, tokens_THWQ: Int[np.ndarray, "t h w q"]) -> None:
        """Keeps more latent frames."""
        try:
            self._file.write(tokens_THWQ.astype("<i4").tobytes())
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; free some space, then run again") from error
