"""Tracks from JSON files."""

import json
import re

import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.input_pipeline.tracks import load_track


def test_a_track_is_read_at_any_rate(tmp_path):
    points = [[[0, 0.5], None], [[0.25, 0.5], [1, 1]], [[0.5, 0.5], None], [[0.75, 0.5], None]]
    (tmp_path / "t.json").write_text(json.dumps({"fps": 4, "points": points}))
    same = load_track(tmp_path / "t.json", 4.0)
    assert same.shape == (4, 2, 2) and np.isnan(same[0, 1]).all() and same[1].tolist() == points[1]
    assert load_track(tmp_path / "t.json", 8.0)[:, 0, 0].tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    (tmp_path / "t.json").write_text(json.dumps({"fps": 4, "points": points}), encoding="utf-8-sig")  # as on Windows
    assert load_track(tmp_path / "t.json", 2.0)[:, 0, 0].tolist() == [0, 0.5]


@pytest.mark.parametrize("fps, length", [(8, 40), (23.976, 58), (29.97, 247), (0.7, 48)])
def test_a_track_at_its_own_rate_has_all_of_its_points(fps, length):
    points = [[[number / 1000, 0.5]] for number in range(length)]
    assert load_track({"fps": fps, "points": points}, fps).tolist() == points


@pytest.mark.parametrize(
    "track, said",
    [
        ([], "should be a JSON object"),
        ({"points": [[[0, 0]]]}, r'should have "fps" and "points", and nothing else, got \[.points.\]'),
        ({"fps": 8, "points": [[None], [None]]}, "has no path: its points are null in all frames"),
        ({"fps": 0, "points": [[[0, 0]]]}, "fps should be 0.1 to 240"),
        ({"fps": 1e-12, "points": [[[0, 0]]]}, "fps should be 0.1 to 240"),
        ({"fps": True, "points": [[[0, 0]]]}, "fps should be 0.1 to 240"),
        ({"fps": 8, "points": []}, "a list of points for each frame, .null. where none is seen, got an empty one"),
        ({"fps": 8, "points": [[0.2, 0.5], [0.4, 0.5]]}, re.escape("got [0.2, 0.5]; write [[0.2, 0.5]] for one point")),
        ({"fps": 8, "points": [[]]}, "one or more"),
        ({"fps": 8, "points": [[[0, 0]], [None, None]]}, "as many points"),
        ({"fps": 8, "points": [[[0, 0]], [[0.5, 1.5]]]}, r"frame 1: the point \[0.5, 1.5\] is beyond the picture"),
        ({"fps": 8, "points": [[[10**400, 0]]]}, "is beyond the picture"),
        ({"fps": 8, "points": [[[0, "a"]]]}, r"frame 0: a point should be \[x, y\] or null"),
    ],
)
def test_other_tracks_are_refused(tmp_path, track, said):
    (tmp_path / "t.json").write_text(json.dumps(track))
    with pytest.raises(UserError, match=said):
        load_track(tmp_path / "t.json", 8.0)
