"""A source of files that may be damaged: all are probed when it is opened, and the readable ones kept."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tokvid.input_pipeline.captions import check_captioned
from tokvid.input_pipeline.clips import VideoInfo
from tokvid.input_pipeline.source import Unreadable
from tokvid.input_pipeline.workers import Map, in_threads
from tokvid.types import VideoItem

log = logging.getLogger(__name__)


class _Probed(VideoItem, Protocol):
    """A video file; `CheckedSource` sets its `seconds` and `fps` from `probe`."""

    @property
    def place(self) -> Path:
        """Its name in messages."""
        ...

    def probe(self, full: bool) -> VideoInfo | str:
        """Its facts, or the reason why it cannot be read."""
        ...


Probed = TypeVar("Probed", bound=_Probed)


class CheckedSource(Sequence[Probed]):
    """The readable videos of a source: all are probed (with `full`, decoded).

    Those that are missing or cannot be read are logged, skipped and listed in `unreadable`, with the reason.

    Raises:
        UserError: too many cannot be read (see `Unreadable`), or (if `captioned`) the captions of all others are empty.
    """

    def __init__(
        self,
        where: str | Path,
        items: Sequence[Probed],
        *,
        max_unreadable: float,
        mapped: Map = in_threads,
        full: bool = False,
        captioned: bool = True,
    ):
        self.unreadable: list[tuple[Path, str]] = []
        self.items: list[Probed] = []
        for item, info in zip(items, mapped(functools.partial(_probe, full), items), strict=True):
            if isinstance(info, str):
                self.unreadable.append((item.place, info))
                log.warning("skipped: %s", info)
                continue
            for warning in info.warnings:
                log.warning("%s: %s", item.place, warning)
            self.items.append(dataclasses.replace(item, seconds=info.seconds, fps=info.fps))  # type: ignore[type-var]
        unreadable = Unreadable(max_unreadable, len(items), where)
        unreadable.good(len(self.items))
        unreadable.add(*(error for _, error in self.unreadable))
        if captioned:
            check_captioned((item.captions[0].text for item in self.items), where)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]


def _probe(full: bool, item: _Probed) -> VideoInfo | str:
    return item.probe(full)
