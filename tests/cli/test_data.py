"""Datasets: data."""

import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest

from tokvid import input_pipeline
from tokvid.input_pipeline.records import RecordSource
from tokvid.io.media import write_video


def test_datasets_and_what_inspect_says_of_them(tokvid, tiny_weights, movie, tmp_path, dev_data):
    def said(path):
        code, out, err = tokvid("inspect", path)
        assert (code, err) == (0, "")
        return " ".join(out.split())

    assert tokvid("data", "shapes", "--videos", 3, "--size", 16, 16, "--fps", 4, "--out", "shapes")[:2] == (
        0,
        "shapes: 3 videos\n",
    )
    assert "tokenizer/ kind tokenizer" in said("robots")  # which is no folder here
    source = RecordSource("shapes")
    assert len(source) == 3 and source[0].frames.shape[1:] == (16, 16, 3) and source[0].fps == 4
    assert said("shapes").startswith("kind dataset of frames videos 3 source shapes size [16, 16] fps 4")
    (tmp_path / "clips").mkdir()
    shutil.copy("in.mp4", "clips/a.mp4")
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"no video")
    lines = [json.dumps({"file": name, "caption": "x"}) for name in ("a.mp4", "bad.mp4")]
    (tmp_path / "clips" / "captions.jsonl").write_text("\n".join(lines))
    code, out, err = tokvid("data", "folder", "clips", "--max-unreadable", 0.5)
    assert (code, out) == (0, "clips: 1 video can be used, 1 cannot\n")
    assert re.fullmatch("tokvid: warning: skipped: .*\n", err)
    assert tokvid("data", "folder", "clips", "--max-unreadable", 0.5, "--out", "bytes")[1] == "bytes: 1 video\n"
    assert tokvid("data", "folder", "clips", "--max-unreadable", 0.5, "--fit", "letterbox", "--out", "fitted")[0] == 0
    assert RecordSource("fitted")[0].fit == "letterbox" and RecordSource("bytes")[0].fit == "crop"
    assert RecordSource("bytes")[0].video == (tmp_path / "in.mp4").read_bytes()
    (tmp_path / "clips" / "others").mkdir()
    shutil.copy("in.mp4", "clips/others/b.mp4")
    shutil.copy("in.png", "clips/c.png")
    _, _, err = tokvid("data", "folder", "clips", "--max-unreadable", 0.5)
    assert err.splitlines()[1:] == [
        "tokvid: warning: 1 video left out, without a line in the captions file: others/b.mp4"
    ]
    shutil.rmtree("clips/others")
    (tmp_path / "clips" / "c.png").unlink()
    options = ("--max-unreadable", 0.5, "--size", 8, 8, "--fps", 5, "--out", "frames")
    assert tokvid("data", "folder", "clips", *options)[1] == "frames: 1 video, frames of 8x8 at 5 fps\n"
    assert RecordSource("frames")[0].frames.shape == (5, 8, 8, 3)

    (tmp_path / "s.txt").write_text("a red circle\n\nup\n")
    (tmp_path / "s.yaml").write_text("seed: 3\nsegments:\n- {prompt: a, seconds: 0.5}\n- {prompt: up, seconds: 0.5}\n")
    assert tokvid("export", tiny_weights / "tokenizer", "--out", "e.safetensors")[0] == 0
    assert "sha256" not in said(tiny_weights) and "code_width" not in said(tiny_weights)
    assert "code_width" in " ".join(tokvid("inspect", tiny_weights, "--all")[1].split())
    for path, words in {
        tiny_weights: ["tokenizer/", "kind tokenizer", "transformer/", "levels [5, 3, 2]", "parameters"],
        tiny_weights / "transformer": ["kind transformer", "latent_frames 4", "grid [2, 2]"],
        tiny_weights / "text.model": ["kind text model", "vocabulary 320"],
        "in.mp4": ["kind video file", "width 60", "frames 10"],
        tiny_weights / "transformer" / "weights.safetensors": ["kind transformer", "parameters"],
        "in.png": ["kind picture", "width 20", "height 30"],
        "bytes": ["kind dataset of video", "videos 1"],
        "clips": ["kind folder of videos and pictures", "files 2"],
        "s.yaml": ["kind story file", "frames 8", "seed 3", "from 0.5 s up"],
        "s.txt": ["kind script", "from 0 s a red circle"],
        "e.safetensors": ["kind exported tokenizer", "tensors", "levels [5, 3, 2]"],
    }.items():
        assert all(word in said(path) for word in words), said(path)


