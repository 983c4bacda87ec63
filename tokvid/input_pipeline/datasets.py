"""Every dataset behind one door, and the clips that the tokenizer is trained on, cut from them by grain.

A new dataset is one function and one row of `SOURCES`. The order of samples is a function of the seed and the
step alone: never of threads, and a restored iterator goes on bit for bit. Windows of ready tokens are in
`windows.py`.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grain
import numpy as np

from tokvid.config import DataConfig
from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline import augment
from tokvid.input_pipeline.splits import SPLITS, Split, part_of
from tokvid.io.urls import is_url, local
from tokvid.types import Caption, TokenBatch, VideoBatch, VideoItem, VideoSource, joined

log = logging.getLogger(__name__)

MOST_TRIES = 100  # videos tried for one sample before giving up
FEWEST_SHUFFLED = 256  # indices in an epoch
CAPTIONS = ("captions.jsonl", "captions.csv")
MARKED = 4096  # bytes at the beginning, the middle and the end of a file that tell it from others of its size
READERS = 16  # threads that read them
FEWEST_READS = 50  # reads before which a share of unreadable videos says nothing


def _shapes(config: DataConfig, split: Split) -> VideoSource:
    from tokvid.shapes.drawing import ShapesDataset

    return ShapesDataset(config.videos, config.seed, held_out=split == "held_out")


def _mnist(config: DataConfig, split: Split) -> VideoSource:
    from tokvid.input_pipeline.mnist import MovingMnist

    return MovingMnist(config.path, "train" if split == "train" else "test", config.seed)


def _folder(config: DataConfig, split: Split, *, captioned: bool = True) -> VideoSource:
    from tokvid.input_pipeline.clips import FolderSource

    source = FolderSource(config.path, fit=config.fit, max_unreadable=config.max_unreadable, captioned=captioned)
    return part_of(source, config, split)


def _webdataset(config: DataConfig, split: Split) -> VideoSource:
    from tokvid.input_pipeline.webdataset import WebDataset

    return part_of(WebDataset(config.path, fit=config.fit, max_unreadable=config.max_unreadable), config, split)


def _records(config: DataConfig, split: Split) -> VideoSource:
    from tokvid.input_pipeline.records import RecordSource

    source = RecordSource(config.path, fit=config.fit)
    if source.fit != config.fit:
        log.warning("%s is to be read with fit %s, as it was written, not %s", config.path, source.fit, config.fit)
    stored = source.metadata.get("size")
    if stored and tuple(stored) != config.size:
        log.warning("%s holds frames of %dx%d, resized to %dx%d as they are read", config.path, *stored, *config.size)
    return part_of(source, config, split)


def _tfds(config: DataConfig, split: Split) -> VideoSource:
    from tokvid.input_pipeline.builders import open_prepared

    return open_prepared(config.path, split, fit=config.fit)


def _all_files(path: Path) -> Iterable[Path]:
    return [path] if path.is_file() else path.rglob("*")


def _digit_files(path: Path) -> Iterable[Path]:
    from tokvid.input_pipeline.mnist import digit_files

    return digit_files(path)


def _clip_files(path: Path) -> Iterable[Path]:
    """The captions, and each file that they name, whether it can be read or not."""
    from tokvid.input_pipeline.clips import FolderSource

    source = FolderSource(path, max_unreadable=1.0)
    captions = [path / name for name in CAPTIONS if (path / name).is_file()]
    return [*captions[:1], *(item.path for item in source.items), *(file for file, _ in source.unreadable)]


def _shards(path: Path) -> Iterable[Path]:
    from tokvid.input_pipeline.webdataset import shards_of

    return shards_of(path)


def _members(shard: Path) -> Iterable[tuple[int, int]]:
    from tokvid.input_pipeline.webdataset import members_of

    return members_of(shard)


def _record_files(path: Path) -> Iterable[Path]:
    return [path / "dataset.json", *path.glob("*.array_record")]


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of dataset: how a split of it is opened, and which files at its path decide what is in it.

    `parts` are the stretches of such a file, (first byte, bytes), that count as files of their own.
    """

    open: Callable[[DataConfig, Split], VideoSource]
    files: Callable[[Path], Iterable[Path]] = _all_files
    parts: Callable[[Path], Iterable[tuple[int, int]]] = lambda file: ()
    procedural: bool = False  # it defines itself what is held out


SOURCES: dict[str, Source] = {
    "shapes": Source(_shapes, procedural=True),  # procedural; held out: compositions never trained on
    "mnist": Source(
        _mnist, _digit_files, procedural=True
    ),  # path: the digits' file; held out: the published test split
    "folder": Source(_folder, _clip_files),  # path: a folder of clips with captions
    "webdataset": Source(_webdataset, _shards, _members),  # path: .tar shards: a folder, one, or a pattern
    "records": Source(_records, _record_files),  # path: what records.RecordWriter wrote
    "tfds": Source(_tfds),  # path: what a builder of builders.py prepared, which decided what is held out
}


