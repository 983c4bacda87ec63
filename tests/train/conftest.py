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


@pytest.fixture(autouse=True, scope="session")
def _compile_once(tmp_path_factory):
    """The same steps are trained again and again here: their programs are kept on disk."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("programs")))
    jax.config.update(names[1], 0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
