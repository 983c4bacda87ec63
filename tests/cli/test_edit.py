"""Videos from videos and pictures: extend, edit, animate, interpolate, loop."""

import json
import re
import signal

import PIL.Image
import pytest

from tokvid.input_pipeline.clips import probe
from tokvid.sampling import edits
from tokvid.tasks.tasks import TASKS


@pytest.fixture
def all_tasks(trained_for):
    """Weights as if trained for all tasks."""
    trained_for(TASKS)


def test_a_part_of_a_video_becomes_new(tokvid, all_tasks, movie, tmp_path):
    """By a box, or by the same box as a mask."""
    mask = PIL.Image.new("RGB", (60, 40))
    mask.paste((255, 255, 255), (10, 0, 30, 40))
    mask.save(tmp_path / "mask.png")
    inpaint = ("edit", "in.mp4", "--task", "inpaint", "--weights", "w", "--fps", 4, "--guidance", 1)
    code, out, err = tokvid(*inpaint, "--box", 10, 0, 20, 40)
    assert (code, out) == (0, "edited.mp4: 4 frames at 4 fps\n"), err
    code, _, err = tokvid(*inpaint, "--mask", "mask.png", "--out", "masked.mp4")
    assert code == 0 and (tmp_path / "masked.mp4").read_bytes() == (tmp_path / "edited.mp4").read_bytes(), err


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_edit_says_that_nothing_is_kept(tokvid, all_tasks, movie, tmp_path, monkeypatch, number, code):
    make = edits.edit

    def interrupted(*arguments):
        total, parts = make(*arguments)

        def some():
            yield next(parts)
            signal.raise_signal(number)

        return total, some()

    monkeypatch.setattr(edits, "edit", interrupted)
    before = set(tmp_path.iterdir())
    found, out, err = tokvid("edit", "in.mp4", "--task", "colourise", "--weights", "w", "--fps", 4)
    assert (found, out) == (code, "")
    assert re.search(r"\ntokvid: interrupted after \d of 4 frames; nothing is kept\n$", err)
    assert set(tmp_path.iterdir()) == before


def test_what_becomes_no_larger_is_said(tokvid, all_tasks, movie):
    """Of 60×40 pixels the models, of 16×16, read 8×8."""
    upscale = ("edit", "in.mp4", "--task", "upscale", "--weights", "w", "--fps", 4)
    said = "upscale makes 16x16 pixels of 8x8; the video has 60x40, which are scaled down first"
    assert said in tokvid(*upscale)[2]
    code, _, err = tokvid(*upscale, "--times", 8)
    assert code == 0 and "scaled down" not in err


def test_a_picture_moves(tokvid, all_tasks, movie, tmp_path):
    animate = ("animate", "in.png", "--weights", "w", "--fps", 4, "--guidance", 1)
    code, out, err = tokvid(*animate, "--zero-shot", "--seconds", 1)
    assert (code, out) == (0, "animated.mp4: 4 frames at 4 fps\n"), err
    (tmp_path / "t.json").write_text(json.dumps({"fps": 4, "points": [[[0.5, 0.5]]] * 3}))
    code, out, err = tokvid(*animate, "--track", "t.json")
    assert (code, out) == (0, "animated.mp4: 3 frames at 4 fps\n"), err
    moved = (tmp_path / "animated.mp4").read_bytes()
    assert tokvid(*animate, "--track", "t.json", "--at-path")[0] == 0
    assert (tmp_path / "animated.mp4").read_bytes() != moved


@pytest.mark.parametrize(
    "command, said",
    [
        (
            "edit in.mp4 --task inpaint",
            "inpaint needs either a box, its left, top, width and height",
        ),
        (
            "edit in.mp4 --task inpaint --box 0,0,9,9",
            "expected 4 arguments, LEFT TOP WIDTH HEIGHT, with",
        ),
        ("edit in.mp4 --task inpaint --box 50 0 20 10", "the box 50 0 20 10 is not within the video of 60x40 pixels"),
        ("edit in.mp4 --task inpaint --mask in.png", "the mask has 20x30 pixels, the video 60x40"),
        ("edit in.mp4 --task animate", "animate has a command of its own, tokvid animate"),
        ("edit in.mp4 --task restyle --fps 0", "tokvid: fps should be above 0"),
        ("edit in.mp4 --task outpaint", "outpaint needs a canvas, as 16:9"),
        ("edit in.mp4 --task outpaint --canvas 16:0", "outpaint needs a canvas, as 16:9, got '16:0'"),
        ("edit in.mp4 --task outpaint --canvas 3:2", "is as wide as that canvas"),
        ("edit in.mp4 --task upscale --times 3", "2, 4, 8, … times as large, not 3"),
        ("edit in.mp4 --task variation --strength 2", "strength should be above 0 and at most 1, got 2"),
        ("edit in.mp4 --task restyle --first in.mp4", "in.mp4 is a video of 10 frames; give a picture"),
        ("edit in.mp4 --task upscale --first in.png", "--first is not for task upscale"),
        ("edit in.mp4 --task restyle --larger 2", "blurred; give a first frame (first), or leave out"),
        ("edit in.mp4 --task colourise --larger 0", "larger should be 1 to 16"),
        ("edit in.mp4 --task variation --box 0 0 1 1", "--box is not for task variation"),
        ("animate in.png", "one of the arguments --track --like --zero-shot is required"),
        ("animate in.png --track nowhere.json", "cannot read track nowhere.json"),
        ("animate in.png --like in.mp4 --seconds 2", "--seconds is for --zero-shot"),
        ("animate in.png --zero-shot --at-path", "--at-path is for a track"),
    ],
)
def test_mistakes_in_edits(refused, all_tasks, movie, command, said):
    assert said in refused(*command.split(), "--weights", "w")


def test_given_videos_are_extended_interpolated_and_looped(tokvid, trained_for, tiny_weights, movie, tmp_path):
    trained_for(["interpolation", "infilling"], rows=(0, 1, 2))
    code, out, err = tokvid("extend", "in.mp4", "--seconds", 1, "--weights", "w", "--fps", 5)
    assert (code, out) == (0, "extended.mp4: 5 frames of in.mp4, then 5 new ones at 5 fps\n"), err
    code, out, err = tokvid("interpolate", "in.mp4", "--factor", 4, "--weights", "w", "--sheet", "s.png", "--rows", 1)
    assert (code, out) == (0, "interpolated.mp4: 37 frames at 40 fps\ns.png: a contact sheet of it\n"), err
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
