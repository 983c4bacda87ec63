"""Outputs are whole or not there, what was there before is kept, and what can't be written is known before."""

import json
import os
from pathlib import Path

import pytest

from tokvid.errors import UserError
from tokvid.io.files import (
    atomic,
    check_folder,
    check_output,
    check_replaced,
    read_limited,
    to_json,
    write_json,
    write_text,
)


def test_a_file_replaces_a_file_and_a_folder_a_folder(tmp_path):
    write_text(tmp_path / "new" / "a", "one")
    write_text(tmp_path / "new" / "a", "two")
    assert (tmp_path / "new" / "a").read_text() == "two"
    with atomic(tmp_path / "new") as folder:
        folder.mkdir()
        (folder / "b").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b"] and len(list(tmp_path.iterdir())) == 1


def test_neither_replaces_the_other(tmp_path):
    """A folder of results given as the name of a file is not removed."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept").touch()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"cannot write .*results: Is a directory"):
        write_json(tmp_path / "results", {})
    with pytest.raises(UserError, match=r"cannot write .*file: Not a directory"), atomic(tmp_path / "file") as folder:
        folder.mkdir()
    assert (tmp_path / "results" / "kept").exists() and (tmp_path / "file").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "to_file").symlink_to("disk/file")
    write_text(tmp_path / "to_file", "text")
    assert (tmp_path / "disk" / "file").read_text() == "text" and (tmp_path / "to_file").is_symlink()
    with atomic(tmp_path / "link") as folder:
        folder.mkdir()
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "disk").iterdir()] == ["new"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_put(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").touch()
    rename = Path.rename

    def fails(self, to):
        if Path(to).name == "data" and not self.name.endswith(".old"):
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UserError, match="Input/output error"), atomic(tmp_path / "data") as folder:
        folder.mkdir()
    assert (tmp_path / "data" / "old").exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "name", ["圆" * 80 + ".mp4", "x" * 251 + ".mp4", "a[1]*\\?.json", "a\udcff.json", "é", ".png"], ids=ascii
)
def test_any_name_that_the_disk_takes(tmp_path, name):
    check_output(tmp_path / "new" / name)
    check_folder(tmp_path / "new" / name)
    check_replaced(tmp_path / "new" / name)
    assert not any(tmp_path.iterdir())
    write_text(tmp_path / "new" / name, "text")
    assert os.listdir(tmp_path / "new") == [name]
    check_output(tmp_path / "new" / name)


def test_names_that_are_no_utf8_in_json(tmp_path):
    """As escapes, which read back as they were, and are the same text again."""
    value = {"path": "a\udcff", "text": "圆"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == value
    assert "圆" in to_json(value) and to_json(json.loads(to_json(value))) == to_json(value)


def test_files_of_limited_size(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"four")
    assert read_limited(tmp_path / "a.txt", "list", 4) == b"four"
    with pytest.raises(UserError, match=r"list .*a\.txt has more than 3 bytes; cut it$"):
        read_limited(tmp_path / "a.txt", "list", 3, "cut it")
    with pytest.raises(UserError, match=r"cannot read list .*b\.txt: No such file or directory; check its name"):
        read_limited(tmp_path / "b.txt", "list", 4)
