"""A story as files: whole or not at all, and resumed after whatever stopped it."""

import signal

import numpy as np
import PIL.Image
import pytest

from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe, stream_frames
from tokvid.sampling import film as module
from tokvid.sampling.film import film
from tokvid.sampling.story import Opening, Segment, Story

STORY = Story((Segment("up", 1.2), Segment("down", 0.01), Segment("", 0.9)))


@pytest.fixture
def fake_tell(monkeypatch):
    """Frames of one grey level each instead of a model's; `stop(n)` raises from the n-th frame on."""
    state = {"stop": None, "partials": []}

    def tell(models, story, windows, opening):
        state["partials"].append(windows._path)
        windows["0" * 32] = np.zeros((1, 1, *models.no_tokens(1).shape[2:]), np.int32)
        for index in range(story.frames + (0 if opening is None else 5)):
            if state["stop"] and index == state["stop"][0]:
                raise state["stop"][1]
            yield np.full((1, 16, 16, 3), index % 256, np.uint8)

    monkeypatch.setattr(module, "tell", tell)
    return state


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_all_files_are_written_and_nothing_else(tiny_models, fake_tell, tmp_path):
    seen = []
    outs = [tmp_path / "new" / "a.mp4", tmp_path / "new" / "a.gif"]
    assert film(tiny_models, STORY, outs, sheet=tmp_path / "new" / "sheet.png", watch=seen.append) == STORY.frames == 17
    assert [frame[0, 0, 0] for frame in seen] == list(range(17)) and seen[0].shape == (16, 16, 3)
    for out in outs:
        info = probe(out)
        assert (info.width, info.height, info.frames) == (256, 256, 17) and abs(info.fps - 8) < 0.1
    assert hidden(tmp_path / "new") == []
    sheet = PIL.Image.open(tmp_path / "new" / "sheet.png")
    assert sheet.text["captions"] == "up\n"  # the segment that is too short for a frame has no row


@pytest.mark.parametrize("scale, pixels", [(1, 16), (3, 48)])
def test_scale(tiny_models, fake_tell, tmp_path, scale, pixels):
    film(tiny_models, STORY, [tmp_path / "a.mp4"], scale=scale)
    assert probe(tmp_path / "a.mp4").width == pixels


def test_the_frames_on_the_sheet_are_of_their_segment(tiny_models, fake_tell, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(module, "contact_sheet", lambda path, rows, **other: found.update(rows=rows, **other))
    given_THWC = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 16, 16, 3))
    opening = Opening(np.zeros((3, 2, 2, 1), np.int32), given_THWC)
    film(tiny_models, STORY, [tmp_path / "a.mp4"], sheet=tmp_path / "s.png", opening=opening)
    given, first, second = ([int(frame[0, 0, 0]) for frame in row] for row in found["rows"])
    assert given == [0, 1, 2, 3, 4] and found["captions"] == ["given", "up", ""]
    assert first == [5, 6, 8, 9, 10, 11, 13, 14]  # behind the 5 frames of the opening
    assert second == [15, 16, 17, 18, 19, 20, 21]


