"""Long work shows how far it is: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """Gives `advance(n=1, **notes)`; notes (numbers or short texts) are shown behind the bar. Writes to stderr."""
    console = Console(stderr=True)
    began, first, at, shown = time.monotonic(), done, done, ""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[notes]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, completed=done, rate="", notes="")

            def advance(n: int = 1, **notes: object) -> None:
                nonlocal at, shown
                at += n
                rate = f"{(at - first) / max(time.monotonic() - began, 1e-9):.3g} {unit}/s"
                shown = _notes(notes) or shown
                bar.update(task, completed=at, rate=rate, notes=shown)

            yield advance
        return
    last = began

    def line(n: int = 1, **notes: object) -> None:
        nonlocal at, last
        at += n
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or at == total:
            last = now
            rate = (at - first) / max(now - began, 1e-9)
            left = (total - at) / rate if rate else 0.0
            said = [f"{what}: {at}/{total}", f"{rate:.3g} {unit}/s", f"{left:.0f} s left", _notes(notes)]
            print(" · ".join(filter(None, said)), file=sys.stderr)

    yield line


def _notes(notes: dict[str, object]) -> str:
    return " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in notes.items())
