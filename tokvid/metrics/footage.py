"""What frames say about footage without a network: change, motion, cuts, sharpness, colour, black bars. NumPy only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

BLOCKS = 32  # rows and columns of blocks, of which a frame's `Look` has the means
SHADES = 4  # of red, green and blue, for colour histograms
CUT = 0.22  # the change from one frame to the next that is a cut
CUT_OVER_OTHERS = 4.0  # times the usual change around it, at least
NEAR = 6  # frames that are around
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)
BLACK = 24.0  # luma of black, at most
NOISE = 2.0  # grey levels by which a block changes though nothing moves


class Look(NamedTuple):
    """A frame in few numbers: mean lumas of BLOCKS x BLOCKS blocks, and the shares of SHADES³ colours."""

    blocks_HW: Float[np.ndarray, "h w"]
    colours_N: Float[np.ndarray, " n"]


def luma(image_HWC: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """0 to 255."""
    return image_HWC.astype(np.float32) @ LUMA


def look(image_HWC: UInt8[np.ndarray, "h w 3"]) -> Look:
    """What comparing frames needs."""
    height, width, _ = image_HWC.shape
    thin_HWC = image_HWC[:: max(1, height // 128), :: max(1, width // 128)]
    codes = (thin_HWC.reshape(-1, 3) >> 6).astype(np.int64) @ np.array([SHADES**2, SHADES, 1])
    colours_N = np.bincount(codes, minlength=SHADES**3).astype(np.float32) / len(codes)
    luma_HW = luma(thin_HWC)
    for axis in (0, 1):
        edges = np.linspace(0, luma_HW.shape[axis], BLOCKS + 1).astype(int)
        starts = np.minimum(edges[:-1], luma_HW.shape[axis] - 1)
        counts = np.maximum(edges[1:] - edges[:-1], 1)
        sums = np.add.reduceat(luma_HW, starts, axis=axis)
        luma_HW = sums / np.expand_dims(counts, 1 - axis).astype(np.float32)
    return Look(luma_HW, colours_N)


def change(before: Look, after: Look) -> float:
    """How much a frame differs from the one before, 0 to 1."""
    colour = np.abs(after.colours_N - before.colours_N).sum() / 2
    place = min(1.0, float(np.abs(after.blocks_HW - before.blocks_HW).mean()) / 64)
    return float(colour + place) / 2


def cuts(change_T: Float[np.ndarray, " t"]) -> list[int]:
    """The first frame of every shot but the first: it differs from the one before far more than its neighbours do.

    `change_T` is the `change` to each frame from the one before.
    """
    firsts = []
    for index in np.flatnonzero(change_T > CUT).tolist():
        around_T = np.delete(change_T[max(0, index - NEAR) : index + NEAR + 1], min(index, NEAR))
        if not len(around_T) or change_T[index] > CUT_OVER_OTHERS * np.median(around_T):
            firsts.append(index)
    return firsts


def motion(before: Look, after: Look) -> float:
    """Grey levels by which the busiest twentieth of the blocks changes."""
    steps_N = np.abs(after.blocks_HW - before.blocks_HW).ravel()
    return float(np.sort(steps_N)[-(steps_N.size // 20) :].mean())


def velocity(before: Look, after: Look) -> Float[np.ndarray, "2"]:
    """Right and down, in frame widths and heights: the one motion that explains best how the blocks change.

    Least squares over all blocks that change (Lucas and Kanade 1981); 0 where none does. The direction is exact; the
    speed of sharp edges comes out up to a half too high.
    """
    middle_HW, step_HW = (before.blocks_HW + after.blocks_HW) / 2, after.blocks_HW - before.blocks_HW
    moving_HW = np.abs(step_HW) > NOISE
    if not moving_HW.any():
        return np.zeros(2)
    slopes_N2 = np.stack([slope_HW[moving_HW] for slope_HW in np.gradient(middle_HW)[::-1]], axis=-1)
    normal = slopes_N2.T @ slopes_N2 + NOISE**2 * np.eye(2)  # damped: where there are no edges, nothing is known
    return np.linalg.solve(normal, -slopes_N2.T @ step_HW[moving_HW]) / BLOCKS


def sharpness(image_HWC: UInt8[np.ndarray, "h w 3"]) -> float:
    """0 to 1: the share of the differences between neighbouring pixels that a blur takes away (Crété et al. 2007).

    A picture that is blurred already loses little. The lower of the two directions counts.
    """
    luma_HW, shares = luma(image_HWC), []
    for axis in (0, 1):
        steps = np.abs(np.diff(luma_HW, axis=axis))
        blurred = np.abs(np.diff(_mean_of_nine(luma_HW, axis), axis=axis))
        total = float(steps.sum())
        shares.append(float(np.maximum(steps - blurred, 0).sum()) / total if total > 0 else 0.0)
    return min(shares)


def _mean_of_nine(luma_HW: Float[np.ndarray, "h w"], axis: int) -> Float[np.ndarray, "h w"]:
    padding = [(5, 4) if each == axis else (0, 0) for each in (0, 1)]
    sums = np.cumsum(np.pad(luma_HW, padding, "edge"), axis=axis, dtype=np.float64)
    count = luma_HW.shape[axis]
    after, before = np.take(sums, np.arange(9, 9 + count), axis), np.take(sums, np.arange(count), axis)
    return ((after - before) / 9).astype(np.float32)


def colourfulness(image_HWC: UInt8[np.ndarray, "h w 3"]) -> float:
    """0 for grey, above 80 for extremely colourful (Hasler and Süsstrunk 2003)."""
    red, green, blue = np.moveaxis(image_HWC[::2, ::2].astype(np.float32), 2, 0)
    across, down = red - green, (red + green) / 2 - blue
    return float(np.hypot(across.std(), down.std()) + 0.3 * np.hypot(across.mean(), down.mean()))


class Brightest(NamedTuple):
    """The luma below which 98 % of each row and each column of a frame are: specks don't count."""

    rows_H: Float[np.ndarray, " h"]
    columns_W: Float[np.ndarray, " w"]


def brightest(image_HWC: UInt8[np.ndarray, "h w 3"]) -> Brightest:
    """What `bars` and `is_black` look at."""
    luma_HW = luma(image_HWC)
    return Brightest(np.quantile(luma_HW, 0.98, axis=1), np.quantile(luma_HW, 0.98, axis=0))


def bars(frames: Sequence[Brightest]) -> float:
    """The share of a shot's frames in black bars, above and below or left and right; 0 where one side alone has one."""
    share = 0.0
    for lines_TL in (np.stack([frame.rows_H for frame in frames]), np.stack([frame.columns_W for frame in frames])):
        lit_N, count = np.flatnonzero(lines_TL.max(axis=0) > BLACK), lines_TL.shape[1]
        if len(lit_N):
            before, after = int(lit_N[0]), count - 1 - int(lit_N[-1])
            if min(before, after) >= max(2, count / 50):
                share = max(share, (before + after) / count)
    return share


def is_black(frames: Sequence[Brightest]) -> bool:
    """Whether no frame of a shot shows anything."""
    return all(float(np.quantile(frame.rows_H, 0.9)) <= BLACK for frame in frames)
