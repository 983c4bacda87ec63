"""Highlights of a long video: its switches are found, and what is written is what was chosen."""

import itertools
import json

import numpy as np
import pytest

import tokvid
import tokvid.evaluate.highlights as highlights_module
from tokvid.errors import UserError
from tokvid.evaluate.highlights import FPS, cut_out, highlights
from tokvid.input_pipeline.clips import probe
from tokvid.io.media import write_video
from tokvid.shapes.drawing import ShapesDataset, render


@pytest.mark.parametrize("segments", [25, pytest.param(150, marks=pytest.mark.slow)])
def test_the_switches_of_a_long_story_are_found(segments):
    """As many clips as there are switches, of a second each: most contain one, by chance a quarter would.

    150 segments are ten minutes.
    """
    story = ShapesDataset(1, 0, segments=(segments, segments))[0].story
    switches = np.array([segment.start for segment in story.segments[1:]])
    parts = (render(story, start=start, fps=FPS, frames=80) for start in range(0, int(story.seconds) - 9, 10))
    clips = highlights(itertools.chain.from_iterable(parts), 1.0, len(switches))
    has = np.array([[clip.start <= switch <= clip.start + 1 for switch in switches] for clip in clips])
    assert story.seconds > 3.6 * segments and len(clips) == len(switches)
    assert has.any(axis=0).mean() >= 0.9 and has.any(axis=1).mean() >= 0.9


@pytest.fixture
def movie(tmp_path):
    """Two scenes of three seconds, cut in the middle; something moves in the second."""
    rng = np.random.default_rng(0)
    scenes = rng.integers(256, size=(2, 48, 64, 3), dtype=np.uint8)
    video_THWC = scenes.repeat(36, axis=0)
    for index in range(48, 60):
        video_THWC[index, 10:30, 2 * index - 90 : 2 * index - 70] = 255
    write_video(tmp_path / "a.mp4", video_THWC, 12)
    return tmp_path / "a.mp4"


def test_clips_are_written(movie, tmp_path):
    rows = cut_out(movie, tmp_path / "out", 1.0, 3)
    assert [json.loads(line) for line in (tmp_path / "out/highlights.jsonl").read_text().splitlines()] == rows
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "01.mp4", "02.mp4", "03.mp4", "highlights.jsonl", "sheet.png",
    ]  # fmt: skip
    starts = [row["start"] for row in rows]
    assert min(np.diff(starts)) >= 1 and max(starts) <= 5
    cut = next(row for row in rows if row["cut"])
    assert cut["start"] == 3.0 and all(row["start"] >= 3 for row in rows if row["motion"] > 1)
    for row in rows:
        assert probe(tmp_path / "out" / row["file"]).frames == 12


def test_a_clip_begins_at_the_last_cut_before_its_moment():
    """Three scenes of two seconds, of which nothing moves: what happens are the cuts."""
    scenes = np.random.default_rng(0).integers(256, size=(3, 48, 64, 3), dtype=np.uint8)
    clips = highlights(scenes.repeat(2 * int(FPS), axis=0), 1.0, 2)
    assert [clip.start for clip in clips] == [clip.moment for clip in clips] == [2.0, 4.0]


def test_earlier_highlights_go_when_all_new_ones_are_there(movie, tmp_path, monkeypatch):
    out = tmp_path / "out"
    cut_out(movie, out, 1.0, 4)
    (out / "mine.mp4").touch()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(before) == 7

    def full(*arguments, **options):
        raise UserError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="the disk is full"):
        patched.setattr(highlights_module, "contact_sheet", full)
        cut_out(movie, out, 2.0, 1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    cut_out(movie, out, 2.0, 1)
    assert {path.name for path in out.iterdir()} == {"01.mp4", "highlights.jsonl", "mine.mp4", "sheet.png"}
    assert (out / "01.mp4").read_bytes() != before["01.mp4"]
    with pytest.raises(UserError, match="would replace"):
        cut_out(out / "01.mp4", out, 1.0, 1)


@pytest.mark.parametrize("name", ["sheet.png", "highlights.jsonl", "02.mp4"])
def test_a_folder_in_their_place_leaves_earlier_highlights(movie, tmp_path, name):
    out = tmp_path / "out"
    cut_out(movie, out, 1.0, 1)
    (out / name).unlink(missing_ok=True)
    (out / name).mkdir()
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=f"^cannot write {out / name}: it is a folder; move it, or choose"):
        cut_out(movie, out, 2.0, 2)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert {path.name for path in out.iterdir()} == {*before, name}


def test_a_short_video_has_few(movie, tmp_path):
    assert 1 <= len(cut_out(movie, tmp_path / "out", 2.5, 50)) <= 2
    with pytest.raises(UserError, match=r"the video has 6.00 s, fewer than a clip of 7 s"):
        cut_out(movie, tmp_path / "none", 7.0, 1)
    wrong = ((float("nan"), 1, "got nan"), (0.0, 1, r"should be 0\.25 to 600, got 0"), (1.0, 0, "1 to 1000, got 0"))
    for seconds, count, said in wrong:
        with pytest.raises(UserError, match=said):
            cut_out(movie, tmp_path / "none", seconds, count)
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match=r"cannot write to \S*a\.mp4: it exists and is no folder"):
        cut_out(movie, movie, 1.0, 1)
    video, before = movie.rename(movie.with_name("01.mp4")), movie.with_name("01.mp4").read_bytes()
    with pytest.raises(UserError, match=r"the highlights would replace .*; choose another folder than"):
        cut_out(video, video.parent, 1.0, 1)
    assert video.read_bytes() == before and not (video.parent / "sheet.png").exists()
    movie = video.rename(movie)
    rows = tokvid.highlights(str(movie), str(tmp_path / "four"), seconds=2.5)
    assert 1 <= len(rows) <= 2 and (tmp_path / "four" / rows[0]["file"]).is_file()


def test_clips_of_less_than_a_frame_are_refused(tmp_path):
    write_video(tmp_path / "slow.mp4", np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8), 1)
    with pytest.raises(UserError, match=r"highlights of 0\.25 s hold no frame of .*slow\.mp4, at 1 a second"):
        cut_out(tmp_path / "slow.mp4", tmp_path / "out", 0.25, 30)
    assert not (tmp_path / "out" / "01.mp4").exists()
