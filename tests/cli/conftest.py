"""What tests of commands share."""

import logging
import re

import numpy as np
import pytest

from tokvid.cli.main import main
from tokvid.io.media import write_image, write_video


@pytest.fixture
def tokvid(capfd, monkeypatch, tmp_path):
    """`tokvid(arguments…)` runs the command in `tmp_path` as the shell would: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capfd.readouterr()
        monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own would keep warnings off stderr
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(tokvid, tmp_path):
    """Runs a command that should fail, in one line and leaving nothing; gives the line."""

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = tokvid(*arguments)
        assert code == 2 and out == "", (code, out, err)
        assert re.fullmatch(r"tokvid: [^\n]{5,2010}\n", err), err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.fixture
def movie(tmp_path):
    """A short video, and a picture."""
    rng = np.random.default_rng(0)
    write_video(tmp_path / "in.mp4", rng.integers(256, size=(10, 40, 60, 3), dtype=np.uint8), 10)
    write_image(tmp_path / "in.png", rng.integers(256, size=(30, 20, 3), dtype=np.uint8))
