"""Datasets: one door, and batches whose order is a function of the step alone."""

import dataclasses
import logging
import tarfile

import numpy as np
import PIL.Image
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.input_pipeline import datasets
from tokvid.input_pipeline.datasets import ClipCutter, clip_batches, fingerprint, open_source, usable_rates
from tokvid.input_pipeline.records import RecordWriter, StoredVideo, stored
from tokvid.shapes.drawing import ShapesDataset
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
        monkeypatch.setitem(datasets.SOURCES, "made", datasets.Source(lambda config, split: Made(*args)))
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
    with pytest.raises(UserError, match=r"more than max_unreadable 0\.1 allows; the last: video .* is damaged"):
        take(clip_batches(config, 10, 0), 6)


def test_counts(made):
    cutter = ClipCutter(Made([0.1, 9.0, 9.0], (2,)), dataclasses.replace(made([]), max_unreadable=1.0))
    rng = np.random.default_rng(0)
    for index in (0, 1, 2):
        assert cutter(index, rng).video[0, 0, 0, 0] == 1
    assert cutter.too_short >= 1 and cutter.unreadable >= 1 and cutter.reads == 3 + cutter.unreadable


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


def test_held_out_shapes_are_others():
    train, held_out = open_source(SHAPES), open_source(SHAPES, "held_out")
    assert not {train[i].captions for i in range(7)} & {held_out[i].captions for i in range(7)}


def test_stored_videos_hold_out_the_last(tmp_path):
    source = ShapesDataset(5, 0)
    with RecordWriter(tmp_path / "set", "frames") as writer:
        for i in range(5):
            writer.write(stored(source[i], fps=4, size=(16, 16)))
    config = dataclasses.replace(SHAPES, source="records", path=str(tmp_path / "set"), held_out=2)
    train, held_out = open_source(config), open_source(config, "held_out")
    assert [train[i].key for i in range(len(train))] == [source[i].key for i in range(3)]
    assert [held_out[i].key for i in range(len(held_out))] == [source[i].key for i in (3, 4)]
    with pytest.raises(IndexError):
        train[3]
    assert next(clip_batches(config, 3, 0)).video.shape == (3, 5, 16, 16, 3)
    with pytest.raises(UserError, match="hold out 0 to 4"):
        open_source(dataclasses.replace(config, held_out=5))
    with pytest.raises(UserError, match="set held_out above 0"):
        open_source(dataclasses.replace(config, held_out=0), "held_out")


def test_a_folder_of_clips(dev_data):
    config = DataConfig(
        source="folder",
        path=str(dev_data / "droid"),
        held_out=50,
        size=(36, 64),
        frames=3,
        fps=(2.0,),
        threads=2,
    )
    iterator = clip_batches(config, 2, 0)
    assert next(iterator).video.shape == (2, 3, 36, 64, 3)
    iterator.close()
    assert len(open_source(config, "held_out")) == 50


def test_mnist(dev_data):
    config = DataConfig(source="mnist", path=str(dev_data / "mnist" / "mnist_train.npz"), threads=0)
    assert next(clip_batches(config, 2, 0)).video.shape == (2, 11, 64, 64, 3)
    assert len(open_source(config, "held_out")) == 2_000


def test_a_video_without_captions_is_a_clip_without_text(made, monkeypatch):
    monkeypatch.setattr(MadeItem, "captions", ())
    batch = next(clip_batches(made([9.0] * 4), 2, 0, encode=lambda text: np.full(3, len(text) - 1, np.int32)))
    assert batch.text.tolist() == [[-1] * 3] * 2


