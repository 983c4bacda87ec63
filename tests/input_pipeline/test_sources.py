"""Every source in the registry, by one set of tests: what it opens, holds out, and notices when its files change."""

import dataclasses
import functools
import http.server
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.input_pipeline.loader import clip_batches
from tokvid.input_pipeline.records import RecordWriter
from tokvid.input_pipeline.source import Unreadable
from tokvid.input_pipeline.sources import SOURCES, fingerprint, holds_out, open_source
from tokvid.input_pipeline.stored import StoredVideo, stored
from tokvid.io.files import seal, write_json
from tokvid.shapes.drawing import ShapesDataset
from tokvid.types import Caption

SHAPES = DataConfig(videos=7, size=(16, 16), frames=5, threads=0)


def digits(path: Path) -> None:
    path.mkdir()
    for name, shape in (("train-images-idx3-ubyte", (10, 28, 28)), ("train-labels-idx1-ubyte", (10,))):
        head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
        (path / name).write_bytes(head + bytes(int(value) % 10 for value in range(np.prod(shape))))


def folder(path: Path) -> None:
    path.mkdir()
    for number in range(3):
        PIL.Image.new("RGB", (16, 16), (number, 0, 0)).save(path / f"{number}.png")
    (path / "broken.png").write_bytes(b"no picture")
    lines = [f'{{"file": "{name}.png", "caption": "a"}}\n' for name in (0, 1, 2, "broken")]
    (path / "captions.jsonl").write_text("".join(lines))


def shards(path: Path) -> None:
    path.mkdir()
    for number in range(2):
        PIL.Image.new("RGB", (16, 16), (number, 0, 0)).save(path / "a.png")
        (path / "a.txt").write_text("a")
        with tarfile.open(path / f"{number}.tar", "w") as shard:
            shard.add(path / "a.png", "a.png")
            shard.add(path / "a.txt", "a.txt")
    (path / "a.png").unlink()
    (path / "a.txt").unlink()


