"""Work in threads: ahead of what uses its results, and left alone once these aren't wanted any more."""

import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """The processor cores that this process may use: `taskset`, say, leaves it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int = 4
) -> Iterator[Result]:
    """`work(item)` of each item, in their order, by several threads at once; an error is raised in its place.

    At most `ahead` results for each thread wait for their turn. Whoever stops asking for them, as on Ctrl-C, goes on at
    once: no further item is begun, and items under way are left to daemon threads. A ThreadPoolExecutor would wait for
    them, even when the program exits, and no thread can be interrupted while it waits for a server. So `work` must bear
    to be cut off anywhere.
    """
    remaining, left = iter(items), threading.Event()
    begun: deque[Future[Result]] = deque()
    tasks: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()

    def begin(count: int) -> None:
        for item in itertools.islice(remaining, count):
            begun.append(Future())
            tasks.put((item, begun[-1]))

    def serve() -> None:
        while (task := tasks.get()) is not None and not left.is_set():
            item, result = task
            try:
                result.set_result(work(item))
            except BaseException as error:
                result.set_exception(error)

    try:
        begin(ahead * threads)
        for _ in range(min(threads, len(begun))):
            threading.Thread(target=serve, daemon=True).start()
        while begun:
            yield begun.popleft().result()
            begin(1)
    finally:
        left.set()
        for _ in range(threads):
            tasks.put(None)


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a thread computes the next one while the last one is used, and an error is raised in its place.

    Whoever stops asking goes on at once. Only the program's end waits for the item under way, so JAX's work isn't cut
    off.
    """
    end, pool = object(), ThreadPoolExecutor(1)
    try:
        coming: Future[Item | object] = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield cast(Item, item)
    finally:
        pool.shutdown(wait=False)
