"""A real training in a process of its own, killed and stopped at random moments."""

import subprocess
import sys
from pathlib import Path

import tokvid

ROOT = Path(tokvid.__file__).resolve().parents[1]


def test_killed_and_stopped_at_random_moments(monkeypatch):
    """The long form is `python scripts/kill_test.py --kills 20`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, str(ROOT / "scripts" / "kill_test.py"), "--kills", "2", "--steps", "6"]
    done = subprocess.run([*command, "--signals", "KILL", "TERM"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills: final parameters equal the uninterrupted run's bit for bit" in done.stdout
