"""Profiles a few training steps."""

from pathlib import Path
from types import TracebackType

import jax

from tokvid.distributed import first

SKIPPED = 2  # steps: the first ones compile


class Profiler:
    """Traces `count` steps of this run (0: none) into `folder`, on process 0; a context manager."""

    def __init__(self, folder: Path, count: int):
        self._folder, self._count, self._running = folder, count if first() else 0, False

    def __enter__(self) -> "Profiler":
        return self

    def stepped(self, step: int) -> None:
        """Call after dispatching step `step` of this run."""
        if self._count and step == SKIPPED:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True
        elif self._running and step == SKIPPED + self._count + 1:  # once it is dispatched, the previous one is done
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            self._stop()
