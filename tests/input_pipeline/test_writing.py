"""Datasets written: every video as it was, and damage skipped or refused."""

import dataclasses
import logging

import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.input_pipeline import writing
from tokvid.input_pipeline.records import RecordSource
from tokvid.input_pipeline.writing import Frames, write_records
from tokvid.types import Caption


@dataclasses.dataclass(frozen=True)
class Grey:
    """A second of one shade; nothing can be read of a negative one."""

    shade: int
    key: str = "grey"
    seconds: float = 1.0
    captions: tuple[Caption, ...] = (Caption(0.0, "grey"),)

    def read(self, start, fps, frames, size):
        if self.shade < 0:
            raise UserError(f"shade {self.shade} is damaged")
        return np.full((frames, *size, 3), self.shade, np.uint8)


def test_videos_are_stored_as_frames_of_the_size_and_rate_asked_for(tmp_path):
    videos = [Grey(shade) for shade in (10, 20)]
    assert write_records(tmp_path / "d", videos, Frames((4, 6), 5.0), {"source": "grey"}) == 2
    source = RecordSource(tmp_path / "d")
    assert source.metadata == {"source": "grey", "size": [4, 6], "fps": 5.0}
    assert [(video.frames.shape, video.frames.max()) for video in source] == [((5, 4, 6, 3), 10), ((5, 4, 6, 3), 20)]


@pytest.mark.parametrize(
    "shades, share, said",
    [
        ((1, -1, 2), None, "shade -1 is damaged"),
        (
            (1, -1, 2, -2),
            0.4,
            r"2 of the 4 videos read cannot be used, at most 40% may \(max_unreadable\); the first: shade -1 is .*",
        ),
        ((-1, -2), 1.0, "none of the 2 videos read can be used; the first: shade -1 is damaged"),
    ],
)
def test_too_much_damage_leaves_nothing(tmp_path, shades, share, said):
    with pytest.raises(UserError, match=f"^{said}$"):
        write_records(tmp_path / "d", [Grey(shade) for shade in shades], Frames(), {}, share)
    assert list(tmp_path.iterdir()) == []


def test_a_long_video_in_one_record_is_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(writing, "LONG", 300)
    videos = [Grey(1), dataclasses.replace(Grey(2), key="long", seconds=9.0)]
    write_records(tmp_path / "d", videos, Frames((4, 6), 4.0), {})
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["long"]
    assert "cut long videos first" in caplog.text


def test_a_little_damage_is_skipped_and_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert write_records(tmp_path / "d", [Grey(shade) for shade in (1, -1, 2)], Frames(), {}, 0.4) == 2
    assert "skipped: shade -1 is damaged" in caplog.text
    assert [video.frames.max() for video in RecordSource(tmp_path / "d")] == [1, 2]