def test_a_dataset_for_tfds(tokvid, movie, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    code, out, _ = tokvid("data", "shapes", "--tfds", "--videos", 3, "--size", 16, 16, "--out", "shapes")
    assert code == 0 and "train 3, held_out 1" in out
    for path in ("shapes", "shapes/moving_shapes/1.0.0"):
        code, out, _ = tokvid("inspect", path)
        assert code == 0 and "videos in train          3" in out and "moving_shapes" in out
    shutil.copytree(tmp_path, tmp_path / "clips", ignore=lambda *_: ["shapes"])
    (tmp_path / "clips" / "captions.csv").write_text("file,caption\nin.mp4,noise\n")
    code, out, _ = tokvid("data", "folder", "clips", "--tfds", "--out", "prepared")
    assert code == 0 and "train 1" in out and "prepared before" not in out
    code, out, _ = tokvid("data", "folder", "clips", "--tfds", "--out", "prepared")
    assert code == 0 and "train 1 (prepared before; remove it to prepare it anew)" in out


def test_a_dataset_for_tfds_is_checked(tokvid, tmp_path):
    """What only decoding finds is said, as it is where records are written."""
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "clips").mkdir()
    noise_THWC = np.random.default_rng(0).integers(256, size=(40, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "clips" / "a.mp4", noise_THWC, 8)
    data = bytearray((tmp_path / "clips" / "a.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    (tmp_path / "clips" / "a.mp4").write_bytes(data)
    (tmp_path / "clips" / "captions.csv").write_text("file,caption\na.mp4,noise\n")
    for options in ((), ("--tfds",)):
        code, _, err = tokvid("data", "folder", "clips", "--check", "--out", f"d{len(options)}", *options)
        assert code == 0 and "a.mp4: damaged at " in err


def test_moving_mnist(tokvid, tmp_path, monkeypatch):
    from tokvid.input_pipeline import mnist

    monkeypatch.setitem(mnist.VIDEOS, "test", 2)
    images = np.zeros((10, 28, 28), np.uint8)
    images[:, 5:20, 8:20] = 255
    np.savez(tmp_path / "digits.npz", images=images, labels=np.arange(10))
    assert tokvid("data", "mnist", "digits.npz", "--split", "test", "--out", "d")[:2] == (0, "d: 2 videos\n")
    assert RecordSource("d")[1].frames.shape == (20, 64, 64, 3)


def test_an_interpreter_without_tfds_is_told_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "tokvid.input_pipeline.builders", raising=False)
    monkeypatch.delattr(input_pipeline, "builders", raising=False)
    assert "pip install 'tokvid[tfds]'" in refused("data", "shapes", "--tfds", "--out", "d")


def test_a_dataset_is_refused_where_it_could_not_be_put(refused, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == "disk")
    assert "something is mounted there; name a folder in it" in refused("data", "shapes", "--out", "disk")


def test_an_interrupted_dataset_leaves_nothing(tokvid, tmp_path, monkeypatch):
    from tokvid.shapes.drawing import ShapesDataset

    monkeypatch.setattr(ShapesDataset, "__getitem__", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert tokvid("data", "shapes", "--out", "d") == (143, "", "tokvid: interrupted\n")
    assert list(tmp_path.iterdir()) == []
