"""Records: what is written comes back, whole or not at all; what is damaged or foreign is refused in one
line.
"""

import dataclasses
import json
import threading

import msgpack
import numpy as np
import pytest
from array_record.python import array_record_module

from tokvid.errors import UserError
from tokvid.input_pipeline.records import RecordSource, RecordWriter, join_records
from tokvid.input_pipeline.stored import StoredVideo, from_values, show, stored
from tokvid.io.files import seal
from tokvid.shapes.drawing import ShapesDataset
from tokvid.types import Caption

CAPTIONS = (Caption(0.0, "a red circle 🎈"), Caption(1.5, "then it goes up"))


def frames_video(key="a", frames=8, channels=3):
    frames_THWC = np.random.default_rng(0).integers(0, 256, (frames, 16, 12, channels), np.uint8)
    return StoredVideo(key, frames / 4, CAPTIONS, frames=frames_THWC, fps=4.0)


def tokens_video(key="t", dtype=np.uint16, frames=5):
    tokens_THWQ = np.random.default_rng(1).integers(0, 1000, (frames, 4, 6, 2)).astype(dtype)
    return StoredVideo(key, 3.0, CAPTIONS, tokens=tokens_THWQ, fps=4.0)


def write(path, videos, kind=None, **options):
    with RecordWriter(path, kind or videos[0].kind, **options) as writer:
        for video in videos:
            writer.write(video)
    return RecordSource(path)


def assert_same(one, other):
    for field in dataclasses.fields(StoredVideo):
        if field.name != "conditions":
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    assert one.conditions.keys() == other.conditions.keys()
    for name, tokens in one.conditions.items():
        np.testing.assert_array_equal(tokens, other.conditions[name])


