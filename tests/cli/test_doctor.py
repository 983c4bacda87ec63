"""`tokvid doctor` says what is missing and how to fix it, whatever is broken."""

import importlib.metadata
import tempfile
from types import SimpleNamespace

import pytest

from tokvid.cli import doctor


@pytest.fixture(autouse=True)
def few_weights(monkeypatch, tiny_weights):
    monkeypatch.setattr(doctor, "WORLDS", {"tiny": tiny_weights})


def lines(output, mark):
    return [line for line in output.splitlines() if line[11:].startswith(mark)]


def test_a_machine_that_runs_the_tests_is_well(tokvid, tmp_path):
    code, out, err = tokvid("doctor")
    assert code == 0 and err == "" and not lines(out, "FAILS") and not list(tmp_path.iterdir())
    seen = {line.split()[0] for line in lines(out, "ok")}
    assert {"versions", "device", "types", "memory", "codecs", "folders", "weights"} <= seen


@pytest.mark.parametrize(
    "missing, check, code, fix",
    [
        ("numpy", "versions", 1, "pip install 'numpy>=2.0'"),
        ("h264", "codecs", 0, "pip install --force-reinstall"),
        ("libx264", "codecs", 1, "pip install --force-reinstall"),
        ("letters", "font", 0, "fonts-noto-cjk"),
        ("memory", "memory", 0, "close other programs"),
        ("weights", "weights", 1, "install tokvid again"),
        ("caches", "folders", 0, "XDG_CACHE_HOME"),
        ("temporary", "folders", 1, "TMPDIR"),
        ("driver", "device", 1, "JAX_PLATFORMS=cpu"),
        ("av", "codecs", 1, "install tokvid again"),
    ],
)
def test_what_is_missing_has_a_fix(tokvid, monkeypatch, tmp_path, missing, check, code, fix):
    def broken(*arguments):
        raise RuntimeError("no such\nthing")

    version, has = importlib.metadata.version, doctor._has
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy>=2.0", "wandb>=1; extra == 'wandb'"])
    if missing == "numpy":
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26" if name == "numpy" else version(name))
    elif missing in ("h264", "libx264"):
        monkeypatch.setattr(doctor, "_has", lambda codec, mode: codec != missing and has(codec, mode))
    elif missing == "letters":
        monkeypatch.setattr("tokvid.io.media.legible", lambda text: False)
    elif missing == "memory":
        monkeypatch.setattr(doctor, "_available", lambda: 1000)
    elif missing == "weights":
        monkeypatch.setattr(doctor, "WORLDS", {"tiny": tmp_path})
    elif missing == "caches":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    elif missing == "temporary":
        stand_in = SimpleNamespace(gettempdir=lambda: "/proc/none", TemporaryFile=tempfile.TemporaryFile)
        monkeypatch.setattr(doctor, "tempfile", stand_in)
    elif missing == "driver":
        monkeypatch.setattr("jax.devices", broken)
    elif missing == "av":
        monkeypatch.setattr(doctor, "_has", broken)
    monkeypatch.setattr(doctor, "CHECKS", {check: doctor.CHECKS[check]})
    ended, out, err = tokvid("doctor")
    assert ended == code == len(lines(out, "FAILS")) and err == "", out
    assert len(lines(out, "could be better")) == 1 - code
    assert any(fix in line for line in lines(out, "to fix it:")), out
    assert not list(tmp_path.iterdir())
