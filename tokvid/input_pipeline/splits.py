"""The part of a stored source that is trained on, and the part that is held out."""

from typing import Literal

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.types import VideoItem, VideoSource

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


class _Part:
    """The videos `first` up to `end` of a source."""

    def __init__(self, source: VideoSource, first: int, end: int):
        self.source, self.first, self.end = source, first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __getitem__(self, index: int) -> VideoItem:
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        return self.source[self.first + index]


def part_of(source: VideoSource, config: DataConfig, split: Split) -> VideoSource:
    """The videos of a stored source that are in `split`; UserError where there are none."""
    if not 0 <= config.held_out < len(source):
        raise UserError(
            f"data.held_out {config.held_out} leaves none of the {len(source)} videos in {config.path} to train "
            f"on; hold out 0 to {max(0, len(source) - 1)}"
        )
    if split == "held_out" and not config.held_out:
        raise UserError(f"none of the {len(source)} videos in {config.path} are held out; set held_out above 0")
    border = len(source) - config.held_out
    return _Part(source, 0, border) if split == "train" else _Part(source, border, len(source))
