"""Given frames in the videos that are made of them: kept to the pixel, and their fine detail lent to new frames.

Tokens lose fine detail. Of a given frame, what was lost is known: its difference from the same frame as the tokenizer
decodes it. New frames get it back wherever they look as the given one does there, so that a still background stays as
sharp as it was, and only what moves is as blurred as the tokenizer makes it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image
import scipy.ndimage
from jaxtyping import Bool, Float, UInt8

AROUND = 5  # pixels, in height and width, over which frames are compared
ALIKE = 40.0  # grey levels: of frames that differ by as much, 1/e of the detail is lent


class Given(NamedTuple):
    """Given frames of a batch of videos as the tokenizer decodes them, and what it loses of them.

    The second may be a whole number of times as large as the first.
    """

    made_BHWC: Float[np.ndarray, "b h w 3"]
    lost_BHWC: Float[np.ndarray, "b height width 3"]


def compared(given_BHWC: UInt8[np.ndarray, "b height width 3"], made_BHWC: UInt8[np.ndarray, "b h w 3"]) -> Given:
    """Given frames, from the pixels and from their tokens."""
    large_BHWC = resized(made_BHWC, _size(given_BHWC))
    return Given(made_BHWC.astype(np.float32), given_BHWC.astype(np.float32) - large_BHWC)


def detailed(
    made_BHWC: UInt8[np.ndarray, "b h w 3"], before: Given, after: Given | None = None, at: float = 0.0
) -> UInt8[np.ndarray, "b height width 3"]:
    """New frames with the detail of those given before and after them; `at`, from 0 to 1, is their place between."""
    lost_BHWC, size = before.lost_BHWC, _size(before.lost_BHWC)
    share_BHW1 = _alike(made_BHWC, before.made_BHWC, size)
    if after is not None:
        other_BHW1 = _alike(made_BHWC, after.made_BHWC, size)
        weight_BHW1, other_weight_BHW1 = (1 - at) * share_BHW1, at * other_BHW1
        both_BHW1 = np.maximum(weight_BHW1 + other_weight_BHW1, 1e-6)
        lost_BHWC = (weight_BHW1 * lost_BHWC + other_weight_BHW1 * after.lost_BHWC) / both_BHW1
        share_BHW1 = np.maximum(share_BHW1, other_BHW1)
    return np.rint(resized(made_BHWC, size) + share_BHW1 * lost_BHWC).clip(0, 255).astype(np.uint8)


def _alike(made_BHWC: np.ndarray, given_BHWC: Float[np.ndarray, "b h w 3"], size: tuple[int, int]) -> np.ndarray:
    """How much two frames look alike around each pixel, from 0 to 1, at this size: (B, H, W, 1)."""
    apart_BHW = np.square(made_BHWC - given_BHWC).mean(axis=-1)
    alike_BHW = np.exp(-scipy.ndimage.uniform_filter(apart_BHW, (0, AROUND, AROUND)) / ALIKE**2)
    if alike_BHW.shape[1:] != size:
        alike_BHW = np.stack([_resampled(alike_HW, size, PIL.Image.Resampling.BILINEAR) for alike_HW in alike_BHW])
    return alike_BHW[..., None]


def resized(frames_BHWC: UInt8[np.ndarray, "b h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "b height width 3"]:
    """Frames of this height and width, by bicubic interpolation."""
    if _size(frames_BHWC) == size:
        return frames_BHWC
    return np.stack([_resampled(frame_HWC, size, PIL.Image.Resampling.BICUBIC) for frame_HWC in frames_BHWC])


def reduced(frame_HWC: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """A frame of this height and width, of which its own are multiples: means of blocks."""
    (H, W, C), (height, width) = frame_HWC.shape, size
    if size == (H, W):
        return frame_HWC
    blocks = frame_HWC.reshape(height, H // height, width, W // width, C)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def _size(frames_BHWC: np.ndarray) -> tuple[int, int]:
    return frames_BHWC.shape[1], frames_BHWC.shape[2]


def _resampled(image: np.ndarray, size: tuple[int, int], how: PIL.Image.Resampling) -> np.ndarray:
    return np.asarray(PIL.Image.fromarray(image).resize(size[::-1], how))


def restored(
    made: Iterator[UInt8[np.ndarray, "b t h w 3"]],
    given: Iterator[UInt8[np.ndarray, "b height width 3"]],
    every: int = 1,
) -> Iterator[UInt8[np.ndarray, "b frames height width 3"]]:
    """Decoded videos with the given frames in the place of every `every`-th frame, and their detail in the others.

    `given` may end before the videos do, and may be a whole number of times as large: so is the result. Frames come a
    few at a time, as soon as the next given one is known.
    """
    before: Given | None = None
    upcoming_BHWC, waiting, number = next(given, None), list[np.ndarray](), 0
    for part_BTHWC in made:
        done = list[np.ndarray]()
        for made_BHWC in np.moveaxis(part_BTHWC, 1, 0):
            if upcoming_BHWC is None:
                done.append(made_BHWC if before is None else detailed(made_BHWC, before))
            elif number % every:
                waiting.append(made_BHWC)
            else:
                after = compared(upcoming_BHWC, made_BHWC)
                if before is not None:
                    done += [detailed(each, before, after, (1 + i) / every) for i, each in enumerate(waiting)]
                done.append(upcoming_BHWC)
                before, upcoming_BHWC, waiting = after, next(given, None), []
            number += 1
        if done:
            yield np.stack(done, axis=1)
    if waiting and before is not None:
        yield np.stack([detailed(each, before) for each in waiting], axis=1)


def pasted(
    made: Iterator[UInt8[np.ndarray, "t h w 3"]],
    given_THWC: UInt8[np.ndarray, "frames h w 3"],
    inside_THW: Bool[np.ndarray, "frames h w"],
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """Decoded frames of one video, a few at a time, with the given pixels inside of a mask."""
    first = 0
    for made_THWC in made:
        at = slice(first, first + len(made_THWC))
        yield np.where(inside_THW[at, ..., None], given_THWC[at], made_THWC)
        first = at.stop
