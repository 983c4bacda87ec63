"""Writes datasets: any source as records, or a builder's data as a TensorFlow Dataset."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokvid.errors import UserError
from tokvid.input_pipeline.checked import CheckedSource
from tokvid.input_pipeline.records import RecordWriter
from tokvid.input_pipeline.source import Unreadable
from tokvid.input_pipeline.stored import Kind, StoredVideo, stored
from tokvid.input_pipeline.workers import Map
from tokvid.io.progress import progress
from tokvid.types import VideoSource

log = logging.getLogger(__name__)

LONG = 64 << 20  # bytes of a video's frames: reading them takes a quarter of a second


class Frames(NamedTuple):
    """The size (height, width) in pixels and the rate of stored frames."""

    size: tuple[int, int] = (64, 64)
    fps: float = 8.0


def write_records(
    folder: Path,
    source: VideoSource,
    frames: Frames | None,
    about: Mapping[str, Any],
    max_unreadable: float | None = None,
    mapped: Map = map,
) -> int:
    """Stores all videos of `source` as a dataset in `folder`; returns their number.

    With `frames`, decoded, else as they are: files, or the source's `kind` of record. `about` goes into dataset.json.
    Up to the share `max_unreadable` of damaged videos are skipped, each with a warning; beyond it, or where it is None,
    damage is a UserError. `mapped` reads the videos, one after another by default.
    """
    if frames is not None:
        about = {**about, **frames._asdict()}
    kind: Kind = getattr(source, "kind", "video") if frames is None else "frames"
    unreadable = Unreadable(max_unreadable or 0.0, len(source))
    with (
        RecordWriter(folder, kind, about) as writer,
        progress("data", len(source), "videos") as advance,
    ):
        for record in mapped(*_work(source, frames)):
            if isinstance(record, UserError):  # damage that only decoding finds
                if max_unreadable is None:
                    raise record
                unreadable.add(record)
                log.warning("skipped: %s", record)
            else:
                unreadable.good()
                _warn_of_length(record)
                writer.write(record)
            advance()
    return len(source) - unreadable.count


def _warn_of_length(record: StoredVideo) -> None:
    if record.frames is not None and record.frames.nbytes > LONG:
        log.warning(
            "%s: %.0f s of frames are one record, of which each clip reads all; cut long videos first, as with "
            "`tokvid data curate`, or leave out --size and --fps",
            record.key,
            record.seconds,
        )


def _work(source: VideoSource, frames: Frames | None) -> tuple[Callable[[Any], StoredVideo | UserError], Sequence[Any]]:
    """The function that makes a record, and its arguments: files themselves, which may go to another machine."""
    if isinstance(source, CheckedSource):
        return functools.partial(_stored, None, frames), source.items
    return functools.partial(_stored, source, frames), range(len(source))


def _stored(source: VideoSource | None, frames: Frames | None, item: Any) -> StoredVideo | UserError:
    size, fps = frames or Frames()
    try:
        video = item if source is None else source[item]
        return stored(video, fps=fps, size=size, as_frames=frames is not None)
    except UserError as error:
        return error


def prepare(builder: Any) -> tuple[dict[str, int], bool]:
    """Writes the dataset of a builder; returns the number of videos in each split, and whether it existed before.

    The last video of each split is read back as a check.
    """
    from tokvid.input_pipeline.builders import open_prepared  # needs TFDS

    before = Path(builder.data_path).exists()
    builder.download_and_prepare()
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    for name, count in counts.items():
        if count:
            open_prepared(builder.data_path, name)[count - 1]
    return counts, before
