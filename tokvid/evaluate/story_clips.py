"""Clips that are each a story of Moving Shapes, how videos of stories are read, and the same stories made otherwise."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from tokvid.evaluate.batches import generate_batch
from tokvid.evaluate.clips import Clips
from tokvid.evaluate.shapes import ATTRIBUTES
from tokvid.sampling.window import Around, Source
from tokvid.shapes.drawing import ShapesStory, caption, language_of, positions, render
from tokvid.shapes.reading import ShapeReading, mean_distance, read_attributes, score
from tokvid.shapes.words import COLORS, SHAPES, WORLD, ShapeAttributes, is_held_out

IDENTITY = ("size", "color", "shape")


@dataclasses.dataclass(frozen=True)
class Batch(Clips):
    """Clips that are each a story of one prompt."""

    stories: Sequence[ShapesStory]

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """The clips, uint8 (B, T, H, W, 3)."""
        return self.drawn(self.stories)

    @property
    def seconds(self) -> float:
        """From the first frame to the last."""
        return (self.frames - 1) / self.fps

    def drawn(self, stories: Sequence[ShapesStory], size: int = 0) -> np.ndarray:
        """Stories in the size of the models or another."""
        size = size or self.models.size[0]
        return np.stack([render(story, fps=self.fps, frames=self.frames, size=size) for story in stories])

    def edited(
        self,
        wanted: Sequence[ShapesStory],
        sources: Sequence[Source] = (),
        around: Around | None = None,
        first_BHWC: np.ndarray | None = None,
        silent: bool = False,
    ) -> np.ndarray:
        """Videos of these stories, or of no prompts, at one rate; what they are made from as for `sampled`."""
        return self.sampled([""] * len(wanted) if silent else texts(wanted), sources, around, first_BHWC)

    def told(self, given: np.ndarray | None = None, frames: int = 0) -> np.ndarray:
        """Videos of the stories' prompts, which begin with the frames of other videos, or with none."""
        seconds = (frames or self.frames) / self.fps
        parts = [(seconds, texts(self.stories))]
        return generate_batch(self.models, self.fps, parts, self.seeds_B, self.settings, given)

    def read(self, made: np.ndarray, wanted: Sequence[ShapesStory]) -> dict[str, Sequence[float]]:
        """Whether each attribute of the stories is read from the videos, and all; whether the object is the same, by
        size, colour and shape; and its mean distance from where it should be, in pixels."""
        readings = [read_attributes(video_THWC, self.fps) for video_THWC in made]
        right = [score(reading, story.segments[0].attributes) for reading, story in zip(readings, wanted, strict=True)]
        return {
            **{name: [each[name] for each in right] for name in ATTRIBUTES},
            "identity": [all(each[name] for name in IDENTITY) for each in right],
            "track_error": [self._away(reading, story) for reading, story in zip(readings, wanted, strict=True)],
        }

    def _away(self, reading: ShapeReading | None, story: ShapesStory) -> float:
        if reading is None:
            return math.nan
        size, seconds_T = self.models.size[0], np.arange(self.frames) / self.fps
        true_TC = positions(story, seconds_T) * size / WORLD
        return mean_distance(reading.centroid_TC, true_TC, size)


def texts(stories: Sequence[ShapesStory]) -> list[str]:
    """The stories' captions."""
    return [story.segments[0].caption for story in stories]


def others(batch: Batch, *fields: str) -> list[ShapesStory]:
    """The same motion by other objects: `fields`, color or shape, differ. No held-out compositions."""
    others = []
    for story, seed in zip(batch.stories, batch.seeds_B, strict=True):
        rng, was = np.random.default_rng(int(seed)), story.segments[0].attributes
        values = {"color": tuple(COLORS), "shape": SHAPES}
        other = was
        while is_held_out(other) or any(getattr(other, field) == getattr(was, field) for field in fields):
            other = dataclasses.replace(was, **{field: str(rng.choice(values[field])) for field in fields})
        others.append(with_attributes(story, other))
    return others


def with_attributes(story: ShapesStory, attributes: ShapeAttributes) -> ShapesStory:
    """The story with other attributes, which its caption states."""
    (segment,) = story.segments
    text = caption(attributes, 0, language_of(segment.caption))
    return dataclasses.replace(story, segments=(dataclasses.replace(segment, attributes=attributes, caption=text),))


def dressed(story: ShapesStory, other: ShapesStory) -> ShapesStory:
    """The motion and place of a story by the object of another one."""
    was, looks = story.segments[0].attributes, other.segments[0].attributes
    attributes = dataclasses.replace(was, **{name: getattr(looks, name) for name in IDENTITY})
    return with_attributes(dataclasses.replace(other, position=story.position, segments=story.segments), attributes)


def in_the_middle(story: ShapesStory, seconds: float, speed: str = "") -> ShapesStory:
    """The story with its object in the middle of the picture after half of the seconds, and no faster than `speed`."""
    was = story.segments[0].attributes
    story = with_attributes(story, dataclasses.replace(was, speed=speed)) if speed and was.speed == "quick" else story
    x, y = (WORLD / 2 - seconds / 2 * each for each in story.segments[0].attributes.velocity)
    return dataclasses.replace(story, position=(x, y))


def moved(story: ShapesStory, units: float) -> ShapesStory:
    """The story so far to the right."""
    return dataclasses.replace(story, position=(story.position[0] + units, story.position[1]))


def boxes(batch: Batch) -> np.ndarray:
    """True for the tokens of boxes around the objects, three quarters as high and wide as the picture: (B, T, H, W)."""
    _, latent_frames, *sizes, _ = batch.tokens.shape
    seconds_T = np.arange(latent_frames) * batch.models.temporal_patch / batch.fps
    boxes = []
    for story in batch.stories:
        at_TC, inside = positions(story, seconds_T) / WORLD, []
        for at_T, size in zip(at_TC.T[::-1], sizes, strict=True):  # rows are y, the second
            side = max(1, 3 * size // 4)
            start_T1 = np.clip(np.rint(at_T * size - side / 2), 0, size - side)[:, None]
            inside.append((np.arange(size) >= start_T1) & (np.arange(size) < start_T1 + side))
        boxes.append(inside[0][:, :, None] & inside[1][:, None, :])
    return np.stack(boxes)
