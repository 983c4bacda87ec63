"""The reader of Moving Shapes: measures the attributes that `tokvid.shapes.words` names, from pixels alone.

It also reads imperfect videos, reconstructed or generated: every estimate is a median or a fit over all frames, and a
video without a shape has no reading.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from tokvid.errors import UserError
from tokvid.shapes import words as vocabulary
from tokvid.shapes.words import ShapeAttributes

# Thresholds. Lengths are in world units (64 to an image's width).
SIZE_BOUNDARY = math.sqrt(vocabulary.SIZES["small"] * vocabulary.SIZES["large"])  # radius
SPEED_BOUNDARY = math.sqrt(vocabulary.SPEEDS["slow"] * vocabulary.SPEEDS["quick"])  # units per second
STILL_BELOW = 0.4 * vocabulary.SPEEDS["slow"]  # units per second
WHITE_BELOW = 0.4 * vocabulary.SATURATION
LEAST_CONTRAST = 40.0  # grey levels (Euclidean, over three channels) between object and background
RADII = (0.6 * vocabulary.SIZES["small"], 1.6 * vocabulary.SIZES["large"])  # bounds of a shape's radius
LEAST_FIT = 0.5  # share of the matte's energy that the best outline explains at least
LEAST_PRESENT = 0.5  # share of the frames that show an object at least

_MATCHED_FRAMES = 12  # more frames don't improve the choice of the shape
_RADIUS_FACTORS = (0.94, 1.0, 1.06)
_EDGE_WIDTHS = (1.0, 2.0, 3.5)  # pixels: sharp to blurred


@dataclasses.dataclass(frozen=True)
class ShapeReading:
    """A clip's measured attributes. Motion is None where it cannot be measured (a single frame)."""

    size: str
    color: str
    shape: str
    direction: str | None
    speed: str | None
    pixels_per_second: float | None  # of this image
    units_per_second: float | None  # of the world that is 64 wide, as `vocabulary.SPEEDS`
    radius: float  # world units, of a disc of the same area, median over frames
    radius_T: Float[np.ndarray, " t"]  # the same for each frame; NaN where there is no object
    rgb: tuple[float, float, float]  # of the object, 0..255
    hue: float | None  # degrees; None for white
    centroid_TC: Float[np.ndarray, "t 2"]  # pixels (x, y), wrapped into the image; NaN where there is no object
    fit: float  # share of the matte's energy that the outline explains: 1 is a perfect shape


def read_attributes(video_THWC: UInt8[np.ndarray, "t h w 3"], fps: float) -> ShapeReading | None:
    """Reads a video at `fps` frames per second; None if there is no object.

    The clip should be within one segment of uniform motion, in which the object moves by less than half the image from
    frame to frame. UserError for another dtype or shape, or an fps that is not positive.
    """
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or not video_THWC.size:
        raise UserError(f"video is {video_THWC.dtype} {video_THWC.shape}; it must be uint8 (T, H, W, 3)")
    if not fps > 0:
        raise UserError(f"fps {fps}: it must be > 0")
    unit = video_THWC.shape[2] / vocabulary.WORLD  # pixels

    pixels_THWC, background_C = _without_background(video_THWC)
    place = _find(pixels_THWC, unit)
    if place is None:
        return None
    centroid_TC, rough_radius = place
    color_C = _core_color(pixels_THWC, centroid_TC, rough_radius)
    contrast = float(np.linalg.norm(color_C))
    if contrast < LEAST_CONTRAST:
        return None

    # The object's cover of each pixel. Not clipped, so that noise averages out of areas and centroids.
    matte_THW = pixels_THWC @ (color_C / contrast**2).astype(np.float32)
    for _ in range(2):
        radius_T, centroid_TC = _measure(matte_THW, centroid_TC, 1.65 * rough_radius + 1.5)
    radius_T = radius_T / unit
    present_T = (radius_T > RADII[0]) & (radius_T < RADII[1])
    if present_T.mean() < LEAST_PRESENT:
        return None
    radius = float(np.median(radius_T[present_T]))
    shape, fit = _match_shape(matte_THW[present_T], centroid_TC[present_T], radius * unit)
    if fit < LEAST_FIT:
        return None

    rgb_C = np.clip(color_C + background_C, 0, 255)
    color, hue = _name_color(rgb_C)
    size_xy = np.array(video_THWC.shape[2:0:-1], dtype=np.float64)
    centroid_TC = np.where(present_T[:, None], centroid_TC % size_xy, np.nan)
    return ShapeReading(
        size="small" if radius < SIZE_BOUNDARY else "large",
        color=color,
        shape=shape,
        **_motion(_velocity(centroid_TC, size_xy), fps, unit),
        radius=radius,
        radius_T=np.where(present_T, radius_T, np.nan),
        rgb=(float(rgb_C[0]), float(rgb_C[1]), float(rgb_C[2])),
        hue=hue,
        centroid_TC=centroid_TC,
        fit=fit,
    )


