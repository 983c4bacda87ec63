"""A real training in a process of its own, killed and stopped at random moments."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tokvid

ROOT = Path(tokvid.__file__).resolve().parents[1]


@pytest.mark.parametrize("kills", [["--kills", "2", "--pair-kills", "0"], ["--kills", "0", "--pair-kills", "1"]])
def test_killed_and_stopped_at_random_moments(kills, monkeypatch, tmp_path):
    """The long form is `python scripts/kill_test.py --kills 20 --pair-kills 10`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    command = [sys.executable, str(ROOT / "scripts" / "kill_test.py"), *kills]
    command += ["--steps", "6", "--signals", "KILL", "TERM"]
    # A session of its own, so that no worker is left behind where the script is cut off.
    script = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)
    try:
        said, _ = script.communicate(timeout=280)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    assert script.returncode == 0, said
    assert "final parameters equal the uninterrupted run's bit for bit" in said
