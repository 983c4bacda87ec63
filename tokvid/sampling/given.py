"""Given frames in the videos that are made of them: kept to the pixel, and their fine detail lent to new frames.

Tokens lose fine detail. Of a given frame, what was lost is known: its difference from the same frame as the tokenizer
decodes it. New frames get it back wherever they look as the given one does there, or a few pixels away. So a still
background stays as sharp as it was, and only what turns or is new is as blurred as the tokenizer makes it.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image
import scipy.ndimage
from jaxtyping import Bool, Float, Int, UInt8

REACH = 4  # pixels, up, down and sideways, that something may have moved to keep its detail
MOVED = 200.0  # squared grey levels by which frames must fit better for each pixel of motion
AROUND = 9  # pixels, in height and width, over which frames are compared
FADE = 2.0  # pixels from a mask's edge, over which 1/e of what is lost there remains
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
    size = _size(before.lost_BHWC)
    share_BHW1, lost_BHWC = _lent(made_BHWC, before)
    if after is not None:
        other_BHW1, other_lost_BHWC = _lent(made_BHWC, after)
        weight_BHW1, other_weight_BHW1 = (1 - at) * share_BHW1, at * other_BHW1
        both_BHW1 = np.maximum(weight_BHW1 + other_weight_BHW1, 1e-6)
        lost_BHWC = (weight_BHW1 * lost_BHWC + other_weight_BHW1 * other_lost_BHWC) / both_BHW1
        share_BHW1 = np.maximum(share_BHW1, other_BHW1)
    return np.rint(resized(made_BHWC, size) + share_BHW1 * lost_BHWC).clip(0, 255).astype(np.uint8)


def _lent(made_BHWC: UInt8[np.ndarray, "b h w 3"], given: Given) -> tuple[np.ndarray, np.ndarray]:
    """How much new frames look like a given one, from 0 to 1, (B, H, W, 1), and the detail of where they do."""
    alike_BHW, moved_BHW2 = _matched(made_BHWC, given.made_BHWC)
    (H, W), times = _size(given.lost_BHWC), len(given.lost_BHWC[0]) // len(made_BHWC[0])
    if times > 1:
        alike_BHW = np.stack([_resampled(alike_HW, (H, W), PIL.Image.Resampling.BILINEAR) for alike_HW in alike_BHW])
        moved_BHW2 = times * moved_BHW2.repeat(times, axis=1).repeat(times, axis=2)
    rows_BHW = (np.arange(H)[:, None] + moved_BHW2[..., 0]).clip(0, H - 1)
    columns_BHW = (np.arange(W) + moved_BHW2[..., 1]).clip(0, W - 1)
    return alike_BHW[..., None], given.lost_BHWC[np.arange(len(made_BHWC))[:, None, None], rows_BHW, columns_BHW]


def _matched(
    made_BHWC: UInt8[np.ndarray, "b h w 3"], given_BHWC: Float[np.ndarray, "b h w 3"]
) -> tuple[Float[np.ndarray, "b h w"], Int[np.ndarray, "b h w 2"]]:
    """How much frames look like given ones around each pixel, and how far down and to the right they do most."""
    H, W = _size(made_BHWC)
    offsets = sorted(itertools.product(range(-REACH, REACH + 1), repeat=2), key=lambda offset: math.hypot(*offset))
    least_BHW, apart_BHW, best_BHW = (np.full(made_BHWC.shape[:3], fill) for fill in (np.inf, np.inf, 0))
    for number, (down, right) in enumerate(offsets):
        at = (np.arange(H)[:, None] + down).clip(0, H - 1), (np.arange(W) + right).clip(0, W - 1)
        squares_BHW = np.square(made_BHWC - given_BHWC[:, *at]).mean(axis=-1)
        squares_BHW = scipy.ndimage.uniform_filter(squares_BHW, (0, AROUND, AROUND))
        cost_BHW = squares_BHW + MOVED * math.hypot(down, right)
        better_BHW = cost_BHW < least_BHW
        for kept_BHW, new in ((least_BHW, cost_BHW), (apart_BHW, squares_BHW), (best_BHW, number)):
            np.copyto(kept_BHW, new, where=better_BHW)
    return np.exp(-apart_BHW / ALIKE**2).astype(np.float32), np.array(offsets)[best_BHW]


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


def restored_alone(
    made: Iterator[UInt8[np.ndarray, "t h w 3"]], given_THWC: UInt8[np.ndarray, "given height width 3"], every: int = 1
) -> Iterator[UInt8[np.ndarray, "frames height width 3"]]:
    """`restored` of a single video, which is no batch."""
    given = (frame_HWC[None] for frame_HWC in given_THWC)
    return (part_BTHWC[0] for part_BTHWC in restored((part_THWC[None] for part_THWC in made), given, every))


def followed(
    made: Iterator[UInt8[np.ndarray, "b t height width 3"]],
    seen: Iterator[UInt8[np.ndarray, "b height width 3"]],
    first_BHWC: UInt8[np.ndarray, "b height width 3"],
    size: tuple[int, int],
) -> Iterator[UInt8[np.ndarray, "b t height width 3"]]:
    """New videos with the pixels of their given first frames wherever `seen`, what they are made from, looks as it did.

    It is compared at `size`, there and a few pixels away.
    """
    first: Given | None = None
    for part_BTHWC in made:
        done = list[np.ndarray]()
        for made_BHWC in np.moveaxis(part_BTHWC, 1, 0):
            seen_BHWC = np.stack([reduced(frame_HWC, size) for frame_HWC in next(seen)])
            first = first or Given(seen_BHWC.astype(np.float32), first_BHWC.astype(np.float32))
            share_BHW1, pixels_BHWC = _lent(seen_BHWC, first)
            followed_BHWC = made_BHWC + share_BHW1 * (pixels_BHWC - made_BHWC)
            done.append(np.rint(followed_BHWC).clip(0, 255).astype(np.uint8))
        yield np.stack(done, axis=1)


def hidden(
    video_THWC: UInt8[np.ndarray, "frames h w 3"], inside_THW: Bool[np.ndarray, "frames h w"]
) -> UInt8[np.ndarray, "frames h w 3"]:
    """A video whose pixels outside of a mask are the nearest ones inside, in the same frame.

    So they can be encoded without a trace of what was there, which the tokens beside it would show.
    """
    return np.stack([_hidden(*each) for each in zip(video_THWC, inside_THW, strict=True)])


def _hidden(frame_HWC: np.ndarray, inside_HW: np.ndarray) -> np.ndarray:
    if inside_HW.all() or not inside_HW.any():
        return frame_HWC
    _, nearest_2HW = scipy.ndimage.distance_transform_edt(~inside_HW, return_indices=True)
    return frame_HWC[*nearest_2HW]


def pasted(
    made: Iterator[UInt8[np.ndarray, "t h w 3"]],
    given_THWC: UInt8[np.ndarray, "frames height width 3"],
    inside_THW: Bool[np.ndarray, "frames height width"],
) -> Iterator[UInt8[np.ndarray, "one height width 3"]]:
    """Decoded frames of one video, one at a time, with the given pixels inside of a mask, and of their size.

    What the tokens lose of the nearest given pixel fades out over a few pixels outside, so that there is no seam.
    """
    first = 0
    for made_THWC in made:
        for index, made_HWC in enumerate(resized(made_THWC, _size(given_THWC)), first):
            yield _pasted(made_HWC, given_THWC[index], inside_THW[index])[None]
        first += len(made_THWC)


def _pasted(made_HWC: np.ndarray, given_HWC: np.ndarray, inside_HW: np.ndarray) -> np.ndarray:
    if not inside_HW.any():
        return made_HWC
    away_HW, nearest_2HW = scipy.ndimage.distance_transform_edt(~inside_HW, return_indices=True)
    lost_HWC = given_HWC.astype(np.float32) - made_HWC
    faded_HWC = np.exp(-away_HW / FADE)[..., None] * lost_HWC[*nearest_2HW]
    return np.rint(made_HWC + faded_HWC).clip(0, 255).astype(np.uint8)
