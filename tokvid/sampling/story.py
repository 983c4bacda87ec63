"""Stories: a sequence of prompts becomes one video, written as it is made, resumed where it was interrupted."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tokvid.errors import UserError, did_you_mean
from tokvid.files import atomic
from tokvid.input_pipeline.windows import captions_in_force
from tokvid.sampling.methods import Sampling
from tokvid.sampling.stream import Models, RollingWindow, StreamDecoder, StreamEncoder, latent_frames_for
from tokvid.types import Caption

LARGEST_FILE = 1 << 20  # bytes of a story file
MOST_SECONDS = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class Segment:
    """One prompt and how long it holds; seed and guidance default to the story's."""

    prompt: str
    seconds: float = 4.0
    seed: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= MOST_SECONDS:
            raise UserError(f"seconds of a segment should be above 0 and at most {MOST_SECONDS:g}, got {self.seconds}")
        if self.seed is not None:
            check_seed(self.seed)
        if self.guidance is not None:
            check_guidance(self.guidance)


@dataclasses.dataclass(frozen=True)
class Story:
    """What is to be told: segments one after another at one frame rate."""

    segments: tuple[Segment, ...]
    fps: float = 8.0
    seed: int = 0
    guidance: float = 2.0
    keep: int = 2  # latent frames that each window takes over from the one before
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if not self.segments:
            raise UserError("a story needs at least one segment with a prompt")
        if not 0 < self.fps <= 240:
            raise UserError(f"fps should be above 0 and at most 240, got {self.fps}")
        check_seed(self.seed)
        check_guidance(self.guidance)

    @property
    def seconds(self) -> float:
        return sum(segment.seconds for segment in self.segments)

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return max(1, round(self.seconds * self.fps))

    @property
    def captions(self) -> tuple[Caption, ...]:
        """The prompts with the second at which each begins."""
        starts = np.cumsum([0.0, *(segment.seconds for segment in self.segments)])
        return tuple(Caption(float(start), s.prompt) for start, s in zip(starts, self.segments, strict=False))


def load_story(path: str | Path) -> Story:
    """Reads a YAML story (safe loader): `fps`, `seed`, `guidance`, `sampling`, and `segments` with prompt, seconds, …

    UserError for a file that is missing, too large, not UTF-8, not YAML, or has unknown or mistyped fields.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise UserError(f"story {path} is larger than {LARGEST_FILE} bytes; split it")
        values = yaml.safe_load(data.decode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read story {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"story {path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"story {path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, dict) or not isinstance(values.get("segments"), list):
        raise UserError(f"story {path} should be a mapping with a list `segments`, each with a `prompt`")
    segments = tuple(_fields(Segment, item, f"{path}, segment {i + 1}") for i, item in enumerate(values["segments"]))
    rest = {key: value for key, value in values.items() if key != "segments"}
    if "sampling" in rest:
        rest["sampling"] = _fields(Sampling, rest["sampling"], f"{path}, sampling")
    return _fields(Story, rest | {"segments": segments}, str(path))


def tell(models: Models, story: Story, partial: Path, opening: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The frames of a story, uint8 (T, H, W, 3), a few at a time, in memory that doesn't grow with its length.

    `opening`: tokens (T', H', W') of an image or a video that the story goes on from; its frames come first and are
    counted in. Tokens are kept in the file `partial` as they are made: when it is there already and belongs to the same
    story and weights, what it holds is decoded, not generated again. It is removed at the end.
    """
    patch = models.tokenizer.config.temporal_patch
    _, rows, columns = models.transformer.config.latent
    given = np.zeros((0, rows, columns), np.int32) if opening is None else opening
    extra = 0 if opening is None else frames_of(len(given), patch)
    total = story.frames + max(0, extra - 1)
    latent_frames = latent_frames_for(total, patch)
    if opening is not None and latent_frames <= len(given):
        latent_frames = len(given) + 1
    shown_T = captions_in_force(_moved(story, extra), latent_frames, story.fps, patch)

    window = RollingWindow(models, 1, story.fps, keep=story.keep, method=story.sampling)
    decoder = StreamDecoder(models.tokenizer, 1, rows, columns)
    remaining = total

    def frames(tokens_THW: np.ndarray) -> np.ndarray:
        nonlocal remaining
        video = decoder.feed(tokens_THW[None])[0][:remaining]
        remaining -= len(video)
        return video

    if len(given):
        window.given(given[None])
        for index in range(len(given)):
            yield frames(given[index : index + 1])
    with _Partial(partial, _identity(models, story, given), (rows, columns)) as kept:
        for tokens_THW in kept.read(latent_frames - window.latent_frames):
            window.given(tokens_THW[None])
            yield frames(tokens_THW)
        while window.latent_frames < latent_frames:
            now = shown_T[window.latent_frames]
            count = int(np.argmax(np.append(shown_T[window.latent_frames :] != now, True)))
            segment = story.segments[now]
            # A segment of its own seed always comes out the same from the same past; others differ by their number.
            seed = segment.seed if segment.seed is not None else (story.seed + 7919 * int(now)) % 2**32
            guidance = segment.guidance if segment.guidance is not None else story.guidance
            text = models.text.encode(segment.prompt, models.transformer.config.text_length)[None]
            for made in window.extend(count, text, np.array([seed]), np.array([guidance])):
                kept.add(made[0])
                yield frames(made[0])
        kept.done()