def score(reading: ShapeReading | None, attributes: ShapeAttributes) -> dict[str, bool]:
    """Whether size, color, shape, direction and speed equal the `attributes`, and "joint": all of them.

    Without a reading, none does. A still shape's speed is right if and only if its direction is.
    """
    correct = {
        field: reading is not None and getattr(reading, field) == name for field, name in vars(attributes).items()
    }
    return {**correct, "joint": all(correct.values())}


def mean_distance(centroid_TC: Float[np.ndarray, "t 2"], place_TC: Float[np.ndarray, "t 2"], width: int) -> float:
    """How far centroids are from their places on average, in pixels of an image `width` wide; NaN without any."""
    away_T = np.hypot(*wrap(centroid_TC - place_TC, np.full(2, float(width))).T)
    return math.nan if np.isnan(away_T).all() else float(np.nanmean(away_T))


def _without_background(
    video_THWC: UInt8[np.ndarray, "t h w 3"],
) -> tuple[Float[np.ndarray, "t h w 3"], Float[np.ndarray, "3"]]:
    """The pixels' differences from the background, and the background's colour."""
    pixels_THWC = video_THWC.astype(np.float32)
    stride = pixels_THWC.size // 30000 | 1  # some 10000 pixels suffice; an odd stride visits all columns
    background_C = np.median(pixels_THWC.reshape(-1, 3)[::stride], axis=0)
    pixels_THWC -= background_C
    return pixels_THWC, background_C


def _find(pixels_THWC: np.ndarray, unit: float) -> tuple[np.ndarray, float] | None:
    """Rough centroids (T, 2) and one rough radius, in pixels, of the object before the background; None without one."""
    distance_THW = np.sqrt(np.einsum("thwc,thwc->thw", pixels_THWC, pixels_THWC))
    # The smallest shape covers 3 % of the image: the brightest 1.5 % are of the object if there is one.
    peak = np.percentile(distance_THW, 98.5)
    if peak < LEAST_CONTRAST:
        return None
    mask_THW = distance_THW > peak / 2
    radius = math.sqrt(np.median(mask_THW.sum(axis=(1, 2))) / math.pi)
    if not RADII[0] * unit < radius < RADII[1] * unit:
        return None
    # The densest place instead of the mean, which specks would shift. The FFT convolves on the torus.
    height, width = mask_THW.shape[1:]
    sigma = 0.7 * radius
    decay_H = np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(height)) ** 2)
    decay_W = np.exp(-2 * (np.pi * sigma * np.fft.rfftfreq(width)) ** 2)
    spectrum_THW = np.fft.rfft2(mask_THW) * decay_H[:, None] * decay_W
    density_THW = np.fft.irfft2(spectrum_THW, s=(height, width))
    row_T, column_T = np.divmod(density_THW.reshape(len(mask_THW), -1).argmax(axis=1), width)
    return np.stack([column_T, row_T], axis=1) + 0.5, radius


