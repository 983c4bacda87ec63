"""Captions files as people write them: harmless slips are read, the others are named with their cure."""

import json
import logging
import unicodedata

import PIL.Image
import pytest

from tokvid.errors import UserError
from tokvid.input_pipeline.captions import missing, read_captions
from tokvid.input_pipeline.folder import FolderSource


@pytest.fixture
def folder(tmp_path):
    """A folder with three pictures, one of them in a folder within."""
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "sub/c.png"):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def pairs(folder, text, name="captions.csv"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(line.file, line.caption) for line in read_captions(folder)]


HELLO = [("a.png", "hello")]


@pytest.mark.parametrize(
    "text, read",
    [
        ("file, caption\na.png, hello\n", HELLO),
        ('file, caption\na.png, "hello, you" \n', [("a.png", "hello, you")]),
        ("file;caption\na.png;hello, you\n", [("a.png", "hello, you")]),
        ("file\tcaption\na.png\thello; you, too\n", [("a.png", "hello; you, too")]),
        ("File , CAPTION\na.png,hello\n", HELLO),
        ("\ufefffile,caption\r\na.png,hello\r\n\r\n", HELLO),
        ("file,caption\ra.png,hello\r", HELLO),
        ("\n\nfile,caption\n\na.png,hello\n,\n \n", HELLO),
        ("caption,file\nhello,a.png\n", HELLO),
        ("file,caption,\na.png,hello,\n", HELLO),
        ("file,caption\nsub\\c.png,hello\n", [("sub/c.png", "hello")]),
        ('file,caption\na.png,5" wide\n', [("a.png", '5" wide')]),
        ('"file","caption"\n"a.png","say ""hi"""\n', [("a.png", 'say "hi"')]),
        ("file,caption\n./a.png,hello\n", HELLO),
        ("file,caption\na.png,hello\nb.png,\n", [*HELLO, ("b.png", "")]),
    ],
)
def test_harmless_slips_are_read(folder, text, read):
    assert pairs(folder, text) == read


def test_capitals_in_json_are_read(folder):
    assert pairs(folder, '{"File": "a.png", " caption ": "hello"}', "captions.jsonl") == HELLO


def test_spaces_around_a_caption_in_json_are_left_out(folder):
    assert pairs(folder, '{"file": "a.png", "caption": " hello\\n"}', "captions.jsonl") == HELLO


def test_folders_of_hugging_face_are_read(folder):
    assert pairs(folder, "file_name,text\na.png,hello\n", "metadata.csv") == HELLO
    lines = [{"file_name": "b.png", "text": "b", "id": 3}, {"file_name": "sub/c.png", "caption": "c"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert pairs(folder, text, "metadata.jsonl") == [("b.png", "b"), ("sub/c.png", "c")]
    assert pairs(folder, '{"file": "a.png", "caption": "hello"}', "captions.jsonl") == HELLO  # comes first


def test_the_index_of_generated_clips_is_read(folder):
    line = {"file": "a.png", "prompt": "hello", "seed": 3, "seconds": 2.0}
    assert pairs(folder, json.dumps(line), "index.jsonl") == HELLO


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "file,caption\na.png,put the cup, then the lid\n",
            "line 2: 3 values for 2 columns; put a text that holds commas",
        ),
        ("file,caption,\na.png,put the cup, then the lid\n", "line 2: 3 values for 2 columns"),
        ("file;caption\na.png;the cup; the lid\n", "holds semicolons in quotes"),
        ("caption,file\nput the cup, then the lid,a.png\n", "3 values for 2 columns"),
        ("a.png,hello\n", "the first line of .* is 'a.png,hello', it should name the columns: file,caption"),
        ("path,text\na.png,hello\n", "'path,text'.* rename the columns"),
        ("file caption\na.png hello\n", "'file caption'"),
        ("file,caption,Caption\na.png,x,y\n", "the column caption more than once"),
        ('file,caption\na.png,"red" cup\n', 'line 2: there is text after a closing quote ".* as ""'),
        ('file,caption\nb.png,x\na.png,"red cup\n\n', 'line 3: a quote " is opened here and never closed'),
        ("file,caption\na.png\n", "line 2: needs the texts file and caption, found 'file'"),
        ("file,caption\n,hello\n", "line 2: needs the texts file and caption, file is ''"),
        ("file,caption\na.png,x\na.png,y\n", "line 3: 'a.png' again, first on line 2; a clip has one caption"),
        ("file,caption\nsub/c.png,x\nsub\\c.png,y\n", "line 3: 'sub/c.png' again, first on line 2"),
        ("file,caption\na.png," + "x" * 100_001, "line 2: the caption has 100001 bytes, at most 100000"),
        ("file,caption\na.png," + "x" * 200_000, "line 2: field larger"),
        ("file,caption\n", "names no videos"),
        ("", "is empty; write file,caption on its first line"),
        (" \n\n", "is empty"),
        ("file,caption\na.png,é".encode("latin-1"), "save it as UTF-8"),
        ("file,caption\na.png,x".encode("utf-16"), "save it as UTF-8"),
    ],
)
def test_other_slips_are_named(folder, text, said):
    with pytest.raises(UserError, match=said):
        pairs(folder, text)


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"file": "a.png", "caption": "x", "caption": "y"}', "line 1: 'caption' is there twice"),
        ('{"file": "a.png", "words": "x"}', "line 1: needs the texts file and caption, found 'file', 'words'"),
        ('{"file": "a.png", "caption": ["x", "y"]}', "line 1: needs the texts file and caption, caption is "),
        ('["a.png", "x"]', "line 1: needs an object like .*, found list"),
        ('{"file": "a.png", "caption": "x"} {', "line 1: not JSON"),
        ("3" * 5000, "line 1: "),
        ('{"file": "a.png", "caption": "\\ud83d"}', "line 1: the caption is not valid UTF-8 at character 0"),
        ('{"file": "\\udc00.png", "caption": "x"}', "line 1: the file is not valid UTF-8 at character 0"),
        ('{"file": "/a.png", "caption": "x"}', "line 1: '/a.png' is an absolute path; name files as seen from"),
        ('{"file": "sub\\\\..\\\\..\\\\a.png", "caption": "x"}', r"goes up by '\.\.'; name files as seen from"),
        ('{"file": "C:\\\\a.png", "caption": "x"}', "is an absolute path"),
    ],
)
def test_bad_lines_of_json(folder, line, said):
    with pytest.raises(UserError, match=said):
        pairs(folder, line, "captions.jsonl")


