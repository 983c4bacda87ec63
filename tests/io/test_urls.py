"""What lies behind a URL is fetched once, whole, and again when it changes."""

import dataclasses
import importlib
import sys
import zipfile

import fsspec
import pytest

from tokvid.config import DataConfig, load_recipe
from tokvid.errors import UserError
from tokvid.input_pipeline.records import RecordWriter
from tokvid.input_pipeline.sources import fingerprint, open_source
from tokvid.input_pipeline.stored import StoredVideo
from tokvid.io.urls import local


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """A bucket in memory, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/", recursive=True)


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "tokvid" / "fetched").glob("*"))


def test_paths_stay_what_they_are(tmp_path):
    assert str(local("runs/mine")) == "runs/mine" and local(tmp_path) == tmp_path
    assert local(f"file://{tmp_path}") == tmp_path


def test_a_folder_is_fetched_once_and_again_when_it_changes(store, tmp_path):
    store.pipe({"/bucket/data/a.txt": b"a", "/bucket/data/deep/b.txt": b"b"})
    folder = local("memory://bucket/data/")
    assert (folder / "a.txt").read_bytes() == b"a" and (folder / "deep" / "b.txt").read_bytes() == b"b"
    assert local("memory://bucket/data/") == folder and len(cached(tmp_path)) == 1
    store.pipe({"/bucket/data/a.txt": b"other"})
    assert (local("memory://bucket/data/") / "a.txt").read_bytes() == b"other"


def test_a_copy_that_breaks_off_leaves_nothing(store, tmp_path, monkeypatch):
    store.pipe({"/bucket/data/a.txt": b"a", "/bucket/data/b.txt": b"b"})
    fetch = type(store).get_file

    def breaks(self, name, to, **options):
        if name.endswith("b.txt"):
            raise ConnectionError("the line is down")
        fetch(self, name, to, **options)

    monkeypatch.setattr(type(store), "get_file", breaks)
    with pytest.raises(UserError, match="cannot read memory://bucket/data: ConnectionError: the line is down"):
        local("memory://bucket/data")
    assert cached(tmp_path) == []
    monkeypatch.undo()


@pytest.mark.parametrize(
    "url, said",
    [
        ("memory://bucket/nothing", "there is nothing at memory://bucket/nothing"),
        ("nowhere://bucket/data", "cannot read nowhere://bucket/data: ValueError"),
        ("hf://datasets/me/clips", "hf:// needs a package that isn't installed; do: pip install huggingface_hub, or "),
    ],
)
def test_what_cannot_be_read_is_said(url, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=said):
        local(url)


def test_a_dataset_on_the_hub(store, tmp_path, monkeypatch):
    """hf:// is fetched like any other store; here the hub is in memory."""

    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "hf", type(store))
    with RecordWriter(tmp_path / "data", "video") as writer:
        writer.write(StoredVideo("clip", 1.0, (), video=b"x"))
    for path in (tmp_path / "data").iterdir():
        store.pipe({f"hf://datasets/me/clips/{path.name}": path.read_bytes()})
    config = DataConfig(source="records", path="hf://datasets/me/clips")
    assert open_source(config)[0].key == "clip"
    assert fingerprint(config) == fingerprint(dataclasses.replace(config, path=str(tmp_path / "data")))


def test_configs_and_datasets_may_be_urls(store, tmp_path):
    with RecordWriter(tmp_path / "data", "video") as writer:
        for i in range(3):
            writer.write(StoredVideo(f"clip{i}", 1.0, (), video=bytes([i])))
    for path in (tmp_path / "data").iterdir():
        store.pipe({f"/bucket/data/{path.name}": path.read_bytes()})
    config = DataConfig(source="records", path="memory://bucket/data", held_out=1)
    assert len(open_source(config)) == 2
    assert fingerprint(config) == fingerprint(dataclasses.replace(config, path=str(tmp_path / "data")))
    store.pipe({"/bucket/recipe.py": b"from tokvid.config import Recipe\nrecipe = Recipe()\n"})
    assert load_recipe(local("memory://bucket/recipe.py"), []).data == DataConfig()


def test_nothing_is_written_outside_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b" / "cache"))
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as file:
        file.writestr("world/config.json", "{}")
        file.writestr("world/../../../../../../out", "out")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(UserError, match="leads out of it"):
        local(f"zip://world::file://{tmp_path}/w.zip")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
