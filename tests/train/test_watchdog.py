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
        print("step", step, flush=True)
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
    job = start(
        "import jax, types; jax.process_count, jax.process_index = (lambda: 2), (lambda: 0); "
        "from tokvid.train import watchdog as module; "
        "module.time = types.SimpleNamespace(sleep=lambda seconds: print('waits', seconds, file=sys.stderr)); "
        "time.sleep(60)"
    )
    _, errors = job.communicate(timeout=30)
    reported, _, after = errors.partition("process 0 of 2 has hung")
    assert job.returncode == 3 and after.count("waits 0.6") == 1 and "waits" not in reported, errors


def test_a_job_stopped_for_longer_than_the_limit_goes_on():
    job = start()
    while job.stdout.readline() != "step 4\n":  # the limit is that of the later steps, and both who watch know it
        assert job.poll() is None
    os.kill(job.pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(job.pid, signal.SIGCONT)
    out, errors = job.communicate(timeout=30)
    assert job.returncode == 0 and out.endswith("step 8\ndone\n"), errors


def test_an_error_leaves_nothing_behind():
    job = start("raise ValueError('mine')")
    _, errors = job.communicate(timeout=30)  # returns only when nothing holds the pipes any more
    assert job.returncode == 1 and "ValueError: mine" in errors
