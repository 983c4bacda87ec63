"""Other people's data: what each format's own library wrote is imported; what is wrong is said with its row or line."""

import contextlib
import functools
import http.server
import json
import os
import signal
import sys
import threading
import time

import numpy as np
import PIL.Image
import pytest

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.input_pipeline import sources
from tokvid.input_pipeline.records import RecordSource
from tokvid.io import download
from tokvid.io.media import write_video
from tokvid.io.urls import cache

COLOURS = ("red", "green", "blue", "grey")


def frames(number, count=12):
    """A video of one colour, brighter by 4 each frame: uint8 (T, 16, 16, 3)."""
    video_THWC = np.zeros((count, 16, 16, 3), np.uint8)
    video_THWC[..., number % 3] = 100 + 4 * np.arange(count)[:, None, None]
    return video_THWC


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four encoded videos at 8 fps, and their captions."""
    folder = tmp_path_factory.mktemp("videos")
    for number, colour in enumerate(COLOURS):
        write_video(folder / f"{colour}.mp4", frames(number), 8)
    return {f"all turns {colour}": (folder / f"{colour}.mp4").read_bytes() for colour in COLOURS}


@pytest.fixture(scope="module")
def server(tmp_path_factory, videos):
    """A server on loopback with the videos, /0.mp4 to /3.mp4, and things that are wrong; counts the requests."""
    contents = {f"/{number}.mp4": content for number, content in enumerate(videos.values())} | {"/page": b"<html>"}
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "file:///etc/hostname")
                self.end_headers()
                return
            content = contents.get(self.path.replace("/cut", "/0.mp4"))
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write((content or b"")[: 100 if self.path == "/cut" else None])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked, server.address = asked, f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)


def parquet(path, videos, **options):
    """By pyarrow, a row group of two rows."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(videos))), "text": list(videos), "clip": list(videos.values())} | options)
    pq.write_table(table, path, row_group_size=2)


def saved(path, videos):
    """By `datasets`, with pictures in the place of videos, as its own type has them."""
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
    pictures = [PIL.Image.fromarray(frames(number)[0]) for number in range(len(videos))]
    columns = {"image": pictures, "caption": list(videos)}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    split = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": split, "test": split.select([0])}).save_to_disk(path)


def hub(path, videos):
    """By `datasets`, the .parquet files of a repository."""
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
    rows = [{"video": {"bytes": content, "path": None}, "caption": caption} for caption, content in videos.items()]
    (path / "data").mkdir(parents=True)
    for split, part in (("train", rows), ("test", rows[:1])):
        datasets.Dataset.from_list(part).to_parquet(path / "data" / f"{split}-00000-of-00001.parquet")


def hdf5(path, videos):
    """By h5py, as VideoGPT reads it, with captions; videos are of different lengths."""
    h5py = pytest.importorskip("h5py")
    parts = [frames(number, 8 + number) for number in range(len(videos))]
    with h5py.File(path, "w") as file:
        for split, captions in (("train", list(videos)), ("test", list(videos)[:1])):
            part = parts[: len(captions)]
            file.create_dataset(f"{split}_data", data=np.concatenate(part), chunks=(4, 16, 16, 3), compression="gzip")
            file[f"{split}_idx"] = np.cumsum([0, *map(len, part[:-1])])
            file[f"{split}_captions"] = captions


def npz(path, videos):
    """By NumPy, as TECO has it: a file a video, with actions beside; one of them of several videos."""
    (path / "train" / "0").mkdir(parents=True)
    (path / "test" / "0").mkdir(parents=True)
    captions = list(videos)
    np.savez(path / "test" / "0" / "0.npz", video=frames(3), actions=np.zeros(12), caption="held out")
    for number in range(2):
        place = path / "train" / "0" / f"{number}.npz"
        np.savez_compressed(place, video=frames(number), actions=np.zeros(12), caption=captions[number])
    several = np.stack([frames(number) for number in range(2, len(videos))])
    np.savez_compressed(path / "train" / "0" / "9.npz", video=several, captions=captions[2:], fps=8)


def urls(path, videos, address):
    lines = [f"{caption},{address}/{number}.mp4" for number, caption in enumerate(videos)]
    path.write_text("\n".join(["name,contentUrl", *lines]) + "\n")


