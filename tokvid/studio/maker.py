"""The process that generates: it reads orders, a line of JSON each, and reports events in the same way.

The server starts it and keeps it, so that weights and compiled programs stay in memory, the server stays responsive,
and a crash ends nothing else. It ends when its input does.
"""

import contextlib
import itertools
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tokvid
from tokvid.errors import UserError, lacks_memory, show_warnings
from tokvid.io.files import write_json, write_text
from tokvid.sampling.kept import KeptWindows
from tokvid.sampling.story import story_text
from tokvid.studio.records import FILES, FRAMES
from tokvid.studio.worlds import VERBS

MOST_WINDOWS = 1 << 28  # bytes of kept windows; beyond, they are forgotten
Tell = Callable[[dict[str, Any]], None]


class Stopped(Exception):
    """The user wants no more frames."""


class Warned(logging.Handler):
    """While it is entered, the warnings of a run are told as events, with the names that users gave their files."""

    def __init__(self, run: int, names: dict[str, str], tell: Tell):
        super().__init__(logging.WARNING)
        self._log = logging.getLogger("tokvid")
        self._run, self._names, self._tell = run, names, tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tells one warning."""
        message = record.getMessage()
        for path, name in self._names.items():
            message = message.replace(path, name)
        self._tell({"run": self._run, "warning": message})

    def __enter__(self) -> None:
        self._log.addHandler(self)
        self._log.propagate = False  # to the server's terminal

    def __exit__(self, *error: object) -> None:
        self._log.propagate = True
        self._log.removeHandler(self)


class Maker:
    """Makes takes, one after another, with the weights in memory that were used last."""

    def __init__(self, orders: Iterable[str], tell: Tell):
        self._tell = tell
        self._stopped: int | None = None  # the run to stop; -1: whichever
        self._orders: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._world: tokvid.World | None = None
        self._loaded: Any = None  # the order's names of its weights
        threading.Thread(target=self._listen, args=(orders,), daemon=True).start()

    def _listen(self, orders: Iterable[str]) -> None:
        for line in orders:
            order = json.loads(line)
            if "stop" in order:
                self._stopped = order["stop"]
            else:
                self._orders.put(order)
        self._stopped = -1
        self._orders.put(None)

    def run(self) -> None:
        """Works until there are no more orders."""
        with contextlib.suppress(BrokenPipeError):  # the server is gone
            while (order := self._orders.get()) is not None:
                self._heeded(order)

    def _heeded(self, order: dict[str, Any]) -> None:
        try:
            self._load(order["weights"], [(path, scale) for path, scale in order["loras"]])
            if "run" in order:
                with Warned(order["run"], order["names"], self._tell):
                    self._make(order)
        except Stopped:
            self._tell({"run": order["run"], "status": "stopped"})
        except BrokenPipeError:
            raise
        except (UserError, OSError) as error:
            self._tell({"run": order.get("run"), "status": "failed", "error": str(error)})
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            self._tell({"run": order.get("run"), "status": "failed", "error": "there is not enough memory for this"})

    def _load(self, folder: str, loras: list[tuple[str, float]]) -> None:
        if self._world is None or self._loaded != (folder, loras):
            self._world = None  # frees its memory first
            self._world, self._loaded = tokvid.load(folder, loras=loras, quiet=True), (folder, loras)

    def _make(self, order: dict[str, Any]) -> None:
        assert self._world is not None
        run, place, windows = order["run"], Path(order["place"]), Path(order["windows"])
        if windows.is_file() and windows.stat().st_size > MOST_WINDOWS:
            windows.unlink()
        with KeptWindows(windows, self._world.models) as kept:
            stream = self._stream(order, kept)
            spans = _spans(order, stream)
            total = stream.total if order["until"] is None else spans[order["until"]][1]
            facts = {"fps": stream.fps, "size": stream.size, "known": stream.known, "total": total, "spans": spans}
            self._tell({"run": run, "status": "making", **facts})
            done = 0
            with open(place / FRAMES, "wb") as file:
                for video_THWC in self._until_stopped(run, stream):
                    file.write(np.ascontiguousarray(video_THWC[: total - done]).data)
                    file.flush()
                    done += len(video_THWC[: total - done])
                    self._tell({"run": run, "done": done})
                    if done == total:
                        break
        files = []
        if order["until"] is None:
            self._tell({"run": run, "status": "saving"})
            files = self._save(run, place, stream, total)
            if not order["task"]:
                assert stream.story is not None
                write_text(place / FILES["story"][0], story_text(stream.story))
                files.append("story")
            if "track" in order["own"]:
                write_json(place / FILES["track"][0], order["own"]["track"])
                files.append("track")
        self._tell({"run": run, "status": "done", "files": files})

    def _until_stopped(self, run: int, stream: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for video_THWC in itertools.chain([np.zeros((0, 1, 1, 3), np.uint8)], stream):
            self._heed(run)
            if len(video_THWC):
                yield video_THWC

    def _heed(self, run: int) -> None:
        if self._stopped in (run, -1):
            raise Stopped

    def _stream(self, order: dict[str, Any], kept: KeptWindows) -> "tokvid.Stream":
        assert self._world is not None
        opening = order["opening"] or {}
        if not order["task"]:
            return self._world.stream(order["story"], windows=kept, larger=order["larger"], **opening)
        settings = {**order["story"], **order["own"]}
        (segment,), (source,) = settings.pop("segments"), opening.values()
        if order["larger"] > 1:
            settings["larger"] = order["larger"]
        if order["task"] in VERBS:
            method = getattr(self._world, VERBS[order["task"]].method)
            return method.stream(source, prompt=segment["prompt"], **settings)
        return self._world.edit.stream(source, order["task"], segment["prompt"], **settings)

    def _save(self, run: int, place: Path, stream: "tokvid.Stream", total: int) -> list[str]:
        """Writes the video to all files that it fits into; returns their keys."""
        frames = np.memmap(place / FRAMES, np.uint8, "r", shape=(total, *stream.size, 3))
        video, files = tokvid.Video(frames, stream.fps, story=stream.story, known=stream.known), []
        for key, (name, _) in FILES.items():
            if key in ("story", "track"):
                continue
            self._heed(run)
            try:
                video.save(place / name)
                files.append(key)
            except UserError:
                if key != "gif":  # which is built in memory, and not for long videos
                    raise
        return files


def _spans(order: dict[str, Any], stream: "tokvid.Stream") -> list[list[int]]:
    """Each scene's first frame, and one past its last, after those of an opening."""
    if order["task"]:
        return [[0, stream.total]]
    assert stream.story is not None
    return [[stream.total - stream.story.frames + at for at in span] for span in stream.story.spans]


def main() -> None:
    """Standard output is for the server, so whatever else prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    os.nice(5)
    show_warnings()

    def tell(event: dict[str, Any]) -> None:
        answers.write(json.dumps({**event, "at": time.monotonic()}) + "\n")

    Maker(sys.stdin, tell).run()


if __name__ == "__main__":
    main()