def _windows(images_THW: np.ndarray, center_TC: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wrapped cuts (T, P, P) around the centres and their pixels' offsets x (T, 1, P) and y (T, P, 1)."""
    frames, height, width = images_THW.shape[:3]
    half = min(math.ceil(half), min(height, width) // 2 - 1)
    index_TCP = np.floor(center_TC).astype(np.int64)[:, :, None] + np.arange(-half, half + 1)
    offset_TCP = (index_TCP + 0.5 - center_TC[:, :, None]).astype(np.float32)
    rows_TP, columns_TP = index_TCP[:, 1] % height, index_TCP[:, 0] % width
    cut_TPP = images_THW[np.arange(frames)[:, None, None], rows_TP[:, :, None], columns_TP[:, None, :]]
    return cut_TPP, offset_TCP[:, 0, None, :], offset_TCP[:, 1, :, None]


def _core_color(pixels_THWC: np.ndarray, centroid_TC: np.ndarray, radius: float) -> np.ndarray:
    """The median colour within half a radius of the centroids, which lies inside every shape."""
    cut_TPPC, x_T1P, y_TP1 = _windows(pixels_THWC, centroid_TC, 0.5 * radius + 1)
    core_TPP = np.hypot(x_T1P, y_TP1) < max(0.5 * radius, 1.0)
    return np.median(cut_TPPC[core_TPP], axis=0)


def _measure(matte_THW: np.ndarray, center_TC: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Radius (T,) by area and centroid (T, 2) of the matte within `reach` of the centres, in pixels."""
    cut_TPP, x_T1P, y_TP1 = _windows(matte_THW, center_TC, reach + 1)
    cut_TPP = np.where(x_T1P**2 + y_TP1**2 < reach**2, cut_TPP, 0)
    area_T = np.maximum(cut_TPP.sum(axis=(1, 2)), 1e-3)
    shift_TC = np.stack([(cut_TPP * x_T1P).sum(axis=(1, 2)), (cut_TPP * y_TP1).sum(axis=(1, 2))], axis=1)
    shift_TC = np.clip(shift_TC / area_T[:, None], -reach, reach)
    return np.sqrt(area_T / math.pi), center_TC + shift_TC


def _match_shape(matte_THW: np.ndarray, centroid_TC: np.ndarray, radius: float) -> tuple[str, float]:
    """The shape whose outline, drawn at the centroids, is nearest to the matte; and its fit."""
    chosen = np.unique(np.linspace(0, len(matte_THW) - 1, _MATCHED_FRAMES).round().astype(int))
    cut_TPP, x_T1P, y_TP1 = _windows(matte_THW[chosen], centroid_TC[chosen], 1.65 * radius + 1)
    energy = float((cut_TPP**2).sum())
    errors = {}
    for shape in vocabulary.SHAPES:
        tried = []
        for factor in _RADIUS_FACTORS:
            distance_TPP = vocabulary.signed_distance(shape, x_T1P, y_TP1, factor * radius)
            for edge in _EDGE_WIDTHS:
                cover_TPP = np.clip(np.float32(0.5) - distance_TPP * np.float32(1 / edge), 0, 1)
                rest = (cover_TPP - cut_TPP).ravel()
                tried.append(float(rest @ rest))
        errors[shape] = min(tried)
    shape = min(errors, key=errors.__getitem__)
    return shape, 1 - errors[shape] / energy


def _name_color(rgb_C: np.ndarray) -> tuple[str, float | None]:
    """The nearest colour's name and the hue in degrees (None for white)."""
    red, green, blue = (float(each) for each in rgb_C)
    most, least = max(red, green, blue), min(red, green, blue)
    if most - least < WHITE_BELOW * most:
        return "white", None
    hue = math.degrees(math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    hued = {name: nominal for name, nominal in vocabulary.COLORS.items() if nominal is not None}
    return min(hued, key=lambda name: abs((hue - hued[name] + 180) % 360 - 180)), hue


def _velocity(centroid_TC: np.ndarray, size_xy: np.ndarray) -> np.ndarray | None:
    """Pixels a frame (x, y) on the torus, by the median of all pairs' slopes (Theil, Sen); None if unknown."""
    step_TC = np.diff(centroid_TC, axis=0)
    step_TC = wrap(step_TC[np.isfinite(step_TC[:, 0])], size_xy)
    if not len(step_TC):
        return None
    # A first guess unwraps the path: offsets from the guess are short, so a bad frame affects only itself.
    guess_C = np.median(step_TC, axis=0)
    visible = np.flatnonzero(np.isfinite(centroid_TC[:, 0]))
    rest_TC = centroid_TC[visible] - visible[:, None] * guess_C
    rest_TC = wrap(rest_TC - rest_TC[0], size_xy)
    first, second = np.triu_indices(len(visible), k=1)
    slope_C = (rest_TC[second] - rest_TC[first]) / (visible[second] - visible[first])[:, None]
    return guess_C + np.median(slope_C, axis=0)


def wrap(offset_TC: Float[np.ndarray, "t 2"], size_xy: Float[np.ndarray, "2"]) -> Float[np.ndarray, "t 2"]:
    """The shortest offset on the torus equivalent to each, in pixels (x, y)."""
    return (offset_TC + size_xy / 2) % size_xy - size_xy / 2


def _motion(velocity_C: np.ndarray | None, fps: float, unit: float) -> dict[str, Any]:
    """A `ShapeReading`'s fields of motion; `velocity_C` in pixels a frame, `unit` in pixels."""
    if velocity_C is None:
        return dict.fromkeys(("direction", "speed", "pixels_per_second", "units_per_second"))
    pixels_per_second = float(np.hypot(*velocity_C)) * fps
    direction, speed = _name_motion(velocity_C, pixels_per_second / unit)
    return {
        "direction": direction,
        "speed": speed,
        "pixels_per_second": pixels_per_second,
        "units_per_second": pixels_per_second / unit,
    }


def _name_motion(velocity_C: np.ndarray, units_per_second: float) -> tuple[str, str]:
    """The names of direction and speed."""
    if units_per_second < STILL_BELOW:
        return vocabulary.STILL, vocabulary.NO_SPEED
    along = {name: float(np.dot(velocity_C, unit_C)) for name, unit_C in vocabulary.DIRECTIONS.items()}
    direction = max(along, key=along.__getitem__)
    return direction, "slow" if units_per_second < SPEED_BOUNDARY else "quick"