ANY_FILES = Source(_folder)  # a folder of images without captions: all that is in it counts


def open_source(config: DataConfig, split: str = "train") -> VideoSource:
    """The videos of `config.source` that are in `split`, "train" or "held_out".

    Procedural sources hold out what they define; of stored ones, the last `config.held_out` videos are held
    out. UserError for an unknown source or split, and when the split is empty.
    """
    source = _source_of(config)
    if split not in SPLITS:
        raise UserError(did_you_mean(split, SPLITS, "split"))
    if is_url(config.path):
        config = dataclasses.replace(config, path=str(local(config.path)))
    return source.open(config, "held_out" if split == "held_out" else "train")


def holds_out(config: DataConfig) -> bool:
    """Whether there are videos that training never sees."""
    return config.held_out > 0 or _source_of(config).procedural


def _source_of(config: DataConfig) -> Source:
    if config.source not in SOURCES:
        raise UserError(did_you_mean(config.source, SOURCES, "data source"))
    return SOURCES[config.source]


def fingerprint(config: DataConfig) -> str:
    """16 hex digits that tell other data from that of before; nothing where no files are read.

    By the names and sizes of the files that the source names, of those in `images_path`, and by the beginning, the
    middle and the end of each, and of each part of it: nothing large is read.
    """
    places = [(local(config.path), _source_of(config))] if config.path else []
    places += [(Path(config.images_path), ANY_FILES)] if config.images and config.images_path else []
    files = [
        (path, file, source.parts)
        for path, source in places
        for file in sorted(source.files(path))
        if not file.is_dir()
    ]
    with ThreadPoolExecutor(READERS) as pool:
        marks = list(pool.map(lambda each: _mark(*each[1:]), files))
    told = [[os.path.relpath(file, path), *mark] for (path, file, _), mark in zip(files, marks, strict=True)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16] if config.path or told else ""


def _mark(path: Path, parts: Callable[[Path], Iterable[tuple[int, int]]]) -> tuple[int, str]:
    """A file's size, and the SHA-256 of beginning, middle and end of it and its parts; -1 where it can't be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for begin, length in ((0, size), *parts(path)):
                for start in (0, max(0, (length - MARKED) // 2), max(0, length - MARKED)):
                    file.seek(begin + start)
                    digest.update(file.read(min(MARKED, length)))
    except OSError:
        return -1, ""
    return size, digest.hexdigest()


def usable_rates(seconds: float, frames: int, fps: Sequence[float]) -> list[float]:
    """Those rates of `fps` at which a video of that length still shows `frames` frames, in rising order.

    A frame shows until the next one, so the last of the clip only has to begin before the video ends; an
    image is a clip of one.
    """
    return sorted(rate for rate in fps if frames == 1 or (frames - 1) / rate < seconds)


def captions_within(captions: tuple[Caption, ...], start: float, end: float) -> tuple[Caption, ...]:
    """Those in force from `start` to `end` (seconds), in seconds from `start` on; none only where there are none."""
    in_force = max((i for i, caption in enumerate(captions) if caption.start <= start), default=0)
    later = (caption for caption in captions[in_force + 1 :] if caption.start < end)
    return tuple(Caption(max(0.0, c.start - start), c.text) for c in (*captions[in_force : in_force + 1], *later))


class ClipCutter:
    """Cuts a clip from a video of `source`, or from another, drawn deterministically, if that is no use."""

    def __init__(self, source: VideoSource, config: DataConfig, encode: Callable[[str], np.ndarray] | None = None):
        """`encode` makes a caption's ids, int32 (L,); without, clips have none, (0,)."""
        if config.frames < 1 or not config.fps or not all(0 < rate < math.inf for rate in config.fps):
            raise UserError(
                f"frames {config.frames} at fps {config.fps}: both must be positive, with one rate at least"
            )
        augment.check(config)
        self.source, self.config = source, config
        self.encode = encode or (lambda caption: np.zeros(0, np.int32))
        self.reads = self.unreadable = self.too_short = 0
        self._lock = threading.Lock()

    def __call__(self, index: int, rng: np.random.Generator) -> VideoBatch:
        """A clip, its arrays without the batch dimension, no images. UserError if too many videos are no use."""
        for _ in range(MOST_TRIES):
            clip = self._try(index, rng)
            if clip is not None:
                return clip
            index = int(rng.integers(len(self.source)))
        fastest = max(self.config.fps)
        raise UserError(
            f"{MOST_TRIES} videos in a row gave no clip of {self.config.frames} frames, which takes more "
            f"than {(self.config.frames - 1) / fastest:.3g} s at {fastest:g} fps; train with fewer frames "
            "or at a higher rate"
        )

    def _try(self, index: int, rng: np.random.Generator) -> VideoBatch | None:
        config = self.config
        try:
            item = self.source[index]
            rates = usable_rates(item.seconds, config.frames, config.fps)
            if not rates:
                self._count_short(item)
                return None
            # CogVideo (Hong et al. 2022, arXiv:2205.15868) takes the lowest: a text should cover its action.
            fps = rates[0] if config.fps_rule == "lowest" else rates[rng.integers(len(rates))]
            length = (config.frames - 1) / fps
            start = rng.uniform(0, max(0.0, item.seconds - length))
            video_THWC = item.read(start, fps, config.frames, augment.magnified(config, rng))
        except (UserError, OSError) as error:
            self._count_unreadable(index, error)
            return None
        with self._lock:
            self.reads += 1
        captions = [caption.text for caption in captions_within(item.captions, start, start + length)]
        video_THWC = augment.augment(video_THWC, captions, config, rng)
        no_images = np.zeros((0, *config.size, 3), np.uint8)
        return VideoBatch(
            video_THWC, np.asarray(fps, np.float32), no_images, self.encode(captions[0] if captions else "")
        )

    def _count_short(self, item: VideoItem) -> None:
        with self._lock:
            self.too_short += 1
            first = self.too_short == 1
        if first:
            log.warning(
                "%s (%.3g s) is too short for %d frames at %g fps: such videos are passed over",
                item.key,
                item.seconds,
                self.config.frames,
                max(self.config.fps),
            )

    def _count_unreadable(self, index: int, error: Exception) -> None:
        with self._lock:
            self.reads += 1
            self.unreadable += 1
            reads, unreadable = self.reads, self.unreadable
        log.warning(
            "video %d cannot be read, another takes its place (%d of %d reads): %s",
            index,
            unreadable,
            reads,
            error,
        )
        if unreadable > self.config.max_unreadable * max(reads, FEWEST_READS):
            raise UserError(
                f"{unreadable} of {reads} videos cannot be read, more than max_unreadable "
                f"{self.config.max_unreadable:g} allows; the last: {error}"
            ) from error