@pytest.fixture
def written(tmp_path, videos, server):
    """`written(format)`: four videos in it; gives their path."""

    def write(name):
        makers = {
            "table.parquet": parquet,
            "saved": saved,
            "hub": hub,
            "videogpt.hdf5": hdf5,
            "teco": npz,
            "list.csv": functools.partial(urls, address=server.address),
        }
        makers[name](tmp_path / name, videos)
        return name

    return write


FORMATS = ["table.parquet", "saved", "hub", "videogpt.hdf5", "teco", "list.csv"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_dataset_of_others_is_imported(tokvid, written, videos, name, tmp_path):
    code, out, err = tokvid("data", "import", written(name), "--out", "d")
    assert (code, out) == (0, "d: 4 videos\n"), err
    records = RecordSource("d")
    assert [record.captions[0].text for record in records] == list(videos)
    assert len({record.key for record in records}) == 4
    for number, record in enumerate(records):
        first_HWC = record.read(0.0, 8.0, 1, (16, 16))[0]
        assert np.abs(first_HWC.astype(int) - frames(number)[0]).mean() < 8, name
    assert records.kind == ("frames" if name in ("videogpt.hdf5", "teco") else "video")
    if name in ("table.parquet", "hub", "list.csv"):
        assert [record.video for record in records] == list(videos.values())
    if records.kind == "frames":
        np.testing.assert_array_equal(records[3].frames, frames(3, 11 if name == "videogpt.hdf5" else 12))
    if name in ("saved", "hub", "videogpt.hdf5", "teco"):
        assert tokvid("data", "import", name, "--split", "test", "--out", "e", "--size", 8, 8, "--fps", 4)[0] == 0
        assert len(RecordSource("e")) == 1 and RecordSource("e")[0].frames.shape[1:] == (8, 8, 3)
        assert "did you mean 'test'?" in tokvid("data", "import", name, "--split", "tests", "--out", "f")[2]


RECIPE = """
from tokvid.config import *

layers = ("space", "time")
recipe = Recipe(
    data=DataConfig(source="records", path="d", size=(16, 16), frames=5, fps=(8.0,), threads=1),
    tokenizer=TokenizerConfig(
        size=(16, 16), width=16, heads=2, mlp=16, encoder=layers, decoder=layers, quantizer="fsq", levels=(4, 4)
    ),
    transformer=TransformerConfig(
        text_length=16, text_vocabulary=320, latent_frames=3, width=32, layers=1, heads=2, kv_heads=2, mlp=32
    ),
    layouts=LayoutConfig(lengths={LENGTHS}),
    train_tokenizer=TrainConfig(steps=20, batch=2, log_every=10, sample_every=0),
    train_transformer=TrainConfig(steps=20, batch=2, log_every=10, sample_every=0),
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_an_imported_dataset_is_trained_on(tokvid, written, name, tmp_path):
    """Twenty steps of both models."""
    lengths = "(1,)" if name == "saved" else "(3,)"  # pictures
    (tmp_path / "recipe.py").write_text(RECIPE.replace("{LENGTHS}", lengths))
    change = ("--data.frames", 1) if name == "saved" else ()
    for words in (
        ("data", "import", written(name), "--out", "d"),
        ("train", "tokenizer", "recipe.py", "--workdir", "run", *change),
        ("tokenize", "recipe.py", "--workdir", "run", *change),
        ("train", "transformer", "recipe.py", "--workdir", "run", *change),
    ):
        code, _, err = tokvid(*words)
        assert code == 0, err
    for model in ("tokenizer", "transformer"):
        last = json.loads((tmp_path / "run" / model / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 20 and np.isfinite(last["loss"])


def test_a_recipe_reads_them_where_they_are(written, videos, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("table.parquet", "teco"):
        config = DataConfig(source=sources.source_for(tmp_path / written(name)), path=name)
        source = sources.open_source(config)
        order = [3, 0, 2, 2, 1, 3, 1]  # in any order
        assert [source[index].captions[0].text for index in order] == [list(videos)[index] for index in order]


# What is wrong, with its row, key or line


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"text": ["a", None, "b", "c"]}, (), "t.parquet, row 1 has no caption"),
        ({"text": [1, 2, 3, 4]}, (), "t.parquet has a field 'text' that holds no texts, one for each video; name"),
        ({"text": [["a", "b"]] * 4}, (), "t.parquet has a field 'text' that holds no texts, one for each video; name"),
        ({"text": [1, 2, 3, 4]}, ("--text", "x", "--caption", "id"), "the field 'id' has another type; choose one"),
        ({}, ("--caption", "texte"), "unknown field 'texte' (did you mean 'text'?)"),
        ({}, ("--video", "text"), "the field 'text' has another type; choose one of these: clip"),
        ({"clip": [None, b"", b"", b""]}, (), "t.parquet, row 0 has no video"),
        ({"clip": [b"x", b"", b"", b""]}, (), "t.parquet, row 0"),
        ({"clip": [1, 2, 3, 4]}, (), "has no field of videos: id, text, clip"),
        ({"clip": [1, 2, 3, 4], "a": [b"a"] * 4, "b": [b"b"] * 4}, (), "2 fields that may hold videos, choose one"),
        (
            {"clip": [{"bytes": None, "path": "/etc/passwd"}, *[{"bytes": b"x", "path": ""}] * 3]},
            (),
            "row 0 only names a file, '/etc/passwd'",
        ),
        ({}, ("--rate", 3), "--rate is for frames"),
        ({}, ("--from", "parket"), "unknown kind of file 'parket' (did you mean 'parquet'?)"),
        ({}, ("--from", "hdf5"), "t.parquet"),
        ({}, ("--max-unreadable", 2), "max-unreadable should be a share"),
    ],
)
def test_tables_that_cannot_be_imported(refused, videos, tmp_path, columns, options, said):
    if "hdf5" in options:
        pytest.importorskip("h5py")
    parquet(tmp_path / "t.parquet", videos, **columns)
    assert said in refused("data", "import", "t.parquet", "--out", "d", *options)


def test_damaged_tables(tokvid, refused, videos, tmp_path):
    parquet(tmp_path / "t.parquet", videos)
    content = (tmp_path / "t.parquet").read_bytes()
    for damaged in (b"", content[:200], content[:-1], b"PAR1" + content[60:]):
        (tmp_path / "t.parquet").write_bytes(damaged)
        assert "t.parquet" in refused("data", "import", "t.parquet", "--out", "d")
    parquet(tmp_path / "t.parquet", videos, clip=[b"no video", *list(videos.values())[:3]])
    said = "1 of the 1 videos read cannot be used, at most 10% of 4 may"
    assert said in refused("data", "import", "t.parquet", "--out", "d")
    parquet(tmp_path / "t.parquet", videos, clip=[*list(videos.values())[:3], b"no video"])
    assert "1 of the 4 videos read cannot be used, at most 10%" in refused("data", "import", "t.parquet", "--out", "d")
    code, out, err = tokvid("data", "import", "t.parquet", "--out", "d", "--max-unreadable", 0.3)
    assert (code, out) == (0, "d: 3 videos\n") and "skipped: " in err and "t.parquet, row 3" in err


def test_saved_datasets_read_nothing_outside(refused, tmp_path):
    pa = pytest.importorskip("pyarrow")
    (tmp_path / "s").mkdir()
    table = pa.table({"image": [b"x"], "caption": ["a"]})
    with pa.OSFile(str(tmp_path / "s" / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    for listed, said in (("../a.arrow", "no file beside it"), ("b.arrow", "b.arrow is missing"), (3, "no file beside")):
        (tmp_path / "s" / "state.json").write_text(json.dumps({"_data_files": [{"filename": listed}]}))
        assert said in refused("data", "import", "s", "--from", "parquet", "--out", "d")
    content = bytearray((tmp_path / "s" / "a.arrow").read_bytes())
    for place in range(0, len(content), 37):  # flipped anywhere: no crash
        flipped = bytes([*content[:place], content[place] ^ 255, *content[place + 1 :]])
        (tmp_path / "a.arrow").write_bytes(flipped)
        assert "a.arrow" in refused("data", "import", "a.arrow", "--out", "d")


def change_hdf5(path, change):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "a") as file:
        change(h5py, file)


def replaced(name, value):
    def change(h5py, file):
        del file[name]
        file[name] = value

    return change


def elsewhere(h5py, file):
    del file["train_data"]
    external = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("train_data", (38, 16, 16, 3), np.uint8, external=external)


def linked(h5py, file):
    del file["train_data"]
    file["train_data"] = h5py.ExternalLink("/etc/passwd", "/x")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (replaced("train_idx", [0, 8, 8, 20]), (), "train_idx[1]: video 1 would be the frames 8 up to 8 of 38"),
        (replaced("train_idx", [0, 8, 17, 99]), (), "train_idx[3]: video 3 would be the frames 99 up to 38 of 38"),
        (replaced("train_idx", [-1, 8, 17, 27]), (), "train_idx[0]"),
        (replaced("train_idx", [0.5]), (), "these should be frames, rows, columns"),
        (replaced("train_data", np.zeros((38, 16, 16), np.uint16)), (), "numbers of type uint16"),  # TECO's codes
        (replaced("train_data", np.zeros((38, 3, 16, 16), np.uint8)), (), "has the shape (1, 3, 16, 16)"),
        (replaced("train_captions", ["a"]), (), "has the shape (1,); it should have 4 captions"),
        (lambda _, file: file.pop("train_captions"), (), "has no captions"),
        (elsewhere, (), "train_data takes its values from other files"),
        (linked, (), "unknown split 'train'"),
        (lambda *_: None, ("--video", "train_dat"), "unknown field 'train_dat' (did you mean 'train_data'?)"),
        (lambda *_: None, ("--rate", 0), "rate should be above 0"),
        (lambda *_: None, ("--split", "x"), "unknown split 'x'; allowed: test, train"),
    ],
)
def test_hdf5_that_cannot_be_imported(refused, videos, tmp_path, change, options, said):
    hdf5(tmp_path / "v.hdf5", videos)
    change_hdf5(tmp_path / "v.hdf5", change)
    assert said in refused("data", "import", "v.hdf5", "--out", "d", *options)


def test_damaged_hdf5(refused, videos, tmp_path):
    hdf5(tmp_path / "v.hdf5", videos)
    content = (tmp_path / "v.hdf5").read_bytes()
    for damaged in (b"", content[:300], content[: len(content) // 2]):
        (tmp_path / "v.hdf5").write_bytes(damaged)
        assert "v.hdf5" in refused("data", "import", "v.hdf5", "--out", "d")


def test_hdf5_of_one_array(tokvid, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["obs/camera"] = np.stack([frames(0), frames(1)])
    assert tokvid("data", "import", "v.h5", "--out", "d", "--text", "x", "--rate", 4)[0] == 0
    (first, second) = RecordSource("d")
    assert (first.fps, first.seconds, second.captions[0].text) == (4.0, 3.0, "x")
    np.testing.assert_array_equal(second.frames, frames(1))


class Hostile:
    """Would run when unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"video": np.zeros((3, 8, 8, 3), np.float32), "caption": "a"}, "a.npz, video has numbers of type float32"),
        ({"video": np.zeros((3, 8, 8, 4), np.uint8), "caption": "a"}, "1 or 3 channels"),
        ({"video": np.zeros((0, 8, 8, 3), np.uint8), "caption": "a"}, "has the shape (0, 8, 8, 3)"),
        ({"video": np.zeros((0, 3, 8, 8, 3), np.uint8), "caption": np.zeros(0, "U1")}, "holds no videos"),
        ({"video": np.zeros((3, 8, 8, 3), np.uint8)}, "a.npz has no captions"),
        ({"video": np.zeros((2, 3, 8, 8, 3), np.uint8), "caption": ["a"]}, "caption has 1 captions; it should have 2"),
        ({"actions": np.zeros(3)}, "no field of videos: actions"),
        ({"video": np.asfortranarray(np.zeros((3, 8, 8, 3), np.uint8)), "caption": "a"}, "stored column by column"),
        ({"video": np.array([Hostile()] * 2), "caption": "a"}, "no field of videos"),
        ({"video": np.zeros((3, 8, 8, 3), np.uint8), "caption": "a", "fps": -1}, "has the fps -1.0"),
    ],
)
def test_npz_that_cannot_be_imported(refused, tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    assert said in refused("data", "import", "a.npz", "--out", "d")


def test_npz_may_tell_its_rate(tokvid, tmp_path):
    """It comes before the one that is asked for."""
    np.savez(tmp_path / "a.npz", video=frames(0), caption="a", fps=6)
    assert tokvid("data", "import", "a.npz", "--out", "d", "--rate", 4)[0] == 0
    (video,) = RecordSource("d")
    assert video.fps == 6 and video.seconds == len(frames(0)) / 6


def test_damaged_npz(refused, tokvid, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", video=np.stack([frames(n) for n in range(3)]), caption=["a", "b", "c"])
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (b"", content[:300], content[-100:]):
        (tmp_path / "a.npz").write_bytes(damaged)
        assert "a.npz" in refused("data", "import", "a.npz", "--out", "d")
    flipped = bytearray(content)
    flipped[200:220] = bytes(20)
    (tmp_path / "a.npz").write_bytes(flipped)
    assert "a.npz cannot be read (Bad CRC-32" in refused("data", "import", "a.npz", "--out", "d")


def test_npz_with_a_file_of_captions(tokvid, refused, tmp_path):
    (tmp_path / "c").mkdir()
    for number in range(2):
        np.savez(tmp_path / "c" / f"{number}.npz", frames(number))
    (tmp_path / "c" / "captions.jsonl").write_text('{"file": "0.npz", "caption": "red"}\n')
    assert "c/1.npz, video 0 has no caption" in refused("data", "import", "c", "--out", "d")
    with (tmp_path / "c" / "captions.jsonl").open("a") as file:
        file.write('{"file": "1.npz", "caption": "green"}\n')
    assert tokvid("data", "import", "c", "--out", "d")[:2] == (0, "d: 2 videos\n")
    assert [record.captions[0].text for record in RecordSource("d")] == ["red", "green"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("file:///etc/passwd,a", "list.csv has 1 bad line: line 2: 'file:///etc/passwd' is no address on the web"),
        ("ftp://example.org/a.mp4,a", "line 2: 'ftp://example.org/a.mp4' is no address on the web"),
        (",a", "line 2: '' is no address on the web"),
        ("{address}/none.mp4,a", "list.csv, line 2: cannot fetch 'http://127.0.0.1:"),
        ("{address}/none.mp4,a", "404"),
        ("{address}/moved,a", "Redirection to url 'file:///etc/hostname' is not allowed"),
        ("{address}/cut,a", "bytes were announced, 100 arrived"),
        ("{address}/page,a", "list.csv, line 2, 'http://127.0.0.1:"),
        ("http://127.0.0.1:1/a.mp4,a", "list.csv, line 2: cannot fetch 'http://127.0.0.1:1/a.mp4': "),
        ('{address}/0.mp4,"a', "line 2: a quote"),
    ],
)
def test_lists_that_cannot_be_imported(tokvid, server, tmp_path, line, said):
    (tmp_path / "list.csv").write_text(f"url,caption\n{line.replace('{address}', server.address)}\n")
    code, out, err = tokvid("data", "import", "list.csv", "--out", "d")
    assert (code, out) == (2, "") and said in err.splitlines()[-1]
    assert err.removeprefix("fetching: 1/1\n").count("\n") == 1 and os.listdir() == ["list.csv"]


def test_lists_of_other_columns(refused, tmp_path):
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    assert "should name the columns: url,caption" in refused("data", "import", "list.csv", "--out", "d")
    (tmp_path / "list.jsonl").write_text('["a"]\n{"url": "https://a/b"}\n{\n')
    line = refused("data", "import", "list.jsonl", "--out", "d")
    assert "3 bad lines: line 1: needs an object" in line and "line 2: this video has no caption" in line


def test_files_that_are_too_large_are_not_fetched(tokvid, server, monkeypatch, tmp_path):
    from tokvid.input_pipeline import urls as lists

    monkeypatch.setattr(lists, "MOST_BYTES", 100)
    (tmp_path / "list.csv").write_text(f"url,caption\n{server.address}/0.mp4,a\n")
    assert "has more than the 100 bytes that are allowed" in tokvid("data", "import", "list.csv", "--out", "d")[2]


@pytest.fixture
def serve():
    """`serve(answer)`: the address of a server whose answer to a request is what `answer(handler)` writes."""
    servers = []

    def start(answer):
        methods = {"do_GET": answer, "log_message": lambda *_: None}
        handler = type("Handler", (http.server.BaseHTTPRequestHandler,), methods)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[0].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[0].server_address[1]}"

    yield start
    servers[0].shutdown()