@pytest.mark.parametrize(
    "videos",
    [
        [frames_video("a"), frames_video("b", 1, 1)],
        [tokens_video("a", np.uint16), tokens_video("b", np.int32)],
        [dataclasses.replace(tokens_video("a"), conditions={"coarse": tokens_video("a").tokens[:3]})],
        [StoredVideo("v", 2.0, CAPTIONS, video=b"\x00bytes")],
    ],
)
def test_what_is_written_comes_back(tmp_path, videos):
    source = write(tmp_path / "set", videos, metadata={"tokenizer": "abc", "n": [1, 2]})
    assert len(source) == len(videos) and source.kind == videos[0].kind
    assert source.metadata == {"tokenizer": "abc", "n": [1, 2]}
    for i, video in enumerate(videos):
        assert_same(source[i], video)
    with pytest.raises(IndexError):
        source[len(videos)]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_many_files_read_by_many_threads(tmp_path):
    videos = [tokens_video(str(i)) for i in range(25)]
    source = write(tmp_path / "set", videos, per_file=10)
    assert len(list((tmp_path / "set").glob("*.array_record"))) == 3
    wrong = []

    def read():
        for i in np.random.default_rng(0).integers(0, 25, 100):
            if source[i].key != str(i):
                wrong.append(i)

    threads = [threading.Thread(target=read) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_nothing_is_left_of_a_failed_write(tmp_path):
    write(tmp_path / "set", [tokens_video("old")])
    with pytest.raises(KeyError), RecordWriter(tmp_path / "set", "tokens") as writer:
        writer.write(tokens_video("new"))
        raise KeyError
    assert RecordSource(tmp_path / "set")[0].key == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds no records"), RecordWriter(tmp_path, "tokens"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_what_was_added_to_records_is_not_replaced(tmp_path):
    with RecordWriter(tmp_path / "set", "frames"):
        pass
    (tmp_path / "set" / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds notes\.txt, too"), RecordWriter(tmp_path / "set", "frames"):
        pass
    assert (tmp_path / "set" / "notes.txt").read_text() == "precious"


def test_an_empty_dataset_is_one(tmp_path):
    with RecordWriter(tmp_path / "set", "frames"):
        pass
    assert len(RecordSource(tmp_path / "set")) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": float("nan")},
        {"seconds": -1.0},
        {"fps": 0.0},
        {"fps": float("inf")},
        {"tokens": np.zeros((2, 3), np.int32)},
        {"tokens": np.zeros((2, 3, 3, 1), np.int64)},
        {"tokens": np.zeros((0, 3, 3, 1), np.int32)},
        {"captions": (Caption(1.0, "late"), Caption(0.0, "early"))},
        {"tokens": None},
        {"video": b"both"},
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, change):
    with pytest.raises(UserError), RecordWriter(tmp_path / "set", "tokens") as writer:
        writer.write(dataclasses.replace(tokens_video(), **change))
    assert not list(tmp_path.iterdir())


def test_kind_by_name(tmp_path):
    with pytest.raises(UserError, match="did you mean 'tokens'"):
        RecordWriter(tmp_path / "set", "token")


def test_datasets_are_joined_in_their_order(tmp_path):
    def tokens(number):
        return StoredVideo(
            str(number), 1.0, (Caption(0.0, "a"),), tokens=np.full((1, 2, 2, 1), number, np.uint16), fps=2.0
        )

    parts, whole = [tmp_path / name for name in ("c", "a", "b")], tmp_path / "whole"
    for part, numbers in zip(parts, ([1, 2, 3], [], [4, 5]), strict=True):
        with RecordWriter(part, "tokens", {"of": "a part"}, per_file=2) as writer:
            for number in numbers:
                writer.write(tokens(number))
    join_records(parts, whole, {"of": "all"})
    joined = RecordSource(whole)
    assert [joined[index].key for index in range(len(joined))] == list("12345")
    assert joined.counts == [2, 1, 2] and joined.metadata == {"of": "all"}
    assert len(RecordSource(parts[0])) == 3, "they stay as they are"
    with RecordWriter(tmp_path / "frames", "frames", {}) as writer:
        writer.write(frames_video())
    with pytest.raises(UserError, match="holds records of kind 'frames', not 'tokens'"):
        join_records([*parts, tmp_path / "frames"], whole, {})
    (parts[0] / "00001.array_record").unlink()
    with pytest.raises(UserError, match=r"00001\.array_record is missing"):
        join_records(parts, whole, {})
    assert len(RecordSource(whole)) == 5


def test_foreign_and_damaged_datasets(tmp_path):
    path = tmp_path / "set"
    with pytest.raises(UserError, match=r"no dataset.json"):
        RecordSource(path)
    write(path, [tokens_video(str(i)) for i in range(20)], metadata={"fps": 8.0})
    described, data = path / "dataset.json", path / "00000.array_record"
    good_json, good_data = described.read_text(), data.read_bytes()

    for changed, said in [
        ({"format": "other"}, "no dataset of records"),
        ({"version": 2}, "version 2 .* reads 1"),
        ({"kind": "audio"}, "damaged"),
        ({"counts": [-20]}, "damaged"),
        ({"counts": [21], "count": 21}, "should hold 21 records, 20 can be read"),
        ({"counts": [20, 5], "count": 25}, "00001.array_record is missing"),
        ({"metadata": None}, "damaged"),
    ]:
        description = json.loads(good_json) | changed
        described.write_text(json.dumps(description | {"sha256": seal(description)}))
        with pytest.raises(UserError, match=said):
            RecordSource(path)
    for old, new in [("8.0", "9.0"), ('"count"', '"cuont"'), ('"sha256": "', '"sha256": "0')]:
        described.write_text(good_json.replace(old, new))
        with pytest.raises(UserError, match=r"dataset\.json is damaged"):
            RecordSource(path)
    described.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        RecordSource(path)
    described.write_text(good_json)

    for damaged in (b"", b"text " * 1000, good_data[: len(good_data) // 2]):
        data.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged"):
            RecordSource(path)
    flipped = bytearray(good_data)
    flipped[64 * 4] ^= 8  # in the first record
    data.write_bytes(flipped)
    source = RecordSource(path)
    with pytest.raises(UserError, match=r"record 0 .*damaged"):
        source[0]
    assert source[19].key == "19"


@pytest.mark.parametrize(
    "record",
    [
        b"\xc1",
        b"no msgpack",
        msgpack.packb([1, 2]),
        msgpack.packb({"key": "a"}),
        {"shape": [10**9, 10**9, 10**9]},
        {"shape": [5, 4, 7, 2]},
        {"shape": [5, 4, 6]},  # half of the tokens
        {"shape": [5, 4, 6, 2, 1]},
        {"shape": [5, 4, 6, 0], "tokens": b""},
        {"shape": "abc"},
        {"dtype": "object"},
        {"dtype": "O"},
        {"tokens": "text"},
        {"captions": [[0, "a", "b"]]},
        {"captions": [["0", "a"]]},
        {"captions": 3},
        {"key": 5},
        {"fps": True},
    ],
)
def test_foreign_records(tmp_path, record):
    """A well-formed file with records that no writer of ours wrote."""
    path = tmp_path / "set"
    write(path, [tokens_video()])
    video = tokens_video()
    good = {
        "key": "t",
        "seconds": 3.0,
        "captions": [[0.0, "a"]],
        "tokens": video.tokens.tobytes(),
        "shape": [5, 4, 6, 2],
        "dtype": "uint16",
        "fps": 4.0,
    }
    writer = array_record_module.ArrayRecordWriter(str(path / "00000.array_record"), "group_size:1")
    writer.write(record if isinstance(record, bytes) else msgpack.packb(good | record))
    writer.close()
    with pytest.raises(UserError, match=r"record 0 of"):
        RecordSource(path)[0]


def test_tokens_of_earlier_versions_are_of_one_code(tmp_path):
    """They had no axis of sub-codes."""
    values = {"key": "t", "seconds": 3.0, "captions": [[0.0, "a"]], "shape": [5, 4, 6], "dtype": "uint16", "fps": 4.0}
    tokens_THWQ = tokens_video().tokens[..., :1]
    values |= {"tokens": tokens_THWQ.tobytes(), "coarse": tokens_THWQ[:3].tobytes(), "coarse_factor": 2}
    made = from_values(values, "tokens", "crop", "record 0")
    np.testing.assert_array_equal(made.tokens, tokens_THWQ)
    np.testing.assert_array_equal(made.conditions["coarse"], tokens_THWQ[:3])


def test_frames_show_until_the_next():
    video = frames_video(frames=8)  # 4 fps
    shown_THWC = video.read(0.25, 8.0, 5, (16, 12))
    np.testing.assert_array_equal(shown_THWC, video.frames[[1, 1, 2, 2, 3]])
    np.testing.assert_array_equal(video.read(1.75, 4.0, 3, (16, 12)), video.frames[[7, 7, 7]])
    grey_THWC = show(video.frames[..., :1], 4.0, start=0, fps=2.0, frames=2, size=(16, 12), fit="crop")
    np.testing.assert_array_equal(grey_THWC, np.repeat(video.frames[[0, 2], :, :, :1], 3, axis=3))


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_frames_of_another_size(fit):
    frames_THWC = np.full((2, 16, 32, 3), 200, np.uint8)
    shown_THWC = StoredVideo("a", 1.0, CAPTIONS, frames=frames_THWC, fps=2.0, fit=fit).read(0, 2.0, 2, (8, 8))
    assert shown_THWC.shape == (2, 8, 8, 3) and shown_THWC.dtype == np.uint8
    assert shown_THWC[:, 4].min() == 200 and shown_THWC[:, 0].max() == (200 if fit == "crop" else 0)


def test_tokens_are_no_frames():
    with pytest.raises(UserError, match="tokens"):
        tokens_video().read(0, 4.0, 1, (16, 16))


def test_a_procedural_video_is_stored_as_frames(tmp_path):
    item = ShapesDataset(3, 0)[1]
    source = write(tmp_path / "set", [stored(item, fps=4, size=(32, 32))])
    assert source[0].captions == item.captions and source[0].seconds == item.seconds
    np.testing.assert_array_equal(source[0].read(0.5, 4, 3, (32, 32)), item.read(0.5, 4, 3, (32, 32)))


def test_texts_that_no_utf8_can_hold_are_refused(tmp_path):
    video = StoredVideo("a", 1.0, (Caption(0.0, "half \ud83d"),), video=b"x")
    with (
        pytest.raises(UserError, match="'a' cannot be written as a record"),
        RecordWriter(tmp_path / "d", "video") as d,
    ):
        d.write(video)
    assert not (tmp_path / "d").exists()
