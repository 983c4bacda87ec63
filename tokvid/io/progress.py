"""Progress of long work: a bar with rate and remaining time on a terminal, occasional plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 15.0
MANY = 500  # frames, from which on quick work on them is shown
Item = TypeVar("Item")


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, done: int = 0, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Yields `advance(n=1, **notes)`; notes (numbers or short texts) are shown beside the bar. Writes to stderr.

    `quiet` shows nothing, for all processes but one.
    """
    console = Console(stderr=True, quiet=quiet)
    at, shown, pace = done, "", Pace()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width := 40 if console.width >= 120 else 10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TextColumn("{task.fields[notes]}"),
        )
        others = len(what) + bar_width + 2 * len(str(total)) + 6  # characters, with the spaces between them
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, completed=done, pace="", notes="")

            def advance(n: int = 1, **notes: object) -> None:
                nonlocal at, shown
                at += n
                shown = _notes(notes) or shown
                so_far = pace.at(at, total, unit)
                room = max(0, console.width - others - len(so_far))  # rich would cut the numbers before it, too
                bar.update(task, completed=at, pace=so_far, notes=shown[:room])

            yield advance
        return
    last = time.monotonic()

    def line(n: int = 1, **notes: object) -> None:
        nonlocal at, last
        at += n
        so_far = pace.at(at, total, unit)
        if not quiet and ((now := time.monotonic()) - last >= SECONDS_BETWEEN_LINES or at == total):
            last = now
            print(" · ".join(filter(None, (f"{what}: {at}/{total}", so_far, _notes(notes)))), file=sys.stderr)

    yield line


def counted(items: Iterable[Item], what: str, total: int, unit: str, quiet: bool = False) -> Iterator[Item]:
    """The same items, with the progress of how many have come; there may be a few more or fewer than `total`."""
    with progress(what, total, unit, quiet=quiet) as advance:
        for item in items:
            yield item
            advance()


class Pace:
    """Rate and remaining time, measured after the first advance, which includes compilation."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def at(self, done: int, total: int, unit: str) -> str:
        now = time.monotonic()
        if self.first is None:
            self.first = done, now
        work, seconds = done - self.first[0], now - self.first[1]
        if not work or not seconds:
            return ""
        rate = work / seconds
        return f"{rate:{'.3g' if rate < 1000 else ',.0f'}} {unit}/s · {round((total - done) / rate)} s left"


def _notes(notes: dict[str, object]) -> str:
    return " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in notes.items())