def begin_answer(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"begin")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_waits_for_no_server(tokvid, serve, tmp_path, number, code):
    answered, ended = threading.Event(), []

    def answer(handler):
        begin_answer(handler)
        signal.pthread_kill(threading.main_thread().ident, number)
        ended.append(answered.wait(20))  # less than the silence that is borne

    (tmp_path / "list.csv").write_text(f"url,caption\n{serve(answer)}/0.mp4,a\n")
    before = set(threading.enumerate())
    assert tokvid("data", "import", "list.csv", "--out", "d")[:2] == (code, "")
    assert not ended
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)  # else Python waits for them at its end
    assert os.listdir() == ["list.csv"] and not any(path.is_file() for path in cache().rglob("*"))
    answered.set()


def test_a_server_that_sends_ever_less_is_given_up(serve, monkeypatch):
    sent = []

    def answer(handler):
        begin_answer(handler)
        with contextlib.suppress(OSError):  # of a client that has left
            for _ in range(100):
                time.sleep(0.05)
                sent.append(handler.wfile.write(b"?"))

    monkeypatch.setattr(download, "LONGEST", 0.2)
    with pytest.raises(UserError, match=r"cannot fetch .*/0\.mp4': it takes more than 0 s"):
        download.download(f"{serve(answer)}/0.mp4", 10**6)
    assert len(sent) < 80