def test_what_is_not_read_is_said(folder, caplog):
    assert pairs(folder, "file,caption,notes,fps\na.png,hello,red,\n") == HELLO
    assert "only file and caption are read, not fps, notes" in caplog.text
    caplog.clear()
    assert pairs(folder, 'file,caption\na.png,"red\nb.png,blue"\n') == [("a.png", "red\nb.png,blue")]
    assert "the row of line 2 goes on to line 3" in caplog.text
    assert pairs(folder, '{"file": "a.png", "caption": "hello"}', "captions.jsonl") == HELLO
    assert "captions.jsonl is read" in caplog.text and "captions.csv is not" in caplog.text


def test_a_folder_whose_captions_are_called_otherwise(folder):
    (folder / "Captions.txt").write_text("file,caption\na.png,hello\n")
    with pytest.raises(UserError, match=r"no captions\.jsonl .*, but has Captions\.txt; write one"):
        read_captions(folder)


@pytest.mark.parametrize("on_disk, told", [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_may_be_composed_differently(folder, on_disk, told):
    name = "café/é ü.png"
    (folder / unicodedata.normalize(on_disk, "café")).mkdir()
    PIL.Image.new("RGB", (4, 4)).save(folder / unicodedata.normalize(on_disk, name))
    line = json.dumps({"file": unicodedata.normalize(told, name), "caption": "x"})
    (folder / "captions.jsonl").write_text(line)
    (item,) = FolderSource(folder)
    assert unicodedata.normalize("NFC", item.key) == unicodedata.normalize("NFC", name)
    (folder / "captions.jsonl").write_text(f"{line}\n{json.dumps({'file': item.key, 'caption': 'y'})}")
    with pytest.raises(UserError, match="again, first on line 1"):
        FolderSource(folder)


@pytest.mark.parametrize("name", ["c:d.png", "con.png", "back\\slash.png", " spaces .png ", "#1 'quoted' \"x\".png"])
def test_any_name_that_the_disk_has_is_found(folder, name):
    PIL.Image.new("RGB", (4, 4)).save(folder / name, "PNG")
    (folder / "captions.jsonl").write_text(json.dumps({"file": name, "caption": "x"}))
    (item,) = FolderSource(folder)
    assert item.key == name


def test_a_name_in_other_case_is_suggested(tmp_path):
    (tmp_path / "clip one.mp4").write_bytes(b"")
    assert missing(tmp_path / "CLIP ONE.MP4").endswith("is not there (did you mean 'clip one.mp4'?)")


def test_missing_files_count_among_the_unreadable(folder, caplog):
    lines = [json.dumps({"file": name, "caption": "x"}) for name in ("a.png", "b.png", "C.png", "sub/C.png")]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    source = FolderSource(folder, max_unreadable=0.5)
    assert [item.key for item in source] == ["a.png", "b.png"]
    assert [path.name for path, _ in source.unreadable] == ["C.png", "C.png"]
    assert "sub/C.png is not there (did you mean 'c.png'?)" in caplog.text
    with pytest.raises(UserError, match=r"2 of the 4 videos .* at most 40% may .*C\.png is not there"):
        FolderSource(folder, max_unreadable=0.4)


@pytest.mark.parametrize("caption", ["", " ", "\\u200b", "\\u0000\\t"])
def test_captions_that_are_all_empty_are_found_at_once(folder, caption):
    (folder / "captions.jsonl").write_text(f'{{"file": "a.png", "caption": "{caption}"}}\n')
    with pytest.raises(UserError, match=r"all captions in .* are empty; write beside each video what it shows"):
        FolderSource(folder)
    assert len(FolderSource(folder, captioned=False)) == 1


def test_captions_of_what_can_be_read_may_not_all_be_empty(folder, caplog):
    caplog.set_level(logging.CRITICAL)
    (folder / "captions.csv").write_text("file,caption\na.png,\nb.png,\ngone.png,red\n")
    with pytest.raises(UserError, match=r"all captions in .* are empty"):
        FolderSource(folder, max_unreadable=0.5)
