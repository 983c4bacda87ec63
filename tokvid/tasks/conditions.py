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
Agree = Callable[["np.ndarray", "np.ndarray"], "np.ndarray"]  # new frames and a given condition → frames that have it


CORRECTIONS = 3  # of the means of an enlarged video; each leaves a fraction of the difference
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
FLAT = 20.0  # grey levels: smaller differences within a frame are noise
POINT_COLORS = ((255, 255, 255), (255, 60, 60), (60, 160, 255), (255, 220, 0), (0, 220, 90), (220, 80, 255))


def _unchanged(video_THWC: "np.ndarray") -> "np.ndarray":
    return video_THWC


def grey(video_THWC: "np.ndarray") -> "np.ndarray":
    """Luma in all three channels."""
    return (video_THWC @ LUMA).round().astype(video_THWC.dtype)[..., None].repeat(3, axis=-1)


def with_luma(video_THWC: "np.ndarray", grey_THWC: "np.ndarray") -> "np.ndarray":
    """The colours of a video with the luma of a grey one, paler where a channel would be below 0 or above 255."""
    import numpy as np

    luma_THW1 = grey_THWC[..., :1].astype(np.float32)
    color_THWC = video_THWC - (video_THWC @ LUMA)[..., None]
    most_THW1, least_THW1 = (extreme(axis=-1, keepdims=True) for extreme in (color_THWC.max, color_THWC.min))
    fits_THW1 = np.minimum((255 - luma_THW1) / np.maximum(most_THW1, 1), luma_THW1 / np.maximum(-least_THW1, 1))
    return np.rint(luma_THW1 + np.minimum(fits_THW1, 1) * color_THWC).clip(0, 255).astype(np.uint8)


def with_means(video_THWC: "np.ndarray", small_THWC: "np.ndarray") -> "np.ndarray":
    """A video whose blocks of pixels have the means of a smaller one's pixels (back-projection, Irani & Peleg 1991)."""
    import numpy as np
    import PIL.Image

    (T, rows, columns, C), size = small_THWC.shape, video_THWC.shape[2:0:-1]
    side, found_THWC = video_THWC.shape[1] // rows, video_THWC.astype(np.float32)
    for _ in range(CORRECTIONS):
        means_THWC = found_THWC.reshape(T, rows, side, columns, side, C).mean(axis=(2, 4))
        for frame_HWC, missing_HWC in zip(found_THWC, small_THWC - means_THWC, strict=True):
            for channel in range(C):
                plane = PIL.Image.fromarray(np.ascontiguousarray(missing_HWC[..., channel]))
                frame_HWC[..., channel] += np.asarray(plane.resize(size, PIL.Image.Resampling.BICUBIC))
    return np.rint(found_THWC).clip(0, 255).astype(np.uint8)


def edges(video_THWC: "np.ndarray") -> "np.ndarray":
    """The steepness of the brightness at every pixel, relative to the frame's steepest places: no colours."""
    return _levels(_steepness(video_THWC))