class ImageAdder:
    """`clips`, and beside each clip `config.images` single frames of the folder `config.images_path` or of `source`."""

    def __init__(self, clips: ClipCutter, source: VideoSource, config: DataConfig):
        if config.images_path:
            images = dataclasses.replace(config, path=config.images_path, held_out=0)
            source = _folder(images, "train", captioned=False)
        self.clips, self.source, self.count = clips, source, config.images
        self.images = ClipCutter(source, dataclasses.replace(config, frames=1))

    def __call__(self, index: int, rng: np.random.Generator) -> VideoBatch:
        clip = self.clips(index, rng)
        drawn = rng.integers(len(self.source), size=self.count)
        return clip._replace(images=np.concatenate([self.images(int(image), rng).video for image in drawn]))


def clip_batches(
    config: DataConfig,
    batch: int,
    seed: int,
    *,
    split: str = "train",
    encode: Callable[[str], np.ndarray] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator[VideoBatch]:
    """Endless clips of `config.frames` frames, images beside them, and with `encode` their captions' ids: VideoBatch.

    `batch` is what this process gets a step; `shard` is (its index, the number of processes), and together
    they get `batch * shard[1]` samples that depend on the step alone. `get_state` and `set_state` of the
    iterator save and restore the place. UserError for an unknown source and when too many videos can't be
    read.
    """
    source = open_source(config, split)
    if not len(source):
        raise UserError(f"there are no videos in the split {split} of {config.source} {config.path}; give at least one")
    clips = ClipCutter(source, config, encode)
    samples = samples_of(len(source), seed).random_map(ImageAdder(clips, source, config) if config.images else clips)
    return batches(samples, batch, threads=config.threads, shard=shard)


def samples_of(videos: int, seed: int) -> grain.MapDataset[int]:
    """Indices of videos in a new order each epoch, for ever. `random_map` over it draws from `seed` too.

    Each comes once an epoch; those of a small set several times, for grain takes 19 ms to shuffle two.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative; use 0 or more")
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])  # grain takes 32 bits and refuses more
    copies = math.ceil(FEWEST_SHUFFLED / videos)
    return grain.MapDataset.range(videos).repeat(copies).seed(mixed).shuffle().repeat()


Sample = TypeVar("Sample", VideoBatch, TokenBatch)


def batches(
    samples: grain.MapDataset[Sample],
    batch: int,
    *,
    threads: int,
    shard: tuple[int, int],
    join: Callable[[Sequence[np.ndarray]], np.ndarray] = np.stack,
) -> grain.DatasetIterator[Sample]:
    """Joins samples (NamedTuples of arrays): process i of n gets the batch s*n + i of all at its step s."""
    if batch < 1 or not 0 <= shard[0] < shard[1] or threads < 0:
        raise UserError(
            f"batch {batch}, shard {shard}, threads {threads}: batch should be 1 or more, shard (i, n) with "
            "0 <= i < n, threads 0 or more"
        )
    # What is buffered are whole batches, so there are few.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)

    def together(samples: Sequence[Any]) -> Any:
        return joined(samples, join)

    mine = samples.batch(batch, drop_remainder=True, batch_fn=together)[shard[0] :: shard[1]]
    return iter(mine.to_iter_dataset(options))
