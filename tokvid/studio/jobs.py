"""The queue: waiting takes are generated one at a time by the maker's process. It lives in the server's event loop."""

import asyncio
import collections
import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from tokvid.studio.records import ENDED, RUNNING, Records, Take
from tokvid.studio.worlds import World

log = logging.getLogger(__name__)
PATIENCE = 4.0  # seconds after which a maker that was told to stop, and didn't, is killed; its windows are kept
PACE_OVER = 5  # of the last parts of a video the pace is measured
LEAST_PACE = 1.0  # seconds over which it is: windows that are kept come at once


class Queue:
    """Starts the maker when it is first needed, and again after it has ended."""

    def __init__(self, records: Records, worlds: Mapping[str, World]):
        self.records, self.worlds = records, worlds
        self.current: Take | None = None
        self._maker: asyncio.subprocess.Process | None = None
        self._wake = asyncio.Event()
        self._ordering = asyncio.Lock()
        self._patience = asyncio.Timeout(None)
        self._pace: collections.deque[tuple[float, int]] = collections.deque(maxlen=PACE_OVER)
        self._began = 0.0
        self._run = 0  # the number of the last order: a take may be stopped, and ordered again
        for take in records.takes.values():  # interrupted with the server: what was made of them is kept
            if take.status in RUNNING:
                take.status = "waiting"

    @property
    def waiting(self) -> list[Take]:
        """The takes that are still to be made, in order."""
        return [take for take in self.records.takes.values() if take.status == "waiting"]

    def left(self) -> float | None:
        """Seconds until the current take is done, as far as is known."""
        if self.current is None or len(self._pace) < 2:
            return None
        (first, before), (last, done) = self._pace[0], self._pace[-1]
        if done == before or last - first < LEAST_PACE:
            return None
        rest = (self.current.total - done) * (last - first) / (done - before)
        return max(0.0, rest - (time.monotonic() - last))

    async def run(self) -> None:
        """Makes takes for ever."""
        while True:
            self._wake.clear()
            waiting = self.waiting
            if not waiting:
                await self._wake.wait()
                continue
            take = self.current = waiting[0]
            try:
                await self._make(take)
            except Exception as error:
                log.exception("take %s", take.id)
                self._end(take, "failed", f"{type(error).__name__}: {error}")
            if take.id not in self.records.takes:  # deleted, perhaps while the maker saved it
                self.records.erase(take)
            self.current = None

    def wake(self) -> None:
        """To be called when there is a new take."""
        self._wake.set()

    async def warm(self, weights: str) -> None:
        """Loads weights before they are needed."""
        await self._order(self._models(weights))

    async def stop(self, take: Take) -> None:
        """Stops a take now; the windows that it has are kept."""
        if take.status == "waiting":
            self._end(take, "stopped")
        elif take is self.current and take.status in RUNNING:
            self._end(take, "stopped")
            self._patience.reschedule(asyncio.get_running_loop().time() + PATIENCE)
            await self._order({"stop": self._run})

    async def close(self) -> None:
        """Ends the maker."""
        if self._maker is not None and self._maker.returncode is None:
            self._maker.kill()
            await self._maker.wait()

    def _end(self, take: Take, status: Any, error: str = "") -> None:
        take.status, take.error = status, error
        take.seconds = round(time.monotonic() - self._began, 1) if take is self.current else 0.0
        if take.id in self.records.takes:  # it may have been deleted meanwhile
            with contextlib.suppress(Exception):  # of a full disk; what is in memory is shown
                self.records.save(take)

    def _file(self, upload_id: str) -> str:
        return str(self.records.place(self.records.uploads[upload_id]) / "file")

    async def _make(self, take: Take) -> None:
        self._began = time.monotonic()
        if take.weights not in self.worlds:  # it waited while the server was started anew
            return self._end(
                take, "failed", f"the weights {take.weights} are not offered now; start the studio with them"
            )
        self._pace.clear()
        take.status, take.done = "loading", 0
        take.error, take.warnings = "", ()
        opening = None
        if take.opening is not None:
            kind = "image" if self.records.uploads[take.opening].kind == "picture" else "video"
            opening = {kind: self._file(take.opening)}
        own = take.own | ({"first": self._file(take.own["first"])} if "first" in take.own else {})
        self._run += 1
        order = {
            "run": self._run,
            **self._models(take.weights),
            "place": str(self.records.place(take)),
            "windows": str(self.records.windows(take.weights)),
            "story": take.story,
            "opening": opening,
            "until": take.until,
            "task": take.task,
            "own": own,
            "larger": take.larger,
            "names": {self._file(each): self.records.uploads[each].name for each in sorted(take.uploads)},
        }
        try:
            async with asyncio.timeout(None) as self._patience:
                await self._follow(take, order)
        except TimeoutError:
            await self.close()

    async def _follow(self, take: Take, order: dict[str, Any]) -> None:
        """Gives the order for a take, and takes over what the maker says of it until it ends."""
        started = await self._order(order)
        maker = self._maker
        assert maker is not None and maker.stdout is not None
        while line := await maker.stdout.readline():
            event = json.loads(line)
            if event["run"] == self._run:
                self._note(take, event)
                if event.get("status") in ENDED:
                    return
        await maker.wait()  # else the next order would still go to it
        if take.status == "loading" and not started:  # it may have ended before this order
            await self._follow(take, order)
        elif take.status in RUNNING:
            self._end(take, "failed", "the generating process ended; is there enough memory?")

    def _note(self, take: Take, event: dict[str, Any]) -> None:
        """Takes over what the maker says, unless the take was stopped meanwhile."""
        if take.status not in RUNNING:
            return
        if "done" in event:
            take.done = event["done"]
            self._pace.append((event["at"], take.done))
        if "warning" in event:
            take.warnings += (event["warning"],)
        if "status" not in event:
            return
        take.fps, take.total = event.get("fps", take.fps), event.get("total", take.total)
        take.size, take.known = tuple(event.get("size", take.size)), event.get("known", take.known)
        take.spans, take.files = event.get("spans", take.spans), tuple(event.get("files", take.files))
        if event["status"] in RUNNING:
            take.status = event["status"]
        else:
            self._end(take, event["status"], event.get("error", ""))

    def _models(self, name: str) -> dict[str, Any]:
        """The weights of this name, and their LoRAs, as part of an order."""
        world = self.worlds[name]
        return {"weights": str(world.folder), "loras": [(str(path), scale) for path, scale in world.loras]}

    async def _order(self, order: dict[str, Any]) -> bool:
        """Tells the maker; whether it had to be started."""
        async with self._ordering:  # a stop waits for the start of the maker, and starts no second one
            if start := self._maker is None or self._maker.returncode is not None:
                self._maker = await self._start()
        assert self._maker.stdin is not None
        with contextlib.suppress(ConnectionError):  # it has just ended, which its output says
            self._maker.stdin.write(json.dumps(order).encode() + b"\n")
            await self._maker.stdin.drain()
        return start

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "tokvid.studio.maker")  # in a session of its own: Ctrl-C is the server's
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True)
