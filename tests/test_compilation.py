"""Where compiled programs are kept."""

from pathlib import Path

import jax
import pytest

from tokvid.compilation import default_folder, keep_programs


@pytest.fixture(autouse=True)
def restored():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    "platform, named, wanted", [("tpu", None, "home/tokvid/programs"), ("tpu", "mine", "mine"), ("cpu", None, None)]
)
def test_programs_are_kept_where_it_pays(monkeypatch, platform, named, wanted):
    monkeypatch.setenv("XDG_CACHE_HOME", "home")
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    jax.config.update("jax_compilation_cache_dir", named)
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == wanted
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "tokvid" / "programs"
