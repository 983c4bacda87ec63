"""What the tests of training share."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def said_by_script() -> Callable:
    """`said_by_script("kill_test.py", "--kills", "2", **environment)`: what it printed; it must end well.

    With all that it started it is in a group of its own, so that nothing is left behind where it is cut off.
    """

    def run(name: str, *arguments: str, **environment: str) -> str:
        script = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / name), *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        try:
            said, _ = script.communicate(timeout=280)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(script.pid, signal.SIGKILL)
        assert script.returncode == 0, said
        return said

    return run


def _configure(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it asks only once whether it is to be used


@pytest.fixture(autouse=True, scope="module")
def _compile_once():
    """The same steps are trained again and again here: their programs are kept on disk, those of all workers in one
    place."""
    kept = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(Path(os.environ["XDG_CACHE_HOME"]) / "training"),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
        "jax_compilation_cache_max_size": -1,
    }
    before = {name: getattr(jax.config, name) for name in kept}
    _configure(kept)
    yield
    _configure(before)
