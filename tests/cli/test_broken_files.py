"""Files of strangers: something usable, or one line that says what is wrong."""

import json
import re
import shutil

import pytest

from tokvid.input_pipeline.clips import probe
from tokvid.input_pipeline.records import RecordSource

SWEEP = ("empty.mp4", "trunc_half.mp4", "bitflips_in_mdat.mp4", "text_named.mp4", "tiny_av1.mp4", "metadata_gnre.mp4")


def sweep(tokvid, tmp_path, weights, file):
    """Either a command makes something usable of a file, or it says in one line what is wrong and leaves nothing."""
    code, out, err = tokvid("reconstruct", file, "--out", "out.mp4", "--weights", weights, "--json")
    if code == 0:
        assert json.loads(out)["frames"] == probe(tmp_path / "out.mp4").frames > 0
        assert all(line.startswith("tokvid: ") for line in err.splitlines())
        (tmp_path / "out.mp4").unlink()
    else:
        assert (code, out) == (2, "") and re.fullmatch(r"tokvid: [^\n]+\n", err), err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "clips").mkdir()
    shutil.copy(file, tmp_path / "clips" / "a b.mp4")
    (tmp_path / "clips" / "captions.jsonl").write_text('{"file": "a b.mp4", "caption": "x"}')
    for options in (["--check"], ["--size", "16", "16", "--fps", "4"]):
        code, out, err = tokvid("data", "folder", "clips", "--out", "d", *options)
        if code == 0:
            assert len(RecordSource("d")) == 1
            shutil.rmtree("d")
        else:
            assert (code, out) == (2, "") and re.fullmatch(r"tokvid: [^\n]+\n", err), err
        assert [path.name for path in tmp_path.iterdir()] == ["clips"]
    shutil.rmtree("clips")


@pytest.mark.parametrize("name", SWEEP)
def test_broken_files(tokvid, tiny_weights, tmp_path, dev_data, name):
    sweep(tokvid, tmp_path, tiny_weights, dev_data / "malformed" / name)


@pytest.mark.slow
def test_all_broken_files(tokvid, tiny_weights, tmp_path, dev_data):
    files = [path for path in sorted((dev_data / "malformed").iterdir()) if path.suffix != ".jsonl"]
    assert len(files) > 30
    for file in files:
        sweep(tokvid, tmp_path, tiny_weights, file)
