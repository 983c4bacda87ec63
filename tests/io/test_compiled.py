"""Where compiled programs are kept."""

import os
import random
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import pytest

from tokvid.io import compiled as compilation
from tokvid.io.compiled import default_folder, keep_programs

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def restored():
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    "platform, named, wanted",
    [("tpu", None, "home/tokvid/programs"), ("tpu", "mine", "mine"), ("cpu", None, "home/tokvid/programs/cpu-mine")],
)
def test_programs_are_kept_where_it_pays(tmp_path, monkeypatch, platform, named, wanted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "home")
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(compilation, "_processor", lambda: "mine")
    jax.config.update("jax_compilation_cache_dir", named)
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == wanted
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "tokvid" / "programs"


def test_processors_that_can_do_different_things_have_folders_of_their_own(tmp_path):
    marks = []
    for flags in ("fma avx2", "fma avx2 avx512_bf16"):
        text = f"processor : 0\nmodel name : x\ncpu MHz : {len(flags)}\nflags : {flags}\n"
        (tmp_path / "cpuinfo").write_text(text)
        marks.append(compilation._processor(tmp_path / "cpuinfo"))
        (tmp_path / "cpuinfo").write_text(
            text.replace("MHz : ", "MHz : 1") + text.replace("processor : 0", "processor : 1")
        )
        assert compilation._processor(tmp_path / "cpuinfo") == marks[-1]
    assert len({*marks, compilation._processor(tmp_path / "missing")}) == 3 and all(len(mark) == 16 for mark in marks)


def test_a_home_that_cannot_be_written_to_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_programs()
    assert not jax.config.jax_compilation_cache_dir


def test_torn_programs_and_the_least_recently_used_are_removed(tmp_path, monkeypatch):
    """JAX would read a torn one, and compile again, at every start."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_programs()
    folder, whole = Path(jax.config.jax_compilation_cache_dir), zlib.compress(random.Random(0).randbytes(1000))
    for name in ("newest", "older", "oldest"):
        (folder / f"{name}-cache").write_bytes(whole)
    (folder / "torn-cache").write_bytes(whole[:-10])
    (folder / ".checked").unlink()
    jax.config.update("jax_compilation_cache_dir", None)
    keep_programs()
    assert {path.name for path in folder.glob("*-cache")} == {"newest-cache", "older-cache", "oldest-cache"}
    for age, name in enumerate(("newest", "older", "oldest"), 1):
        used, written = time.time() - 100 * age, time.time() - 1000 // age  # the newest one was written first
        os.utime(folder / f"{name}-cache", (used, written))
    monkeypatch.setattr(compilation, "MOST_BYTES", 2 * len(whole))
    jax.config.update("jax_compilation_cache_dir", None)
    keep_programs()
    assert {path.name for path in folder.glob("*-cache")} == {"newest-cache", "older-cache"}


def test_what_jax_keeps_is_whole(tmp_path, monkeypatch):
    """So that the next start leaves it there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = "import jax\nfrom tokvid.io.compiled import keep_programs\nkeep_programs()\njax.jit(lambda x: x + 1)(1)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True)
        programs = list(tmp_path.rglob("*-cache"))
        assert programs and all(compilation._is_whole(path.read_bytes()) for path in programs)
