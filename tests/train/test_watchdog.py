"""A job that hangs is ended, in Python or outside of it; one that was only stopped goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest

JOB = """
import ctypes, sys, time
from tokvid.train.watchdog import Watchdog

with Watchdog(1.0) as watchdog:
    print("begun", flush=True)
    for step in range(1, 9):
        time.sleep(0.2)
        watchdog.beat(step)
    {hang}
print("done", flush=True)
"""


def start(hang="pass"):
    job = subprocess.Popen(
        [sys.executable, "-c", JOB.format(hang=hang)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert job.stdout.readline() == "begun\n"
    return job


@pytest.mark.parametrize(
    ("hang", "code", "said"),
    [
        ("time.sleep(60)", 3, "has hung for 1 s after step 8; the stacks of all threads follow"),
        (
            "ctypes.PyDLL(None).sleep(60)",
            -signal.SIGABRT,
            "Fatal Python error: Aborted",
        ),  # holds the interpreter's lock
    ],
)
def test_a_job_that_hangs_is_ended_and_says_where(hang, code, said):
    job = start(hang)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == code and said in errors and "in <module>" in errors


def test_the_first_of_several_processes_lets_the_others_report_before_it_ends_them():
    """Their limits end within one look, a fifth of the limit, of each other; without the first one, none can go on."""
    job = start("import jax; jax.process_count, jax.process_index = (lambda: 2), (lambda: 0); time.sleep(60)")
    while "process 0 of 2 has hung" not in (line := job.stderr.readline()):
        assert line, "it ended without a report"
    reported = time.monotonic()
    job.communicate(timeout=30)
    assert job.returncode == 3 and time.monotonic() - reported > 0.4


def test_a_job_stopped_for_longer_than_the_limit_goes_on():
    job = start()
    os.kill(job.pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(job.pid, signal.SIGCONT)
    out, errors = job.communicate(timeout=30)
    assert (job.returncode, out) == (0, "done\n"), errors


def test_an_error_leaves_nothing_behind():
    job = start("raise ValueError('mine')")
    _, errors = job.communicate(timeout=30)  # returns only when nothing holds the pipes any more
    assert job.returncode == 1 and "ValueError: mine" in errors