def table(path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.mkdir()
    for part in range(2):
        rows = [picture(3 * part + number) for number in range(3)]
        pq.write_table(pa.table({"image": rows, "caption": ["a"] * 3}), path / f"{part}.parquet")


def picture(level: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path.mkdir()
    with h5py.File(path / "a.hdf5", "w") as file:
        file["train_data"] = np.arange(24, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 16, 16, 3), np.uint8)
        file["train_idx"] = [0, 8, 16]


def arrays(path: Path) -> None:
    path.mkdir()
    for number in range(3):
        np.savez(path / f"{number}.npz", video=np.full((8, 16, 16, 3), number, np.uint8))


@functools.cache
def server() -> str:
    """The address of one that answers everything with a picture."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = picture(int(self.path.strip("/")))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{serving.server_address[1]}"


def addresses(path: Path) -> None:
    path.mkdir()
    lines = [f"{server()}/{number},a\n" for number in range(3)]
    (path / "list.csv").write_text("".join(["url,caption\n", *lines]))


def records(path: Path) -> None:
    source = ShapesDataset(3, 0)
    with RecordWriter(path, "frames", per_file=2) as writer:
        for number in range(3):
            writer.write(stored(source[number], fps=2, size=(8, 8)))


def prepared(path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    from tokvid.input_pipeline.builders import MovingShapes

    tfds.disable_progress_bar()
    MovingShapes(videos=3, held_out=2, size=(16, 16), fps=2.0, data_dir=path).download_and_prepare()


# What each source of files reads, written at a path. A procedural source needs nothing here.
SAMPLES: dict[str, Callable[[Path], None]] = {
    "mnist": digits,
    "folder": folder,
    "webdataset": shards,
    "parquet": table,
    "hdf5": hdf5,
    "npz": arrays,
    "urls": addresses,
    "records": records,
    "tfds": prepared,
}


@pytest.fixture(params=sorted(SOURCES))
def sample(request, tmp_path, monkeypatch) -> DataConfig:
    """A small instance of each source; `path` is "" for procedural ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    name = request.param
    config = DataConfig(source=name, videos=5, max_unreadable=0.5)
    if name in SAMPLES:
        SAMPLES[name](tmp_path / "data")
        return dataclasses.replace(config, path=str(tmp_path / "data"))
    try:
        open_source(config)
    except UserError as error:
        pytest.fail(
            f"the source {name!r} reads files: add to SAMPLES a function that writes a small sample of it ({error})"
        )
    return config


def files_of(config):
    return sorted(file for file in Path(config.path).rglob("*") if file.is_file())


def check_item(item):
    """What `VideoItem` promises."""
    assert isinstance(item.key, str) and item.key and item.seconds >= 0
    starts = [caption.start for caption in item.captions]
    assert starts[0] == 0 and starts == sorted(starts) and all(isinstance(each.text, str) for each in item.captions)
    frames = 3 if item.seconds > 0.5 else 1  # an image is a video of one frame
    for size in ((16, 16), (8, 8)):
        video_THWC = item.read(0.0, 8.0, frames, size)
        assert video_THWC.dtype == np.uint8 and video_THWC.shape == (frames, *size, 3)
        np.testing.assert_array_equal(video_THWC, item.read(0.0, 8.0, frames, size))


def test_it_gives_videos(sample):
    source = open_source(sample)
    assert len(source) > 0
    for index in {0, len(source) - 1}:
        check_item(source[index])
        assert source[index].key == open_source(sample)[index].key
    assert len({source[index].key for index in range(min(len(source), 5))}) == min(len(source), 5)
    with pytest.raises(IndexError):
        source[len(source)]


def test_it_holds_videos_out(sample):
    """By itself, or the last `held_out`: others than those to train on."""
    if not holds_out(sample):
        with pytest.raises(UserError, match="set held_out above 0"):
            open_source(sample, "held_out")
        sample = dataclasses.replace(sample, held_out=1)
    assert holds_out(sample)
    train, held_out = open_source(sample), open_source(sample, "held_out")
    check_item(held_out[0])
    few = min(len(train), len(held_out), 5)
    assert few > 0
    assert not {train[index].key for index in range(few)} & {held_out[index].key for index in range(few)}


def test_it_gives_batches(sample):
    one, again = (next(clip_batches(dataclasses.replace(sample, frames=1, threads=0), 2, 0)) for _ in range(2))
    assert one.video.shape == (2, 1, *sample.size, 3)
    np.testing.assert_array_equal(one.video, again.video)


def test_a_path_where_nothing_is_is_refused(sample, tmp_path):
    if not sample.path:
        pytest.skip("it reads no files")
    with pytest.raises(UserError, match="nowhere"):
        open_source(dataclasses.replace(sample, path=str(tmp_path / "nowhere")))


def test_changed_files_have_another_fingerprint(sample, tmp_path):
    """Every file that a source reads counts: its name and its bytes, not its time, its place or the order on disk."""
    before = fingerprint(sample)
    if not sample.path:
        assert before == ""
        return
    assert len(before) == 16 and fingerprint(sample) == before
    for file in files_of(sample):
        content, seen = file.read_bytes(), {before}
        for place in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            try:
                seen.add(fingerprint(sample))
            except UserError:  # it isn't data any more
                seen.add(str(place))
        file.write_bytes(content)  # only the time is another one now
        assert len(seen) == 4 and fingerprint(sample) == before, file
    copy = tmp_path / "copy"
    for file in reversed(files_of(sample)):
        there = copy / file.relative_to(sample.path)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, there)
    assert fingerprint(dataclasses.replace(sample, path=str(copy))) == before


@pytest.mark.parametrize(("source", "all_count"), [("folder", False), ("webdataset", False), ("shapes", True)])
def test_files_that_are_not_read_do_not_count(tmp_path, source, all_count):
    """But where a source says nothing of its files, all do."""
    path = tmp_path / "data"
    if source == "shapes":
        path.mkdir()
    else:
        SAMPLES[source](path)
    config = DataConfig(source=source, path=str(path))
    before = fingerprint(config)
    (path / "another").touch()
    assert (fingerprint(config) != before) == all_count


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


def test_images_beside_the_clips_count(tmp_path):
    folder(tmp_path / "images")
    config = dataclasses.replace(SHAPES, images=1, images_path=str(tmp_path / "images"))
    assert fingerprint(SHAPES) == fingerprint(dataclasses.replace(config, images=0)) == ""
    before = fingerprint(config)
    PIL.Image.new("RGB", (16, 16), "white").save(tmp_path / "images" / "0.png")
    assert before != fingerprint(config) != ""


