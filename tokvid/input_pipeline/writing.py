"""Datasets written: any source as records, or by one of our builders as a TensorFlow Dataset."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokvid.errors import UserError
from tokvid.input_pipeline.records import RecordWriter, stored
from tokvid.input_pipeline.source import Unreadable
from tokvid.io.progress import progress
from tokvid.types import VideoSource

log = logging.getLogger(__name__)


class Frames(NamedTuple):
    """How frames are stored: (height, width) in pixels, and how many a second."""

    size: tuple[int, int] = (64, 64)
    fps: float = 8.0


def write_records(
    folder: Path,
    source: VideoSource,
    frames: Frames | None,
    about: Mapping[str, Any],
    max_unreadable: float | None = None,
) -> int:
    """Stores all videos of `source` as a dataset in `folder`; returns how many.

    As `frames`, or (None) files as they are. `about` goes into dataset.json. Up to a share `max_unreadable` of damaged
    videos are skipped, each with a warning; beyond that, or where it is None, damage is a UserError.
    """
    if frames is not None:
        about = {**about, **frames._asdict()}
    size, fps = frames or Frames()
    unreadable = Unreadable(max_unreadable or 0.0, len(source))
    with (
        RecordWriter(folder, "video" if frames is None else "frames", about) as writer,
        progress("data", len(source), "videos") as advance,
    ):
        for index in range(len(source)):
            try:
                record = stored(source[index], fps=fps, size=size, as_frames=frames is not None)
            except UserError as error:  # damaged where only decoding finds it
                if max_unreadable is None:
                    raise
                unreadable.add(error)
                log.warning("skipped: %s", error)
            else:
                unreadable.good()
                writer.write(record)
            advance()
    return len(source) - unreadable.count


def prepare(builder: Any) -> tuple[dict[str, int], bool]:
    """Writes what a builder of `builders` describes; how many videos each split has, and whether it was there before.

    The last video of each split is read back.
    """
    from tokvid.input_pipeline.builders import open_prepared  # needs TFDS

    before = Path(builder.data_path).exists()
    builder.download_and_prepare()
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    for name, count in counts.items():
        if count:
            open_prepared(builder.data_path, name)[count - 1]
    return counts, before