def lay_out(source, path):
    """Data of that source at `path`; its files that count, and whether any other below it would."""
    path.mkdir()
    if source == "mnist":
        for name, shape in (("train-images-idx3-ubyte", (10, 28, 28)), ("train-labels-idx1-ubyte", (10,))):
            head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
            (path / name).write_bytes(head + bytes(np.arange(np.prod(shape)) % 10))
        return sorted(path.iterdir()), False
    if source == "folder":
        for number in range(3):
            PIL.Image.new("RGB", (16, 16), (number, 0, 0)).save(path / f"{number}.png")
        (path / "broken.png").write_bytes(b"no picture")
        lines = [f'{{"file": "{name}.png", "caption": "a"}}\n' for name in (0, 1, 2, "broken")]
        (path / "captions.jsonl").write_text("".join(lines))
        return sorted(path.iterdir()), False
    if source == "webdataset":
        for number in range(2):
            PIL.Image.new("RGB", (16, 16), (number, 0, 0)).save(path / "a.png")
            (path / "a.txt").write_text("a")
            with tarfile.open(path / f"{number}.tar", "w") as shard:
                shard.add(path / "a.png", "a.png")
                shard.add(path / "a.txt", "a.txt")
        (path / "a.png").unlink()
        (path / "a.txt").unlink()
        return sorted(path.iterdir()), False
    if source == "records":
        path.rmdir()
        with RecordWriter(path, "frames") as writer:
            writer.write(stored(ShapesDataset(1, 0)[0], fps=2, size=(8, 8)))
        return sorted(path.iterdir()), False
    (path / "1.0.0").mkdir()  # any other: all that is there counts
    for name in ("shard-0.tar", "1.0.0/shard-1.tar"):
        (path / name).write_bytes(bytes(20_000))
    return sorted(file for file in path.rglob("*") if file.is_file()), True


@pytest.mark.parametrize("source", sorted(datasets.SOURCES))
def test_changed_data_has_another_fingerprint(tmp_path, source):
    """Every file that a source reads counts: one that is added or lost, or has other bytes in the same size."""
    path = tmp_path / "data"
    files, all_count = lay_out(source, path)
    config = DataConfig(source=source, path=str(path))
    before = fingerprint(config)
    assert len(before) == 16
    for file in files:
        content, seen = file.read_bytes(), {before}
        for place in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            try:
                seen.add(fingerprint(config))
            except UserError:  # it isn't data any more
                seen.add(str(place))
        file.write_bytes(content)  # only the time is another one now
        assert len(seen) == 4 and fingerprint(config) == before, file
    (path / "another").touch()
    assert (fingerprint(config) != before) == all_count
    (path / "another").unlink()
    path.rename(tmp_path / "moved")
    assert fingerprint(dataclasses.replace(config, path=str(tmp_path / "moved"))) == before


def test_images_beside_the_clips_count(tmp_path):
    lay_out("folder", tmp_path / "images")
    config = dataclasses.replace(SHAPES, images=1, images_path=str(tmp_path / "images"))
    assert fingerprint(SHAPES) == fingerprint(dataclasses.replace(config, images=0)) == ""
    before = fingerprint(config)
    PIL.Image.new("RGB", (16, 16), "white").save(tmp_path / "images" / "0.png")
    assert before != fingerprint(config) != ""


def test_a_clip_that_is_added_or_lost_is_noticed(tmp_path):
    files, _ = lay_out("folder", tmp_path / "clips")
    config = DataConfig(source="folder", path=str(tmp_path / "clips"), max_unreadable=0.5)
    marks = {fingerprint(config)}
    files[0].write_bytes(files[1].read_bytes())
    marks.add(fingerprint(config))
    (tmp_path / "clips" / "new.png").write_bytes(files[0].read_bytes())
    captions = tmp_path / "clips" / "captions.jsonl"
    captions.write_text(captions.read_text() + '{"file": "new.png", "caption": "new"}\n')
    marks.add(fingerprint(config))
    assert len(marks) == 3


def test_files_are_fitted_as_their_writer_said(tmp_path, caplog):
    for fit in ("letterbox", "stretch"):
        with RecordWriter(tmp_path / fit, "video", {"fit": "letterbox"}) as writer:
            writer.write(StoredVideo("a", 1.0, (Caption(0.0, "x"),), video=b"x"))
        described = tmp_path / fit / "dataset.json"
        described.write_text(described.read_text().replace("letterbox", fit))
    config = DataConfig(source="records", path=str(tmp_path / "letterbox"))
    assert (
        open_source(config)[0].fit == "letterbox" and "with fit letterbox, as it was written, not crop" in caplog.text
    )
    with pytest.raises(UserError, match="unknown fit 'stretch'"):
        open_source(dataclasses.replace(config, path=str(tmp_path / "stretch")))