def test_the_sheet_of_a_long_story_stays_small(tiny_models, fake_tell, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(module, "contact_sheet", lambda path, rows, **other: found.update(rows=rows, **other))
    story = Story(tuple(Segment("a" * 10_000, 0.5) for _ in range(100)))
    film(tiny_models, story, [tmp_path / "a.mp4"], sheet=tmp_path / "s.png", scale=1)
    assert len(found["rows"]) == 32 and all(len(row) <= 8 for row in found["rows"])
    first, last = ([int(frame[0, 0, 0]) for frame in found["rows"][at]] for at in (0, -1))
    assert first == [0, 1, 2, 3] and last == [number % 256 for number in range(396, 400)]  # from the whole story
    assert max(map(len, found["captions"])) == 500


@pytest.mark.parametrize(
    "change, said",
    [
        ({"scale": -1}, "scale should be 1 to 64, or 0 for a shorter side of 256 pixels or more, got -1"),
        ({"scale": 65}, "scale should be 1 to 64, or 0 for a shorter side of 256 pixels or more, got 65"),
        ({"sheet": "sheet.jpg"}, "should end in .png"),
        ({"out": "a.avi"}, "should end in .mp4 or .gif"),
        ({"out": "a.gif", "story": Story((Segment("", 3600.0),))}, "28800 frames are too many for a GIF"),
        ({"out": "a.gif", "story": Story((Segment("", 1.0),), fps=60.0)}, "at 60.0 fps: allowed for .gif"),
        ({"out": "file/a.mp4"}, "cannot write"),
        ({"out": "."}, "cannot write"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_said_before_anything_is_made(tiny_models, fake_tell, tmp_path, change, said):
    (tmp_path / "file").write_text("")
    options = {name: tmp_path / change[name] for name in ("sheet",) if name in change} | {
        "scale": change.get("scale", 0)
    }
    with pytest.raises(UserError, match=said):
        film(tiny_models, change.get("story", STORY), [tmp_path / change.get("out", "a.mp4")], **options)
    assert fake_tell["partials"] == [] and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("the disk is full")], ids=repr)
def test_what_stops_it_leaves_the_tokens_and_no_video(tiny_models, fake_tell, tmp_path, error):
    fake_tell["stop"] = (6, error)
    with pytest.raises(type(error)) as raised:
        film(tiny_models, STORY, [tmp_path / "a.mp4"])
    if isinstance(error, KeyboardInterrupt):
        said = "interrupted after 0.8 of 2.1 s; run the same command again to resume (the generated part is kept in "
        assert str(raised.value) == f"{said}{tmp_path / '.a.mp4.tokens'})"
    assert [path.name for path in tmp_path.iterdir()] == [".a.mp4.tokens"]
    fake_tell["stop"] = None
    film(tiny_models, STORY, [tmp_path / "a.mp4"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_tokens_outlive_a_disk_that_is_full_at_the_very_end(tiny_models, fake_tell, tmp_path, monkeypatch):
    """An mp4 is put in order when it is closed: hours of work must not be lost to that."""
    monkeypatch.setattr(module.VideoWriter, "_finish", lambda self: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left"):
        film(tiny_models, STORY, [tmp_path / "a.mp4"])
    assert [path.name for path in tmp_path.iterdir()] == [".a.mp4.tokens"]


def test_an_older_video_stays_until_the_new_one_is_whole(tiny_models, fake_tell, tmp_path):
    film(tiny_models, STORY, [tmp_path / "a.mp4"])
    before = (tmp_path / "a.mp4").read_bytes()
    fake_tell["stop"] = (6, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        film(tiny_models, Story((Segment("", 5.0),)), [tmp_path / "a.mp4"])
    assert (tmp_path / "a.mp4").read_bytes() == before


def test_an_interrupted_story_ends_up_as_if_it_had_not_been(tiny_models, tmp_path, monkeypatch):
    """For real, by a signal: the pixels are those of a story told in one go."""
    film(tiny_models, STORY, [tmp_path / "whole.mp4"], scale=1)
    seen = []

    def stop(frame_HWC):
        seen.append(frame_HWC)
        if len(seen) == 9:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        film(tiny_models, STORY, [tmp_path / "a.mp4"], scale=1, watch=stop)
    assert hidden(tmp_path) == [".a.mp4.tokens"]
    film(tiny_models, STORY, [tmp_path / "a.mp4"], scale=1)
    assert hidden(tmp_path) == []
    pairs = zip(stream_frames(tmp_path / "a.mp4"), stream_frames(tmp_path / "whole.mp4"), strict=True)
    assert all((one == other).all() for one, other in pairs)


def test_a_name_may_be_as_long_as_the_file_system_allows(fake_tell, tiny_models, tmp_path):
    """The file of the windows beside it has a shorter one."""
    names = [letter * 251 + ".mp4" for letter in "ab"]
    for name in names:
        film(tiny_models, STORY, [tmp_path / name])
    kept = {path.name for path in fake_tell["partials"]}
    assert len(kept) == 2 and all(len(name) < 255 for name in kept)
    assert {*names} <= {path.name for path in tmp_path.iterdir()}
