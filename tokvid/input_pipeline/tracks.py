"""Tracks: the path of an object as points, from a JSON file.

    {"fps": 8, "points": [[[0.2, 0.5]], [[0.25, 0.5]], …]}

For each frame its points, x and y from 0 (left, top) to 1 (right, bottom); null for one that isn't seen.
"""

import math
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from tokvid.errors import UserError
from tokvid.io.files import read_json


def load_track(path: Path, fps: float) -> np.ndarray:
    """The points of a track at `fps`, (T, N, 2), NaN where one isn't seen; UserError for anything else."""
    values = read_json(path, "track")
    if set(values) != {"fps", "points"}:
        raise UserError(f'track {path} should have "fps" and "points", and nothing else, got {list(values)!r:.60}')
    rate, frames = values["fps"], values["points"]
    if not _is_number(rate) or not 0 < rate <= 240:
        raise UserError(f"track {path}: fps should be above 0 and at most 240, got {rate!r:.40}")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, list) for frame in frames):
        got = "an empty one" if frames == [] else reprlib.repr(frames)
        raise UserError(
            f"track {path}: points should be a list of points for each frame, [null] where none is seen, got {got}"
        )
    if frames[0] and all(map(_is_number, frames[0])):
        raise UserError(
            f"track {path}: each frame should be a list of points, got {frames[0]}; write [{frames[0]}] for one point"
        )
    if len({len(frame) for frame in frames}) > 1 or not frames[0]:
        raise UserError(f"track {path}: each frame should have as many points, one or more; write null for unseen ones")
    points_TNC = np.array([[_point(path, number, point) for point in frame] for number, frame in enumerate(frames)])
    if np.isnan(points_TNC).all():
        raise UserError(f"track {path} has no path: its points are null in all frames; give some [x, y]")
    count = max(1, round(len(frames) / rate * fps))
    shown_T = np.minimum((np.arange(count) * rate / fps + 1e-6).astype(int), len(frames) - 1)
    return points_TNC[shown_T]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _point(path: Path, number: int, point: Any) -> tuple[float, float]:
    if point is None:
        return math.nan, math.nan
    if not isinstance(point, list) or len(point) != 2 or not all(map(_is_number, point)):
        raise UserError(f"track {path}, frame {number}: a point should be [x, y] or null, got {point!r:.40}")
    if not all(0 <= value <= 1 for value in point):
        raise UserError(
            f"track {path}, frame {number}: the point {point} is beyond the picture; x and y are from 0 to 1"
        )
    return float(point[0]), float(point[1])
