"""Batches of clips: their order is a function of the step alone, and videos that cannot be used are replaced."""

import dataclasses
import logging
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.input_pipeline.loader import ClipCutter, captions_within, clip_batches, usable_rates
from tokvid.input_pipeline.source import Source
from tokvid.input_pipeline.sources import SOURCES
from tokvid.tasks.conditions import CONDITIONS
from tokvid.types import Caption

SHAPES = DataConfig(videos=7, size=(16, 16), frames=5, threads=0)


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        for name, array in one._asdict().items():
            np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)


def take(iterator, steps):
    return [next(iterator) for _ in range(steps)]


class Made:
    """Videos of given lengths, `broken` ones of which raise when they are read; a frame shows its index and
    time.
    """

    def __init__(self, seconds, broken=()):
        self.seconds, self.broken = seconds, broken

    def __len__(self):
        return len(self.seconds)

    def __getitem__(self, index):
        return MadeItem(index, self.seconds[index], index in self.broken)


@dataclasses.dataclass(frozen=True)
class MadeItem:
    index: int
    seconds: float
    broken: bool
    captions = (Caption(0.0, "made"),)

    @property
    def key(self):
        return str(self.index)

    def read(self, start, fps, frames, size):
        if self.broken:
            raise UserError(f"video {self.index} is damaged")
        assert start >= 0 and start + (frames - 1) / fps < self.seconds
        return np.full((frames, *size, 3), self.index % 256, np.uint8)


@pytest.fixture
def made(monkeypatch):
    """Puts a Made source behind the door, under the name "made"."""

    def put(*args):
        monkeypatch.setitem(sys.modules, "made", SimpleNamespace(SOURCE=Source(lambda config: Made(*args))))
        monkeypatch.setitem(SOURCES, "made", "made")
        return dataclasses.replace(SHAPES, source="made")

    return put


def test_shapes_batches():
    batch = next(clip_batches(SHAPES, 3, 0))
    assert batch.video.shape == (3, 5, 16, 16, 3) and batch.video.dtype == np.uint8
    assert batch.fps.shape == (3,) and batch.fps.dtype == np.float32 and set(batch.fps) <= set(SHAPES.fps)


@pytest.mark.parametrize("threads", [1, 4])
def test_order_is_the_same_for_any_number_of_threads(threads):
    iterator = clip_batches(dataclasses.replace(SHAPES, threads=threads), 3, 5)
    assert_same(take(iterator, 8), take(clip_batches(SHAPES, 3, 5), 8))
    iterator.close()


def test_seeds_differ_and_any_is_allowed():
    one, other, large = (next(clip_batches(SHAPES, 4, seed)) for seed in (0, 1, 2**40))
    assert (one.video != other.video).any() and (one.video != large.video).any()
    with pytest.raises(UserError, match="negative"):
        clip_batches(SHAPES, 4, -1)