def test_a_clip_that_is_added_or_lost_is_noticed(tmp_path):
    folder(tmp_path / "clips")
    config = DataConfig(source="folder", path=str(tmp_path / "clips"), max_unreadable=0.5)
    marks = {fingerprint(config)}
    shutil.copyfile(tmp_path / "clips" / "1.png", tmp_path / "clips" / "0.png")
    marks.add(fingerprint(config))
    shutil.copyfile(tmp_path / "clips" / "0.png", tmp_path / "clips" / "new.png")
    captions = tmp_path / "clips" / "captions.jsonl"
    captions.write_text(captions.read_text() + '{"file": "new.png", "caption": "new"}\n')
    marks.add(fingerprint(config))
    assert len(marks) == 3


def test_files_are_fitted_as_their_writer_said(tmp_path, caplog):
    for fit in ("letterbox", "stretch"):
        with RecordWriter(tmp_path / fit, "video", {"fit": "letterbox"}) as writer:
            writer.write(StoredVideo("a", 1.0, (Caption(0.0, "x"),), video=b"x"))
        described = tmp_path / fit / "dataset.json"
        description = json.loads(described.read_text()) | {"metadata": {"fit": fit}}
        write_json(described, description | {"sha256": seal(description)})
    config = DataConfig(source="records", path=str(tmp_path / "letterbox"))
    assert open_source(config)[0].fit == "letterbox"
    assert "was written to be read with fit letterbox; fit crop is ignored" in caplog.text
    with pytest.raises(UserError, match="unknown fit 'stretch'"):
        open_source(dataclasses.replace(config, path=str(tmp_path / "stretch")))


def test_sources_are_imported_when_they_are_used():
    """Neither PyAV nor TensorFlow Datasets come with the registry or the loader."""
    code = (
        "import sys, tokvid.input_pipeline.loader, tokvid.input_pipeline.sources as registry\n"
        "early = {'av', 'tensorflow_datasets', *registry.SOURCES.values()} & set(sys.modules)\n"
        "assert not early, early"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_source_or_split():
    with pytest.raises(UserError, match=r"unknown split 'heldout' \(did you mean 'held_out'"):
        open_source(SHAPES, "heldout")
    unknown = dataclasses.replace(SHAPES, source="shape")
    for read in (open_source, holds_out):
        with pytest.raises(UserError, match=r"unknown data source 'shape' .did you mean 'shapes'"):
            read(unknown)


@pytest.mark.parametrize(
    ("most", "sample", "results", "stops"),
    [
        (0.1, 10, "x.........", None),
        (0.1, 10, "xx........", 2),  # of all videos, so two are too many however few were read
        (0.0, 10, ".........x", 10),
        (1.0, 3, "xxx", 3),  # none can be used
        (1.0, 3, "xx.", None),
        (0.1, 50, "x" * 5 + "." * 45, None),  # at the beginning of an endless stream a few say nothing yet
        (0.1, 50, "x" * 6, 6),
        (0.1, 50, "." * 90 + "x" * 10, None),
        (0.1, 50, "." * 90 + "x" * 11, 101),
    ],
)
def test_the_rule_for_unreadable_videos(most, sample, results, stops):
    unreadable = Unreadable(most, sample, "here", "look again")
    for number, result in enumerate(results, 1):
        if result == ".":
            unreadable.good()
        elif number == stops:
            with pytest.raises(UserError) as caught:
                unreadable.add(f"number {number}")
            count, first = results[:number].count("x"), f"the first: number {results.index('x') + 1}; look again"
            share = f"{100 * most:g}%" + f" of {sample}" * (number < sample)
            problem = f"{count} of the {number} videos in here cannot be used, at most {share} may (max_unreadable)"
            none = f"none of the {number} videos in here can be used"
            assert str(caught.value) == f"{none if most == 1 else problem}; {first}"
            return
        else:
            unreadable.add(f"number {number}")
    assert stops is None and unreadable.read == len(results) and unreadable.count == results.count("x")
