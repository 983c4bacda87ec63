"""Nothing counts as written that can't be read: a disk that loses bytes without an error is noticed at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module

from tokvid import weights
from tokvid.errors import UserError
from tokvid.input_pipeline.records import RecordSource, RecordWriter, join_records
from tokvid.input_pipeline.stored import StoredVideo
from tokvid.input_pipeline.text import train_text_model
from tokvid.portable import bring_in, export


def save_weights(source, place):
    loaded = weights.load(source / "tokenizer", "tokenizer")
    weights.save(place, "tokenizer", loaded.config, loaded.params)


WRITERS = {
    "weights": save_weights,
    "exported": lambda source, place: export(source / "tokenizer", place / "model.safetensors"),
    "brought in": lambda source, place: bring_in(source / "model.safetensors", place),
    "text model": lambda source, place: train_text_model(["a red circle"] * 9, place / "text.model"),
}


@pytest.mark.parametrize("lost", [1, 1000])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_lost_its_end_is_not_kept(tiny_weights, tmp_path, monkeypatch, writer, lost):
    source, place = tmp_path / "source", tmp_path / "place"
    shutil.copytree(tiny_weights, source)
    export(source / "tokenizer", source / "model.safetensors")
    WRITERS[writer](source, place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: write(self, data[:-lost]))
    with pytest.raises(UserError):
        WRITERS[writer](source, place)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


class Loses:
    """An ArrayRecordWriter that drops the last record."""

    def __init__(self, *arguments):
        self._file, self._waiting = array_record_module.ArrayRecordWriter(*arguments), None

    def write(self, data):
        if self._waiting is not None:
            self._file.write(self._waiting)
        self._waiting = data

    def close(self):
        self._file.close()


def write_records(path, frames=3):
    with RecordWriter(path, "frames", per_file=2) as writer:
        for _ in range(frames):
            writer.write(StoredVideo("a", 1.0, (), frames=np.zeros((2, 4, 4, 3), np.uint8), fps=2.0))


def test_records_that_are_lost_are_noticed(tmp_path, monkeypatch):
    write_records(tmp_path / "data")

    class Module:
        ArrayRecordWriter, ArrayRecordReader = Loses, array_record_module.ArrayRecordReader

    monkeypatch.setattr("tokvid.input_pipeline.records.array_record_module", Module)
    with pytest.raises(UserError, match=r"cannot write .*data: the records cannot be read back: .*damaged"):
        write_records(tmp_path / "data", frames=5)
    assert len(RecordSource(tmp_path / "data")) == 3


def test_records_whose_bytes_are_lost_are_noticed_where_they_are_joined(tmp_path, monkeypatch):
    write_records(tmp_path / "part")
    copy = shutil.copyfile

    def loses(source, to):
        copy(source, to)
        content = bytearray(Path(to).read_bytes())
        content[len(content) // 2] ^= 255
        Path(to).write_bytes(content)

    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    monkeypatch.setattr(shutil, "copyfile", loses)
    with pytest.raises(UserError, match=r"cannot write .*whole: the records cannot be read back"):
        join_records([tmp_path / "part"], tmp_path / "whole", {})
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_datasets_in_folders_of_any_name(tmp_path):
    for name in ("run[1]", "a*b?", "gs:", "back\\slash", "a\udcff"):
        write_records(tmp_path / name)
        assert len(RecordSource(tmp_path / name)) == 3