def test_fetched_files_are_not_fetched_again(tokvid, server, videos, tmp_path):
    urls(tmp_path / "list.csv", videos, server.address)
    server.asked.clear()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("precious")
    assert tokvid("data", "import", "list.csv", "--out", "d")[0] == 2 and not server.asked
    for out in ("e", "f"):
        assert tokvid("data", "import", "list.csv", "--out", out)[0] == 0
        assert sorted(server.asked) == [f"/{number}.mp4" for number in range(4)]


def _needs_a_package(config):
    raise UserError("tables need pyarrow; do: pip install 'tokvid[import]'")


def test_what_is_imported_is_found_by_the_names_of_files(refused, tmp_path, monkeypatch):
    assert "of no kind that can be imported" in refused("data", "import", "nowhere", "--out", "d")
    assert "nowhere.parquet is not there" in refused("data", "import", "nowhere.parquet", "--out", "d")
    (tmp_path / "there.parquet").touch()
    with monkeypatch.context() as patch:
        patch.setattr("tokvid.input_pipeline.sources.source_of", _needs_a_package)
        assert "nowhere.parquet is not there" in refused("data", "import", "nowhere.parquet", "--out", "d")
        assert "pip install" in refused("data", "import", "there.parquet", "--out", "d")
    (tmp_path / "mixed").mkdir()
    for name in ("a.npz", "b.parquet", "captions.csv"):
        (tmp_path / "mixed" / name).touch()
    assert "choose one with --from: npz, parquet" in refused("data", "import", "mixed", "--out", "d")
    assert "--split is not for webdataset" in refused("data", "import", "a.tar", "--split", "x", "--out", "d")


@pytest.mark.parametrize("name, package", [("table.parquet", "pyarrow"), ("v.hdf5", "h5py")])
def test_a_missing_package_is_named(refused, monkeypatch, tmp_path, name, package):
    from tokvid import input_pipeline

    module = {"pyarrow": "parquet", "h5py": "hdf5"}[package]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"tokvid.input_pipeline.{module}", raising=False)
    monkeypatch.delattr(input_pipeline, module, raising=False)
    (tmp_path / name).touch()
    line = refused("data", "import", name, "--out", "d")
    assert f"need{'s' * (package == 'h5py')} {package}, which isn't installed; do: pip install 'tokvid[import]'" in line
