"""Ends a job whose step hangs, with a stack trace: a blocked read, a collective whose peer is gone.

Time is counted in polls, not read from a clock, so a job stopped by Ctrl-Z for longer than the limit survives.
"""

import contextlib
import faulthandler
import os
import subprocess
import sys
import threading
import time

import jax

from tokvid.distributed import reached

FIRST = 10  # the first step, which compiles, gets 10x the limit
CODE = 3  # the process's exit code

# A thread can't run while another one holds the interpreter's lock forever, so a process watches, too. At each poll,
# the job sends it the current limit; when it receives nothing for longer, it aborts the job, with every thread's stack.
MONITOR = """
import os, select, signal, sys
job, look, patience, silent = int(sys.argv[1]), float(sys.argv[2]), float("inf"), 0.0
def stopped():
    try:
        with open(f"/proc/{job}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:  # not Linux
        return os.popen(f"ps -o state= -p {job}").read().strip()[:1] == "T"
while silent <= patience + 2 * look:
    if select.select([0], [], [], look)[0]:
        heard = os.read(0, 4096).split()
        if not heard:
            sys.exit()
        patience, silent = float(heard[-1]), 0.0
    elif not stopped():
        silent += look
os.kill(job, signal.SIGABRT)
"""


class Watchdog:
    """Ends the process `limit` seconds (0: never) after the last `beat`, with every thread's stack on stderr.

    A context manager. With several processes, it adds the step as a note to an error that leaves the block.
    """

    def __init__(self, limit: float):
        self.step: int | None = None
        self._limit, self._patience, self._waited = limit, limit * FIRST, 0.0
        self._look = min(1.0, limit / 5)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._monitor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Watchdog":
        if self._limit:
            if not faulthandler.is_enabled():
                faulthandler.enable(file=2)
            arguments = [sys.executable, "-I", "-S", "-c", MONITOR, str(os.getpid()), str(self._look)]
            # In its own session, so that signals to the job don't reach it; it ends when its input closes.
            self._monitor = subprocess.Popen(arguments, stdin=subprocess.PIPE, start_new_session=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._over.set()
        if self._monitor is not None and self._monitor.stdin is not None:
            self._thread.join()
            with contextlib.suppress(BrokenPipeError):
                self._monitor.stdin.close()
            self._monitor.wait()
        if error is not None and jax.process_count() > 1:
            error.add_note(self._where)

    def beat(self, step: int) -> None:
        """Restarts the limit; `step` is the last dispatched step."""
        self.step, self._patience, self._waited = step, self._limit, 0.0
        reached(self._where)

    @property
    def _where(self) -> str:
        return "before the first step" if self.step is None else f"after step {self.step}"

    def _watch(self) -> None:
        assert self._monitor is not None and self._monitor.stdin is not None
        while not self._over.wait(self._look):
            with contextlib.suppress(BrokenPipeError):  # the monitor was killed
                os.write(self._monitor.stdin.fileno(), f"{self._patience} ".encode())
            self._waited += self._look
            if self._waited > self._patience:
                print(
                    f"tokvid: process {jax.process_index()} of {jax.process_count()} has hung for {self._waited:.0f} s "
                    f"{self._where}; the stacks of all threads follow",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=2)
                if jax.process_count() > 1 and jax.process_index() == 0:
                    time.sleep(3 * self._look)  # with the first process, all end: let the one that hangs report, too
                reached("")
                os._exit(CODE)