def joins(story: Story, temporal_patch: int, window: int) -> list[int]:
    """Frames at which a new window begins (the first frame that it made), for measuring seams."""
    latent_frames = latent_frames_for(story.frames, temporal_patch)
    shown_T = captions_in_force(story.captions, latent_frames, story.fps, temporal_patch)
    found, latent = [], 0
    while latent < latent_frames:
        same = int(np.argmax(np.append(shown_T[latent:] != shown_T[latent], True)))
        latent += min(window - min(story.keep, latent), same)
        found.append(frames_of(latent, temporal_patch))
    return [frame for frame in found if frame < story.frames]


def encode_opening(models: Models, frames: Iterator[np.ndarray]) -> np.ndarray:
    """Frames uint8 (H, W, 3) of the models' size → tokens (T', H', W'); a last latent frame that isn't full is left out."""
    encoder = StreamEncoder(models.tokenizer, 1, models.size)
    return np.concatenate([encoder.feed(frame[None, None]) for frame in frames], axis=1)[0]


def frames_of(latent_frames: int, temporal_patch: int) -> int:
    """How many frames so many latent frames are."""
    return max(0, 1 + (latent_frames - 1) * temporal_patch)


def check_seed(seed: int) -> None:
    """Seeds are 32 bits: a larger one would silently be another."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed should be 0 to {2**32 - 1}, got {seed}")


def check_guidance(guidance: float) -> None:
    """Guidance below 0 turns away from the text; above 100 nothing is left but one code."""
    if not 0 <= guidance <= 100:
        raise UserError(f"guidance should be 0 to 100 (1 is none), got {guidance}")


def _moved(story: Story, frames: int) -> tuple[Caption, ...]:
    """The captions of a story that comes after so many given frames (the first prompt also covers those)."""
    later = max(0, frames - 1) / story.fps
    return tuple(Caption(c.start + later if c.start else 0.0, c.text) for c in story.captions)


def _identity(models: Models, story: Story, given_THW: np.ndarray) -> str:
    """What decides every token of a story, as 16 hex digits."""
    text = json.dumps(dataclasses.asdict(story), sort_keys=True) + models.mark
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") + given_THW.tobytes()).hexdigest()[:16]


class _Partial:
    """The tokens of a story so far, in a file: a line that says whose they are, then int32 latent frames."""

    def __init__(self, path: Path, identity: str, grid: tuple[int, int]):
        self._path, self._grid = path, grid
        self._line = f"tokvid story {identity} {grid[0]}x{grid[1]}\n".encode()
        self._bytes = 4 * grid[0] * grid[1]

    def __enter__(self) -> "_Partial":
        def fresh() -> None:
            with atomic(self._path) as temporary:
                temporary.write_bytes(self._line)

        if not self._path.is_file() or not self._path.read_bytes()[: len(self._line)] == self._line:
            fresh()
        self._file = open(self._path, "r+b")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, most: int) -> Iterator[np.ndarray]:
        """The latent frames kept, one at a time (1, H, W), leaving the file ready to be added to."""
        self._file.seek(len(self._line))
        for _ in range(most):
            data = self._file.read(self._bytes)
            if len(data) < self._bytes:
                self._file.seek(-len(data), 1)
                break
            yield np.frombuffer(data, "<i4").reshape(1, *self._grid).astype(np.int32)
        self._file.truncate(self._file.tell())

    def add(self, tokens_THW: np.ndarray) -> None:
        try:
            self._file.write(tokens_THW.astype("<i4").tobytes())
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; free some space, then run again") from error

    def done(self) -> None:
        self._path.unlink(missing_ok=True)


def _fields(kind: Callable[..., Any], values: Any, where: str) -> Any:
    """A dataclass from a YAML mapping, or one clear line."""
    if not isinstance(values, dict):
        raise UserError(f"{where} should be a mapping, got {values!r}")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{where}: {did_you_mean(name, fields, 'field')}")
        kinds: Sequence[type] = {
            str: (str,), float: (int, float), int: (int,), int | None: (int,), float | None: (int, float)
        }.get(fields[name], (object,))  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, tuple(kinds)):
            raise UserError(f"{where}: {name} should be {' or '.join(k.__name__ for k in kinds)}, got {value!r:.80}")
    missing = "prompt" if kind is Segment and "prompt" not in values else ""
    if missing:
        raise UserError(f"{where}: {missing} is missing")
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
