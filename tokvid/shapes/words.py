"""The words of Moving Shapes and their values in pixels, for both the renderer and the reader.

The world is a torus 64 units wide and high at any image size; x points right, y points down. A shape's size is its
*radius*, that of the disc with the same area, so that area alone separates "small" from "large" for every shape.
"""

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Float

from tokvid.errors import UserError, did_you_mean

WORLD = 64.0  # units: the width and the height of the torus

SIZES = {"small": 7.0, "large": 11.5}  # radius in units
SIZE_JITTER = 0.08  # a story's radius is the nominal one times 1 ± this

COLORS = {  # hue in degrees; white has none
    "red": 0.0,
    "green": 120.0,
    "blue": 222.0,
    "yellow": 55.0,
    "purple": 285.0,
    "white": None,
}
HUE_JITTER = 8.0  # degrees: a story's hue is the nominal one ± this
SATURATION, VALUE = 0.85, 0.95  # of every colour but white, which has no saturation
BACKGROUND_GREYS = (10, 60)  # the darkest and the lightest background

SHAPES = ("circle", "square", "triangle", "star")

_DIAGONAL = math.sqrt(0.5)
DIRECTIONS = {  # unit vectors (x, y)
    "right": (1.0, 0.0),
    "left": (-1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-right": (_DIAGONAL, -_DIAGONAL),
    "up-left": (-_DIAGONAL, -_DIAGONAL),
    "down-right": (_DIAGONAL, _DIAGONAL),
    "down-left": (-_DIAGONAL, _DIAGONAL),
    "still": (0.0, 0.0),
}
STILL = "still"

SPEEDS = {"slow": 8.0, "quick": 24.0}  # units per second along the direction, diagonals too
NO_SPEED = "none"  # the speed of a still shape


@dataclasses.dataclass(frozen=True)
class ShapeAttributes:
    """The attributes in a caption. UserError unless `speed` is "none" if and only if `direction` is "still"."""

    size: str
    color: str
    shape: str
    direction: str
    speed: str

    def __post_init__(self) -> None:
        speeds = (NO_SPEED,) if self.direction == STILL else tuple(SPEEDS)
        allowed = (tuple(SIZES), tuple(COLORS), SHAPES, tuple(DIRECTIONS), speeds)
        for field, names in zip(("size", "color", "shape", "direction", "speed"), allowed, strict=True):
            if getattr(self, field) not in names:
                label = f"speed of direction {self.direction!r}" if field == "speed" else field
                raise UserError(did_you_mean(getattr(self, field), names, label))

    @property
    def velocity(self) -> tuple[float, float]:
        """Units per second (x, y)."""
        x, y = DIRECTIONS[self.direction]
        speed = SPEEDS.get(self.speed, 0.0)
        return x * speed, y * speed


def _hold_out() -> frozenset[tuple[str, str, str, str]]:
    # 36 of the 432 (one in twelve): exactly one size and colour for every shape and direction, since size + 2·colour
    # takes each value modulo 12 once. So every pair of attributes has most of its combinations in training.
    return frozenset(
        (size, color, shape, direction)
        for (s, size), (c, color), (h, shape), (d, direction) in itertools.product(
            enumerate(SIZES), enumerate(COLORS), enumerate(SHAPES), enumerate(DIRECTIONS)
        )
        if (s + 2 * c + 3 * h + 5 * d) % 12 == 0
    )


HELD_OUT = _hold_out()  # (size, color, shape, direction) that training never shows


def is_held_out(attributes: ShapeAttributes) -> bool:
    """Whether this combination of size, colour, shape and direction is held out of training (at any speed)."""
    return (attributes.size, attributes.color, attributes.shape, attributes.direction) in HELD_OUT


# Outlines. Each has area pi, so that scaling by r gives the area of a disc of radius r.
_SQUARE_HALF = math.sqrt(math.pi) / 2
_TRIANGLE_REACH = math.sqrt(4 * math.pi / (3 * math.sqrt(3)))
_STAR_INNER = 0.5  # inner over outer radius; a pentagram's 0.38 would have arms too thin for a small image
_COS36, _SIN36 = math.cos(math.pi / 5), math.sin(math.pi / 5)
_STAR_REACH = math.sqrt(math.pi / (5 * _STAR_INNER * _SIN36))

_REACH = {
    "circle": 1.0,
    "square": _SQUARE_HALF * math.sqrt(2),
    "triangle": _TRIANGLE_REACH,
    "star": _STAR_REACH,
}


def reach(shape: str, radius: float) -> float:
    """The outline's largest distance from its centre of mass, in the units of `radius`."""
    return _REACH[shape] * radius


def signed_distance(
    shape: str, x: Float[np.ndarray, "*#n"], y: Float[np.ndarray, "*#n"], radius: float
) -> Float[np.ndarray, "*#n"]:
    """Distance to the outline, negative inside; outside a corner, distance to the nearer edge's line (sharp corners).

    x and y are offsets from the centre (they broadcast), in the unit of `radius`, y down. Triangle and star point up.
    The result has the dtype of x and y.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - _SQUARE_HALF * radius
    if shape == "triangle":
        sides = math.cos(math.pi / 6) * np.abs(x) - 0.5 * y
        return np.maximum(sides, y) - 0.5 * _TRIANGLE_REACH * radius
    if shape == "star":
        return _star_distance(x, y, radius)
    raise UserError(did_you_mean(shape, SHAPES, "shape"))


def _star_distance(x: Float[np.ndarray, "*#n"], y: Float[np.ndarray, "*#n"], radius: float) -> Float[np.ndarray, "*#n"]:
    # Folds the plane onto the half arm between the upper tip and the valley 36 degrees to its right, by two
    # reflections. There the outline is one straight edge.
    a, up = np.abs(x), -y
    for _ in range(2):
        beyond = 2 * np.maximum(_COS36 * a - _SIN36 * up, 0)
        a, up = np.abs(a - _COS36 * beyond), up + _SIN36 * beyond
    normal_x, normal_up = 1 - _STAR_INNER * _COS36, _STAR_INNER * _SIN36
    length = math.hypot(normal_x, normal_up)
    return (normal_x / length) * a + (normal_up / length) * (up - _STAR_REACH * radius)


def rgb(color: str, hue_shift: float = 0.0) -> tuple[float, float, float]:
    """Red, green and blue in 0..255 of a named colour whose hue is turned by `hue_shift` degrees."""
    hue = COLORS[color]
    if hue is None:
        return (255 * VALUE,) * 3
    channels = []
    for offset in (5, 3, 1):  # the standard closed form of HSV to RGB
        k = (offset + (hue + hue_shift) / 60) % 6
        channels.append(255 * VALUE * (1 - SATURATION * max(0.0, min(k, 4 - k, 1.0))))
    return channels[0], channels[1], channels[2]
