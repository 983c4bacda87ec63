"""Videos from videos: extend, interpolate, loop."""

import json
import shutil

import PIL.Image

from tokvid.input_pipeline.clips import probe


def test_given_videos_are_extended_interpolated_and_looped(tokvid, tiny_weights, movie, tmp_path):
    shutil.copytree(tiny_weights, tmp_path / "w")
    about = json.loads((tmp_path / "w" / "transformer" / "config.json").read_text())
    about["layouts"] = {"tasks": {"interpolation": 1.0, "infilling": 1.0}, "rows": [0, 1, 2]}
    (tmp_path / "w" / "transformer" / "config.json").write_text(json.dumps(about))
    code, out, err = tokvid("extend", "in.mp4", "--seconds", 1, "--weights", "w", "--fps", 5)
    assert (code, out) == (0, "extended.mp4: 5 frames of in.mp4, then 5 new ones at 5 fps\n"), err
    code, out, err = tokvid("interpolate", "in.mp4", "--factor", 4, "--weights", "w", "--sheet", "s.png", "--rows", 1)
    assert (code, out) == (0, "interpolated.mp4: 37 frames at 40 fps\n"), err
    info = probe(tmp_path / "interpolated.mp4")
    assert (info.frames, info.fps) == (37, 40.0) and PIL.Image.open(tmp_path / "s.png").width > 100
    code, out, err = tokvid("edit", "in.mp4", "--task", "interpolation", "--weights", "w", "--fps", 20)
    assert (code, out) == (0, "edited.mp4: 19 frames at 20 fps\n"), err
    code, _, err = tokvid("edit", "in.mp4", "--task", "interpolation", "--weights", tiny_weights)
    assert code == 2 and "these weights were not trained for interpolation" in err
    code, out, err = tokvid("loop", "in.mp4", "--weights", "w", "--fps", 10, "--rows", 2, "--rounds", 3)
    said = "loop.mp4: 12 frames at 10 fps, the last 4 of them new; left out: in.mp4's first 2 frames\n"
    assert (code, out) == (0, said), err
    assert probe(tmp_path / "loop.mp4").frames == 12
