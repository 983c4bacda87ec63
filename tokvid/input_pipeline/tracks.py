"""Tracks: the path of an object as points, from a JSON file or what it would contain.

    {"fps": 8, "points": [[[0.2, 0.5]], [[0.25, 0.5]], …]}

For each frame its points, x and y from 0 (left, top) to 1 (right, bottom); null for one that isn't seen.
"""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tokvid.errors import UserError
from tokvid.io.files import read_json


def load_track(track: Path | Mapping[str, Any], fps: float) -> np.ndarray:
    """The points of a track at `fps`, (T, N, 2), NaN where one isn't seen; UserError for anything else."""
    name = f"track {track}" if isinstance(track, Path) else "the track"
    values = read_json(track, "track") if isinstance(track, Path) else track
    if set(values) != {"fps", "points"}:
        raise UserError(f'{name} should have "fps" and "points", and nothing else, got {list(values)!r:.60}')
    rate, frames = values["fps"], values["points"]
    frames = frames.tolist() if isinstance(frames, np.ndarray) else frames
    if not _is_number(rate) or not 0.1 <= rate <= 240:
        raise UserError(f"{name}: fps should be 0.1 to 240, got {rate!r:.40}")
    if not _is_list(frames) or not frames or not all(map(_is_list, frames)):
        got = "an empty one" if _is_list(frames) and not frames else reprlib.repr(frames)
        raise UserError(
            f"{name}: points should be a list of points for each frame, [null] where none is seen, got {got}"
        )
    if frames[0] and all(map(_is_number, frames[0])):
        raise UserError(
            f"{name}: each frame should be a list of points, got {frames[0]}; write [{frames[0]}] for one point"
        )
    if len({len(frame) for frame in frames}) > 1 or not frames[0]:
        raise UserError(f"{name}: each frame should have as many points, one or more; write null for unseen ones")
    points_TNC = np.array([[_point(name, number, point) for point in frame] for number, frame in enumerate(frames)])
    if np.isnan(points_TNC).all():
        raise UserError(f"{name} has no path: its points are null in all frames; give some [x, y]")
    count = max(1, round(len(frames) / rate * fps))
    shown_T = np.minimum((np.arange(count) * rate / fps + 1e-6).astype(int), len(frames) - 1)
    return points_TNC[shown_T]


def _is_number(value: Any) -> bool:
    plain = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return plain and bool(abs(value) < math.inf)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _point(name: str, number: int, point: Any) -> tuple[float, float]:
    if point is None:
        return math.nan, math.nan
    if not _is_list(point) or len(point) != 2 or not all(map(_is_number, point)):
        raise UserError(f"{name}, frame {number}: a point should be [x, y] or null, got {point!r:.40}")
    if not all(0 <= value <= 1 for value in point):
        raise UserError(
            f"{name}, frame {number}: the point {list(point)} is beyond the picture; x and y are from 0 to 1"
        )
    return float(point[0]), float(point[1])
