"""What a running server knows: its records, its weights, its queue."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from tokvid.errors import UserError, did_you_mean
from tokvid.studio.jobs import Queue
from tokvid.studio.records import ENDED, Records, Take, Upload
from tokvid.studio.worlds import World, method_of

MOST_WAITING = 50
MOST_SINGLE = 12  # takes of single scenes that are kept


class Studio:
    """The state of the server: its records, its weights, its queue."""

    def __init__(self, folder: Path, worlds: dict[str, World]):
        self.records, self.worlds = Records(folder), worlds
        self.queue = Queue(self.records, worlds)
        self.facts = [world.facts() for world in worlds.values()]
        self.uploading = asyncio.Semaphore(2)

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """While the server runs, takes are made."""
        task = asyncio.create_task(self.queue.run())
        if not self.queue.waiting:
            await self.queue.warm(next(iter(self.worlds)))
        try:
            yield
        finally:
            task.cancel()
            await self.queue.close()
            self.records.close()

    def summary(self, take: Take) -> dict[str, Any]:
        """A take as the page shows it; `method` is the world's that makes it, and the name of a command."""
        left = self.queue.left() if take is self.queue.current else None
        return {**vars(take), "method": method_of(take.task), "left": left}

    def take(self, take_id: str) -> Take:
        """The take of this id; 404 if there is none."""
        if (take := self.records.takes.get(take_id)) is None:
            raise HTTPException(404, "there is no such video; it may have been deleted")
        return take

    def world(self, name: str) -> World:
        """The weights of this name; UserError if there are none."""
        if (world := self.worlds.get(name)) is None:
            raise UserError(did_you_mean(name, self.worlds, "weights"))
        return world

    def upload(self, upload_id: str) -> Upload:
        """The upload of this id; 404 if there is none."""
        if (upload := self.records.uploads.get(upload_id)) is None:
            raise HTTPException(404, "there is no such upload; choose the file again")
        return upload

    def enqueue(self, **fields: Any) -> Take:
        """A new take; UserError where too many wait. Old takes of single scenes, for comparison, are deleted."""
        if len(self.queue.waiting) >= MOST_WAITING:
            raise UserError(f"{MOST_WAITING} videos are waiting already; stop some")
        ended = [take for take in self.records.takes.values() if take.until is not None and take.status in ENDED]
        for take in ended[:-MOST_SINGLE]:
            self.records.remove(take)
        take = self.records.add(**fields)
        self.queue.wake()
        return take