def rough(video_THWC: "np.ndarray") -> "np.ndarray":
    """Blurred edges: where something is and how large, but not its outline."""
    import numpy as np

    steep_THW, side = _steepness(video_THWC), max(3, video_THWC.shape[1] // 5 | 1)
    for _ in range(2):
        padded_THW = np.pad(steep_THW, ((0, 0), *[(side // 2, side // 2)] * 2), mode="edge")
        steep_THW = np.lib.stride_tricks.sliding_window_view(padded_THW, (side, side), axis=(1, 2)).mean(axis=(3, 4))
    return _levels(steep_THW)


def track(video_THWC: "np.ndarray") -> "np.ndarray":
    """A point at the object of each frame, before black."""
    return draw_points(salient_points(video_THWC), video_THWC.shape[1:3])


def salient_points(video_THWC: "np.ndarray") -> "np.ndarray":
    """The middle (x, y) of what stands out from each frame's background, from 0 to 1: (T, 1, 2); NaN for nothing.

    The mean is circular: an object that leaves on one side and enters on the other has its middle at the border.
    """
    import numpy as np

    background_T11C = np.median(video_THWC, axis=(1, 2), keepdims=True)
    far_THW = np.linalg.norm(video_THWC - background_T11C, axis=-1)
    most_T11 = far_THW.max(axis=(1, 2), keepdims=True)
    weight_THW = np.where(most_T11 > FLAT, np.maximum(far_THW - most_T11 / 2, 0), np.nan)
    places = []
    for axis in (1, 2):  # the sum over rows has a weight for each column
        weight_TL = weight_THW.sum(axis=axis)
        middle_L = (np.arange(weight_TL.shape[1]) + 0.5) / weight_TL.shape[1]
        places.append(np.angle(weight_TL @ np.exp(2j * np.pi * middle_L)) / (2 * np.pi) % 1)
    return np.stack(places, axis=-1)[:, None]


def draw_points(points_TNC: "np.ndarray", size: tuple[int, int]) -> "np.ndarray":
    """Points (T, N, 2), x and y from 0 to 1 or NaN for none, as discs before black: uint8 (T, H, W, 3).

    The first is white; those after it have other colours, so that they keep their identity.
    """
    import numpy as np

    height, width = size
    video_THWC = np.zeros((len(points_TNC), *size, 3))
    radius = max(1.5, height / 16)
    for number in range(points_TNC.shape[1]):
        x_T11, y_T11 = (points_TNC[:, number, axis, None, None] for axis in (0, 1))
        x_W, y_H1 = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
        away_THW = np.hypot(x_W - width * x_T11, y_H1 - height * y_T11)
        cover_THW1 = np.nan_to_num(np.clip(radius + 0.5 - away_THW, 0, 1))[..., None]
        video_THWC += cover_THW1 * (np.array(POINT_COLORS[number % len(POINT_COLORS)]) - video_THWC)
    return video_THWC.round().astype(np.uint8)


def _steepness(video_THWC: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return np.hypot(*np.gradient(video_THWC @ LUMA, axis=(1, 2)))


def _levels(value_THW: "np.ndarray") -> "np.ndarray":
    """Values as grey levels: white are the hundredth of each frame's pixels with the highest ones."""
    import numpy as np

    white_T11 = np.maximum(np.quantile(value_THW, 0.99, axis=(1, 2), keepdims=True), 1)
    return (255 * np.minimum(value_THW / white_T11, 1)).round().astype(np.uint8)[..., None].repeat(3, axis=-1)


@dataclasses.dataclass(frozen=True)
class Condition:
    """Every `slower`-th frame of a clip, or a `still` one alone, at 1/`smaller` of its size, changed by `look`.

    An `own` one is the first latent frame of the video that is generated: it is never given by users, nor stored.

    Positions and rate identify a slower or a smaller video that looks the same; any other condition has an embedding.
    Where pixels of the new video follow from the condition's, `agree` puts them right.
    """

    help: str  # the user's input
    look: Look = _unchanged
    slower: int = 1
    smaller: int = 1
    still: bool = False
    own: bool = False
    agree: Agree | None = None

    @property
    def facts(self) -> dict[str, int]:
        """The facts that its tokens depend on, as JSON values."""
        return {"slower": self.slower, "smaller": self.smaller} | ({"still": 2} if self.still else {})  # 1: the middle

    @property
    def named(self) -> bool:
        """Whether it has an embedding, as its layout doesn't identify it."""
        return not self.own and (self.look is not _unchanged or self.slower == self.smaller == 1)

    def apply(self, video_THWC: "np.ndarray", when: float = 0.5) -> "np.ndarray":
        """The condition of a clip: uint8 (1 + (T - 1) // slower, H / smaller, W / smaller, 3).

        A still one is the frame `when` of the way through, from 0 to below 1.
        """
        frame = int(when * len(video_THWC))
        video_THWC = video_THWC[frame : frame + 1] if self.still else video_THWC[:: self.slower]
        T, H, W, C = video_THWC.shape
        if (s := self.smaller) > 1:
            blocks = video_THWC[:, : H // s * s, : W // s * s].reshape(T, H // s, s, W // s, s, C)
            video_THWC = blocks.mean(axis=(2, 4)).round().astype(video_THWC.dtype)
        return self.look(video_THWC)

    def disguised(self, video_THWC: "np.ndarray") -> "np.ndarray":
        """A clip's condition at the clip's own size, side by side as often as it fits: for training the tokenizer."""
        import numpy as np

        return np.tile(self.apply(video_THWC), (1, self.smaller, self.smaller, 1))

    def span(self, first: int, frames: int) -> tuple[int, int]:
        """The latent frames of the condition that a window sees: the number of the first, and their count.

        `first` is the first latent frame that the window of `frames` generates. Latent frame j of the clip ends with
        latent frame j / `slower` of the condition; the window also sees the one before that, which shows the motion.
        For a condition 2 times slower and windows of 4::

            clip        0   1   2   3 | 4   5     `first` 4 sees 1, 2, 3 of the condition
            condition   0       1       2       3

        A still one is always seen whole.
        """
        if self.still:
            return 0, 1
        return max(0, -(-first // self.slower) - 1), 1 + -(-frames // self.slower)

    def number(self, first: int, frames: int) -> int:
        """The number that the first of these latent frames counts as: a still one is seen beside what is generated."""
        return first if self.still else self.span(first, frames)[0]


CONDITIONS: dict[str, Condition] = {
    "coarse": Condition("the same video at half the frame rate", slower=2),
    "low": Condition("the same video at half the size", smaller=2),
    "grey": Condition("a video, whose colours are not looked at", grey, agree=with_luma),
    "edges": Condition("a video, of which only the outlines are looked at", edges),
    "rough": Condition("a video, of which only the places of things are looked at", rough, smaller=2),
    "picture": Condition("a picture of the object", still=True),
    "opening": Condition("the video's first frame", still=True, own=True),
    "track": Condition("a video, of which only the object's path is looked at", track, smaller=2),
}
