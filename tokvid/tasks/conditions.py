"""Conditions: videos that a task reads beside its text. In training, they are computed from the true video.

To add one: a function from frames to frames, and a row of `CONDITIONS`. The token cache applies it in training, `tokvid
edit` in sampling; batches, windows, layouts, `plan` and the command line know it by its row.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `tokvid --help` reads the tables, so functions import NumPy when they run
    import numpy as np

Look = Callable[["np.ndarray"], "np.ndarray"]  # uint8 (T, H, W, 3) → the same shape, frame by frame


def _unchanged(video_THWC: "np.ndarray") -> "np.ndarray":
    return video_THWC


@dataclasses.dataclass(frozen=True)
class Condition:
    """Every `slower`-th frame of a clip, at 1/`smaller` of its size, changed by `look`.

    Positions and rate identify a slower or a smaller video; any other condition has an embedding of its own.
    """

    help: str  # the user's input
    look: Look = _unchanged
    slower: int = 1
    smaller: int = 1

    @property
    def facts(self) -> dict[str, int]:
        """The facts that its tokens depend on, as JSON values."""
        return {"slower": self.slower, "smaller": self.smaller}

    @property
    def named(self) -> bool:
        """Whether it has an embedding, as its layout doesn't identify it."""
        return self.slower == self.smaller == 1

    def apply(self, video_THWC: "np.ndarray") -> "np.ndarray":
        """The condition of a clip: uint8 (1 + (T - 1) // slower, H / smaller, W / smaller, 3)."""
        video_THWC = video_THWC[:: self.slower]
        T, H, W, C = video_THWC.shape
        if (s := self.smaller) > 1:
            blocks = video_THWC[:, : H // s * s, : W // s * s].reshape(T, H // s, s, W // s, s, C)
            video_THWC = blocks.mean(axis=(2, 4)).round().astype(video_THWC.dtype)
        return self.look(video_THWC)

    def span(self, first: int, frames: int) -> tuple[int, int]:
        """The latent frames of the condition that a window sees: the number of the first, and their count.

        `first` is the first latent frame that the window of `frames` generates. Latent frame j of the clip ends with
        latent frame j / `slower` of the condition; the window also sees the one before that, which shows the motion.
        For a condition 2 times slower and windows of 4::

            clip        0   1   2   3 | 4   5     `first` 4 sees 1, 2, 3 of the condition
            condition   0       1       2       3
        """
        return max(0, -(-first // self.slower) - 1), 1 + -(-frames // self.slower)


CONDITIONS: dict[str, Condition] = {
    "coarse": Condition("the same video at half the frame rate", slower=2),
}