@pytest.mark.parametrize(("saver", "restorer"), [(0, 0), (2, 0), (0, 2)])
def test_resuming_equals_going_on(saver, restorer):
    """Saved in the middle of an epoch, resumed with another number of threads."""
    first = clip_batches(dataclasses.replace(SHAPES, threads=saver), 3, 0)
    take(first, 3)
    state = first.get_state()
    second = clip_batches(dataclasses.replace(SHAPES, threads=restorer), 3, 0)
    second.set_state(state)
    assert_same(take(second, 5), take(first, 5))
    first.close()
    second.close()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_one_stream(processes):
    whole = take(clip_batches(SHAPES, 6, 0), 4)
    parts = [take(clip_batches(SHAPES, 6 // processes, 0, shard=(i, processes)), 4) for i in range(processes)]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(batch.video, np.concatenate([part[step].video for part in parts]))


@pytest.mark.parametrize(("videos", "times"), [(300, 1), (6, 43)])
def test_every_video_equally_often_in_a_new_order(made, videos, times):
    config = dataclasses.replace(made([10.0] * videos), size=(1, 1))
    epochs = [batch.video[:, 0, 0, 0, 0].tolist() for batch in take(clip_batches(config, videos * times, 0), 2)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(times * [i % 256 for i in range(videos)])
    assert epochs[0] != epochs[1]


def test_a_share_of_clips_is_shown_as_a_condition(made):
    config, seen = dataclasses.replace(made([9.0] * 40), conditions=0.25), [CONDITIONS["low"], CONDITIONS["edges"]]
    clips = np.concatenate([batch.video for batch in take(clip_batches(config, 20, 0, conditions=seen), 10)])
    black = (clips == 0).all(axis=(1, 2, 3, 4)).mean()  # even frames have no edges
    assert clips.shape == (200, 5, 16, 16, 3) and 0.06 < black < 0.2
    one, other = (clip_batches(c, 20, 0, conditions=seen) for c in (made([9.0] * 40), SHAPES))
    assert (next(one).video != 0).any() and (next(other).video == next(clip_batches(SHAPES, 20, 0)).video).all()


def test_images_beside_clips(made):
    """Drawn from all videos, the same whatever the threads; clips are as long as ever."""
    config = dataclasses.replace(made([10.0] * 9), size=(4, 4), images=3)
    batches = take(clip_batches(dataclasses.replace(config, threads=0), 8, 0), 4)
    assert batches[0].video.shape == (8, 5, 4, 4, 3) and batches[0].images.shape == (8, 3, 4, 4, 3)
    assert len(np.unique([batch.images for batch in batches])) == 9
    assert_same(batches, take(clip_batches(dataclasses.replace(config, threads=3), 8, 0), 4))
    assert next(clip_batches(SHAPES, 8, 0)).images.shape == (8, 0, 16, 16, 3)


def test_images_of_a_folder(made, tmp_path):
    for level in (100, 200):
        PIL.Image.new("RGB", (9, 6), (level,) * 3).save(tmp_path / f"{level}.png")
    (tmp_path / "captions.csv").write_text("file,caption\n100.png,dark\n200.png,light\n")
    config = dataclasses.replace(made([10.0] * 2), size=(4, 4), images=2, images_path=str(tmp_path))
    batch = next(clip_batches(config, 8, 0))
    assert set(np.unique(batch.video)) == {0, 1} and set(np.unique(batch.images)) == {100, 200}


@pytest.mark.parametrize(
    ("seconds", "frames", "rates"),
    [
        (10.0, 5, [2.0, 4.0, 8.0]),
        (2.0, 5, [4.0, 8.0]),
        (2.01, 5, [2.0, 4.0, 8.0]),
        (0.5, 5, []),
        (0.0, 1, [2.0, 4.0, 8.0]),
    ],
)
def test_usable_rates(seconds, frames, rates):
    """Five frames at 2 fps: the last begins at 2 s, so the video must be longer than that."""
    assert usable_rates(seconds, frames, (8.0, 2.0, 4.0)) == rates


@pytest.mark.parametrize(
    ("start", "end", "told"),
    [
        (0.0, 1.0, [(0.0, "a")]),
        (1.0, 4.0, [(0.0, "a"), (1.0, "b")]),
        (2.0, 4.5, [(0.0, "b"), (2.0, "c")]),
        (9.0, 9.5, [(0.0, "c")]),
    ],
)
def test_captions_of_a_clip(start, end, told):
    """The one in force at its start, and those that begin before its end."""
    captions = (Caption(0.0, "a"), Caption(2.0, "b"), Caption(4.0, "c"))
    assert captions_within(captions, start, end) == tuple(Caption(*each) for each in told)


def test_clips_begin_anywhere_in_a_video(made, monkeypatch):
    """As long as they end within: half a second at 8 fps."""
    starts = []

    def read(item, start, fps, frames, size):
        starts.append(start)
        return np.zeros((frames, *size, 3), np.uint8)

    monkeypatch.setattr(MadeItem, "read", read)
    take(clip_batches(dataclasses.replace(made([9.0] * 4), fps=(8.0,)), 50, 0), 2)
    assert 0 <= min(starts) < 0.5 and 8 < max(starts) <= 8.5 and 3.5 < np.mean(starts) < 5


def test_rules_of_frame_rates(made):
    config = made([1.5, 10.0])
    drawn = {
        rule: {
            (int(video[0, 0, 0, 0]), float(fps))
            for batch in take(clip_batches(dataclasses.replace(config, fps_rule=rule), 8, 0), 10)
            for video, fps in zip(batch.video, batch.fps, strict=True)
        }
        for rule in ("uniform", "lowest")
    }
    assert drawn == {
        "uniform": {(0, 4.0), (0, 8.0), (1, 2.0), (1, 4.0), (1, 8.0)},
        "lowest": {(0, 4.0), (1, 2.0)},
    }


def test_too_short_videos_are_passed_over(made, caplog):
    config = made([0.1, 9.0, 9.0, 0.2])
    with caplog.at_level(logging.WARNING):
        batches = take(clip_batches(config, 4, 0), 5)
    assert {int(video[0, 0, 0, 0]) for batch in batches for video in batch.video} == {1, 2}
    assert caplog.text.count("too short for 5 frames") == 1
    assert_same(batches, take(clip_batches(dataclasses.replace(config, threads=3), 4, 0), 5))


def test_only_too_short_videos(made):
    with pytest.raises(UserError, match=r"no clip of 5 frames, which takes more than 0\.5 s at 8 fps"):
        next(clip_batches(made([0.1, 0.2]), 2, 0))


@pytest.mark.parametrize("threads", [0, 2])
def test_unreadable_videos_are_replaced_up_to_a_share(made, caplog, threads):
    config = dataclasses.replace(made([9.0] * 20, (3,)), threads=threads)
    with caplog.at_level(logging.WARNING):
        batches = take(clip_batches(config, 10, 0), 6)
    assert 3 not in {int(video[0, 0, 0, 0]) for batch in batches for video in batch.video}
    assert "video 3 cannot be read, another takes its place" in caplog.text
    config = dataclasses.replace(made([9.0] * 20, range(1, 20)), threads=threads)
    with pytest.raises(
        UserError,
        match=r"read cannot be used, at most 10% of 50 may \(max_unreadable\); the first: video \d+ is damaged",
    ):
        take(clip_batches(config, 10, 0), 6)


def test_counts(made):
    cutter = ClipCutter(Made([0.1, 9.0, 9.0], (2,)), dataclasses.replace(made([]), max_unreadable=1.0))
    rng = np.random.default_rng(0)
    for index in (0, 1, 2):
        assert cutter(index, rng).video[0, 0, 0, 0] == 1
    assert (
        cutter.too_short >= 1 and cutter.unreadable.count >= 1 and cutter.unreadable.read == 3 + cutter.unreadable.count
    )


@pytest.mark.parametrize(
    ("change", "split", "said"),
    [
        ({"source": "shape"}, "train", "did you mean 'shapes'"),
        ({}, "heldout", "did you mean 'held_out'"),
        ({"fps": ()}, "train", "one rate at least"),
        ({"fps": (0.0,)}, "train", "must be positive"),
        ({"frames": 0}, "train", "must be positive"),
        ({"source": "records", "path": "/nowhere"}, "train", "no dataset.json"),
    ],
)
def test_settings_that_cannot_be(change, split, said):
    with pytest.raises(UserError, match=said):
        clip_batches(dataclasses.replace(SHAPES, **change), 2, 0, split=split)


@pytest.mark.parametrize(("batch", "shard"), [(0, (0, 1)), (2, (1, 1)), (2, (-1, 2))])
def test_batches_that_cannot_be(batch, shard):
    with pytest.raises(UserError, match="batch should be 1 or more"):
        clip_batches(SHAPES, batch, 0, shard=shard)


def test_a_video_without_captions_is_a_clip_without_text(made, monkeypatch):
    monkeypatch.setattr(MadeItem, "captions", ())
    batch = next(clip_batches(made([9.0] * 4), 2, 0, encode=lambda text: np.full(3, len(text) - 1, np.int32)))
    assert batch.text.tolist() == [[-1] * 3] * 2
