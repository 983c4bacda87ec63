"""A real training in a process of its own, killed and stopped at random moments."""

import pytest


@pytest.mark.parametrize(
    "kills",
    [
        ["--kills", "1", "--signals", "KILL"],
        # SIGTERM is tested in test_resume.py, and what one of two does when the other is killed in test_processes.py.
        pytest.param(["--kills", "2", "--pair-kills", "1", "--signals", "KILL", "TERM"], marks=pytest.mark.slow),
    ],
)
def test_killed_and_stopped_at_random_moments(kills, said_by_script, tmp_path):
    """The long form is `python scripts/kill_test.py --kills 20 --pair-kills 10`."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    said = said_by_script("kill_test.py", *kills, "--steps", "6", **cache)
    assert "final parameters equal the uninterrupted run's bit for bit" in said
