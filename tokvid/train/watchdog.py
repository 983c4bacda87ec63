"""A step that hangs ends the job and says where: a read that blocks, a collective whose peer has gone."""

import faulthandler
import os
import sys
import threading
import time

import jax

from tokvid.distributed import reached

FIRST = 10  # times as long may it take until the first step is compiled
CODE = 3  # the process's exit code


class Watchdog:
    """Ends the process, every thread's stack on stderr, `limit` seconds after the last `beat`; a context manager.

    `limit` 0: never. Where there are several processes, an error that leaves the block is told the step, as a note.
    """

    def __init__(self, limit: float):
        self.step: int | None = None
        self._limit, self._patience, self._last = limit, limit * FIRST, time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit:
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._over.set()
        if self._limit:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
        if error is not None and jax.process_count() > 1:
            error.add_note(self._where)

    def beat(self, step: int) -> None:
        """`step` steps have been begun, and all is well."""
        self.step, self._patience, self._last = step, self._limit, time.monotonic()
        reached(self._where)

    @property
    def _where(self) -> str:
        return "before the first step" if self.step is None else f"after step {self.step}"

    def _watch(self) -> None:
        look = min(1.0, self._limit / 5)
        while not self._over.wait(look):
            # Should another thread hold the interpreter's lock, so that this one can't run: C code does the same.
            faulthandler.dump_traceback_later(self._patience + 2 * look, exit=True, file=2)
            waited = time.monotonic() - self._last
            if waited > self._patience:
                print(
                    f"tokvid: process {jax.process_index()} of {jax.process_count()} has hung for {waited:.0f} s "
                    f"{self._where}; this is where each thread stands",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=2)
                reached("")
                os._exit(CODE)
