"""Moving Shapes: one coloured shape on a grey torus, with a caption for each stretch of uniform motion.

A story is a few numbers drawn from a seed; its frames are rendered when they are read, at any rate, length and size,
and always show the same world. `tokvid.shapes.words` defines the words in numbers; `tokvid.shapes.reading` reads them
back from pixels.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float64, UInt8

from tokvid.errors import UserError, did_you_mean
from tokvid.shapes import words as vocabulary
from tokvid.shapes.words import ShapeAttributes
from tokvid.types import Caption

COLOR_CHANGES = 0.25  # probability that the colour changes with the motion
ENGLISH = 0.75  # probability of English, where the language is drawn
SECONDS_STEP = 0.25  # drawn lengths are multiples of this

_WORDS: dict[str, dict[str, str]] = {
    "en": {
        **{name: name for name in (*vocabulary.SIZES, *vocabulary.COLORS, *vocabulary.SHAPES)},
        "right": "to the right",
        "left": "to the left",
        "up": "up",
        "down": "down",
        "up-right": "to the upper right",
        "up-left": "to the upper left",
        "down-right": "to the lower right",
        "down-left": "to the lower left",
        "slow": "slowly",
        "quick": "quickly",
    },
    "zh": {
        "small": "小",
        "large": "大",
        "red": "红色",
        "green": "绿色",
        "blue": "蓝色",
        "yellow": "黄色",
        "purple": "紫色",
        "white": "白色",
        "circle": "圆形",
        "square": "方形",
        "triangle": "三角形",
        "star": "星形",
        "right": "右",
        "left": "左",
        "up": "上",
        "down": "下",
        "up-right": "右上",
        "up-left": "左上",
        "down-right": "右下",
        "down-left": "左下",
        "slow": "慢慢",
        "quick": "快速",
    },
}
_MOVING = {
    "en": (
        "a {size} {color} {shape} moves {speed} {direction}",
        "the {size} {color} {shape} is moving {direction} {speed}",
        "a {size} {color} {shape} {speed} moves {direction}",
        "there is a {size} {color} {shape} moving {speed} {direction}",
        "a {shape} that is {size} and {color} moves {direction} {speed}",
        "{speed} the {size} {color} {shape} goes {direction}",
        "a {color} {shape} goes {direction} {speed} and it is {size}",
    ),
    "zh": (
        "一个{size}的{color}{shape}{speed}向{direction}移动",
        "{color}的{size}{shape}正在向{direction}{speed}移动",
        "有一个{color}的{size}{shape}在{speed}向{direction}移动",
        "向{direction}{speed}移动的是一个{size}的{color}{shape}",
        "{speed}向{direction}移动的{size}{shape}是{color}的",
    ),
}
_STILL = {
    "en": (
        "a {size} {color} {shape} stays still",
        "the {size} {color} {shape} is not moving",
        "a {size} {color} {shape} is still",
        "there is a {size} {color} {shape} that stays still",
        "a {shape} that is {size} and {color} is not moving",
        "the {size} {color} {shape} stays still",
        "a {color} {shape} is still and it is {size}",
    ),
    "zh": (
        "一个{size}的{color}{shape}静止不动",
        "{color}的{size}{shape}没有移动",
        "有一个{color}的{size}{shape}静止不动",
        "静止不动的是一个{size}的{color}{shape}",
        "静止不动的{size}{shape}是{color}的",
    ),
}
LANGUAGES = tuple(_MOVING)
PHRASINGS = {language: len(phrases) for language, phrases in _MOVING.items()}  # the number of phrasings


@dataclasses.dataclass(frozen=True)
class ShapesSegment:
    """A stretch of uniform motion from `start`, lasting `seconds`; `caption` states its attributes."""

    start: float
    seconds: float
    attributes: ShapeAttributes
    caption: str


@dataclasses.dataclass(frozen=True)
class ShapesStory:
    """Everything about one video. Radius and position (x, y at time 0) are in world units.

    Size, shape and jitters are the same in every segment, so that an object keeps its identity.
    """

    radius: float
    hue_shift: float  # degrees
    background: int  # grey level
    position: tuple[float, float]
    segments: tuple[ShapesSegment, ...]

    @property
    def seconds(self) -> float:
        """The length of all segments."""
        return self.segments[-1].start + self.segments[-1].seconds


def caption(attributes: ShapeAttributes, index: int, language: str) -> str:
    """The `index`-th phrasing (modulo `PHRASINGS[language]`), which states every attribute."""
    if language not in LANGUAGES:
        raise UserError(did_you_mean(language, LANGUAGES, "language"))
    phrases = (_STILL if attributes.direction == vocabulary.STILL else _MOVING)[language]
    words = _WORDS[language]
    names = {field: words.get(name, "") for field, name in vars(attributes).items()}
    return phrases[index % len(phrases)].format(**names)


def language_of(text: str) -> str:
    """The one of `LANGUAGES` that a caption is in."""
    return "zh" if any("一" <= letter <= "鿿" for letter in text) else "en"


@functools.cache
def _captioned() -> dict[str, ShapeAttributes]:
    """The attributes that each possible caption states."""
    captions = {}
    for composition in (*_HELD_OUT, *_IN_TRAINING):
        still = composition[3] == vocabulary.STILL
        for speed in (vocabulary.NO_SPEED,) if still else vocabulary.SPEEDS:
            attributes = ShapeAttributes(*composition, speed=speed)
            for language, count in PHRASINGS.items():
                captions.update({caption(attributes, index, language): attributes for index in range(count)})
    return captions


def attributes_of(text: str) -> ShapeAttributes:
    """What a caption states. UserError for a text that is no caption of Moving Shapes."""
    if (attributes := _captioned().get(text.strip())) is None:
        example = next(iter(_captioned()))
        raise UserError(f"{text!r:.60} is no caption of Moving Shapes; captions are like {example!r}")
    return attributes


def captions_corpus(captions: int, seed: int) -> list[str]:
    """Captions of drawn stories, in both languages, for training a text model."""
    rng = np.random.default_rng(seed)
    corpus: list[str] = []
    while len(corpus) < captions:
        corpus += [segment.caption for segment in sample_story(int(rng.integers(2**63))).segments]
    return corpus[:captions]


def sample_story(
    seed: int,
    *,
    held_out: bool = False,
    segments: tuple[int, int] = (1, 3),
    segment_seconds: tuple[float, float] = (2.0, 6.0),
    language: str | None = None,
) -> ShapesStory:
    """Draws a story of `segments` (least, most) segments, each `segment_seconds` (least, most) long.

    Lengths are rounded to quarters of a second. From one segment to the next the motion changes, sometimes the colour
    too. No segment shows a held-out composition, or every one does if `held_out`. `language` None is drawn for the
    story. UserError for ranges that are empty or not positive, and for an unknown language.
    """
    if not 1 <= segments[0] <= segments[1]:
        raise UserError(f"segments {segments}: (least, most) must have 1 <= least <= most")
    if not SECONDS_STEP <= segment_seconds[0] <= segment_seconds[1]:
        raise UserError(f"segment_seconds {segment_seconds}: (least, most) must have {SECONDS_STEP} <= least <= most")
    rng = np.random.default_rng(seed)
    allowed = _HELD_OUT if held_out else _IN_TRAINING
    attributes = [_with_speed(rng, allowed[rng.integers(len(allowed))], None)]
    for _ in range(rng.integers(segments[0], segments[1] + 1) - 1):
        attributes.append(_next_attributes(rng, attributes[-1], allowed))
    steps = rng.uniform(segment_seconds[0], segment_seconds[1], len(attributes)) / SECONDS_STEP
    return story_from(attributes, [round(step) * SECONDS_STEP for step in steps], seed, language=language)


def story_from(
    attributes: Sequence[ShapeAttributes], seconds: Sequence[float], seed: int, *, language: str | None = None
) -> ShapesStory:
    """The story with one segment for each of `attributes` and `seconds`; `seed` draws everything else.

    UserError unless each segment has a positive length, and all have one size and shape.
    """
    if not attributes or len(attributes) != len(seconds) or min(seconds) <= 0:
        raise UserError(f"{len(attributes)} segments with seconds {tuple(seconds)}: give one positive length a segment")
    kinds = {(each.size, each.shape) for each in attributes}
    if len(kinds) != 1:
        raise UserError(f"a story's size and shape never change, but these do: {sorted(kinds)}")
    rng = np.random.default_rng([seed, 1])  # another stream than that of the attributes
    drawn_language = "en" if rng.random() < ENGLISH else "zh"
    first = attributes[0]
    jitter = rng.uniform(-1, 1, 2)
    position = rng.uniform(0, vocabulary.WORLD, 2)
    background = int(rng.integers(vocabulary.BACKGROUND_GREYS[0], vocabulary.BACKGROUND_GREYS[1] + 1))
    starts = np.cumsum([0.0, *seconds])
    drawn = tuple(
        ShapesSegment(
            float(start),
            float(length),
            each,
            caption(each, int(rng.integers(2**31)), language or drawn_language),
        )
        for start, length, each in zip(starts[:-1], seconds, attributes, strict=True)
    )
    return ShapesStory(
        radius=vocabulary.SIZES[first.size] * (1 + vocabulary.SIZE_JITTER * float(jitter[0])),
        hue_shift=vocabulary.HUE_JITTER * float(jitter[1]),
        background=background,
        position=(float(position[0]), float(position[1])),
        segments=drawn,
    )


_Composition = tuple[str, str, str, str]  # size, color, shape, direction


def _compositions(held_out: bool) -> tuple[_Composition, ...]:
    every: Iterable[_Composition] = (
        (size, color, shape, direction)
        for size in vocabulary.SIZES
        for color in vocabulary.COLORS
        for shape in vocabulary.SHAPES
        for direction in vocabulary.DIRECTIONS
    )
    return tuple(each for each in every if (each in vocabulary.HELD_OUT) == held_out)


_HELD_OUT, _IN_TRAINING = _compositions(True), _compositions(False)


def _with_speed(rng: np.random.Generator, composition: _Composition, other_than: str | None) -> ShapeAttributes:
    still = composition[3] == vocabulary.STILL
    speeds = [vocabulary.NO_SPEED] if still else [name for name in vocabulary.SPEEDS if name != other_than]
    return ShapeAttributes(*composition, speed=speeds[rng.integers(len(speeds))])


def _next_attributes(
    rng: np.random.Generator, last: ShapeAttributes, allowed: tuple[_Composition, ...]
) -> ShapeAttributes:
    new_color = rng.random() < COLOR_CHANGES
    # The direction may stay, as the speed then changes; but a still shape has no speed to change.
    options = [
        each
        for each in allowed
        if each[2] == last.shape and each[0] == last.size and not each[3] == last.direction == vocabulary.STILL
    ]
    # Where no held-out composition has the same colour, the colour changes.
    options = [each for each in options if (each[1] != last.color) == new_color] or options
    chosen = options[rng.integers(len(options))]
    return _with_speed(rng, chosen, last.speed if chosen[3] == last.direction else None)


def positions(story: ShapesStory, seconds_T: Float[np.ndarray, " t"]) -> Float64[np.ndarray, "t 2"]:
    """The centre at these times, x and y in world units, not wrapped.

    The exact integral of a velocity that is constant within a segment; the last segment's motion never ends.
    """
    starts_S = np.array([segment.start for segment in story.segments])
    ends_S = np.append(starts_S[1:], np.inf)
    spent_TS = np.clip(seconds_T[:, None], starts_S, ends_S) - starts_S
    velocity_SC = np.array([segment.attributes.velocity for segment in story.segments])
    return np.asarray(story.position) + spent_TS @ velocity_SC


def render(
    story: ShapesStory, *, start: float = 0.0, fps: float = 8.0, frames: int = 9, size: int = 64
) -> UInt8[np.ndarray, "{frames} {size} {size} 3"]:
    """Frames at start + i/fps seconds.

    Anti-aliased by the distance to the outline, at sub-pixel positions. UserError for a negative start, and for an fps,
    a number of frames or a size that is not positive.
    """
    if not (start >= 0 and fps > 0 and frames >= 1 and size >= 1):
        raise UserError(
            f"start {start}, fps {fps}, frames {frames}, size {size}: "
            "start must be >= 0, fps > 0, frames >= 1 and size >= 1"
        )
    seconds_T = start + np.arange(frames) / fps
    scale = size / vocabulary.WORLD
    center_TC = positions(story, seconds_T) * scale
    shape = story.segments[0].attributes.shape
    radius = story.radius * scale

    # Only the box around the object is computed; the rest is background.
    side = min(size, 2 * math.ceil(vocabulary.reach(shape, radius) + 1) + 1)
    corner_TC = np.floor(center_TC).astype(np.int64) - side // 2
    index_TCS = corner_TC[:, :, None] + np.arange(side)
    offset_TCS = (index_TCS + 0.5 - center_TC[:, :, None]).astype(np.float32)
    distance_THW = vocabulary.signed_distance(shape, offset_TCS[:, 0, None, :], offset_TCS[:, 1, :, None], radius)
    cover_THW = np.clip(np.float32(0.5) - distance_THW, 0, 1)

    # A frame on the boundary shows the new segment; the margin absorbs rounding of i/fps.
    starts_S = np.array([segment.start for segment in story.segments])
    segment_T = np.searchsorted(starts_S, seconds_T + 1e-6, side="right") - 1
    colors_SC = np.array(
        [vocabulary.rgb(each.attributes.color, story.hue_shift) for each in story.segments], dtype=np.float32
    )
    color_T11C = colors_SC[segment_T][:, None, None, :]
    grey = np.float32(story.background)
    box_THWC = (cover_THW[..., None] * (color_T11C - grey) + (grey + np.float32(0.5))).astype(np.uint8)

    video_THWC = np.full((frames, size, size, 3), story.background, dtype=np.uint8)
    columns_TW, rows_TH = index_TCS[:, 0] % size, index_TCS[:, 1] % size
    video_THWC[np.arange(frames)[:, None, None], rows_TH[:, :, None], columns_TW[:, None, :]] = box_THWC
    return video_THWC


@dataclasses.dataclass(frozen=True)
class ShapesItem:
    """One story as a `tokvid.types.VideoItem`."""

    key: str
    story: ShapesStory

    @property
    def seconds(self) -> float:
        return self.story.seconds

    @property
    def captions(self) -> tuple[Caption, ...]:
        return tuple(Caption(segment.start, segment.caption) for segment in self.story.segments)

    def read(
        self, start: float, fps: float, frames: int, size: tuple[int, int]
    ) -> UInt8[np.ndarray, "{frames} {size[0]} {size[1]} 3"]:
        """Frames at start + i/fps seconds. UserError if `size` is not square."""
        if size[0] != size[1]:
            raise UserError(f"size {size}: Moving Shapes are square, give the same height and width")
        return render(self.story, start=start, fps=fps, frames=frames, size=size[0])


class ShapesDataset:
    """A random-access dataset (`tokvid.types.VideoSource`) of stories.

    Item i depends on seed, i and `held_out` alone, not on the length. `segments`, `segment_seconds` and `language` are
    as in `sample_story`.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        held_out: bool = False,
        *,
        segments: tuple[int, int] = (1, 3),
        segment_seconds: tuple[float, float] = (2.0, 6.0),
        language: str | None = None,
    ) -> None:
        if length < 1 or seed < 0:
            raise UserError(f"length {length}, seed {seed}: length must be >= 1 and seed >= 0")
        self.length, self.seed, self.held_out = length, seed, held_out
        self.segments, self.segment_seconds, self.language = segments, segment_seconds, language

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ShapesItem:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of a dataset of {self.length}")
        mixed = np.random.SeedSequence([self.seed, int(self.held_out), index]).generate_state(1, np.uint64)
        story = sample_story(
            int(mixed[0]),
            held_out=self.held_out,
            segments=self.segments,
            segment_seconds=self.segment_seconds,
            language=self.language,
        )
        stream = "held-out" if self.held_out else "shapes"
        return ShapesItem(f"{stream}-{self.seed}-{index}", story)
