"""The data loader of the tokenizer: clips of a source's videos, with images beside them, batched by grain.

The order of samples depends on the seed and the step alone, never on threads, and a restored iterator continues with
the same samples. Windows of tokens are in `train/windows.py`.
"""

import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grain
import numpy as np

from tokvid.config import DataConfig
from tokvid.errors import UserError
from tokvid.input_pipeline import augment
from tokvid.input_pipeline.source import Unreadable
from tokvid.input_pipeline.sources import open_source
from tokvid.tasks.conditions import Condition
from tokvid.types import Caption, TokenBatch, VideoBatch, VideoItem, VideoSource, joined

log = logging.getLogger(__name__)

MOST_TRIES = 100  # videos tried for one sample before giving up
FEWEST_SHUFFLED = 256  # indices in an epoch


def usable_rates(seconds: float, frames: int, fps: Sequence[float]) -> list[float]:
    """The rates of `fps` at which a video of `seconds` has `frames` frames, in rising order.

    A frame shows until the next one, so the clip's last one only has to begin before the video ends; an image is a clip
    of one.
    """
    return sorted(rate for rate in fps if frames == 1 or (frames - 1) / rate < seconds)


def captions_within(captions: tuple[Caption, ...], start: float, end: float) -> tuple[Caption, ...]:
    """The captions in force from `start` to `end` (seconds), with their starts relative to `start`."""
    in_force = max((i for i, caption in enumerate(captions) if caption.start <= start), default=0)
    later = (caption for caption in captions[in_force + 1 :] if caption.start < end)
    return tuple(Caption(max(0.0, c.start - start), c.text) for c in (*captions[in_force : in_force + 1], *later))


class ClipCutter:
    """Cuts a clip from a video of `source`, or from another, drawn deterministically, where that cannot be used."""

    def __init__(
        self,
        source: VideoSource,
        config: DataConfig,
        encode: Callable[[str], np.ndarray] | None = None,
        conditions: Sequence[Condition] = (),
    ):
        """`encode` turns a caption into ids, int32 (L,); without it, clips have none, (0,).

        A share of the clips, `config.conditions`, are shown as one of `conditions` instead.
        """
        if config.frames < 1 or not config.fps or not all(0 < rate < math.inf for rate in config.fps):
            raise UserError(
                f"frames {config.frames} at fps {config.fps}: both must be positive, with one rate at least"
            )
        augment.check(config)
        self.source, self.config = source, config
        self.encode = encode or (lambda caption: np.zeros(0, np.int32))
        self.conditions = conditions if config.conditions else ()
        self.unreadable = Unreadable(config.max_unreadable)
        self.too_short = 0
        self._lock = threading.Lock()

    def __call__(self, index: int, rng: np.random.Generator) -> VideoBatch:
        """A clip without the batch dimension and without images. UserError if too many videos cannot be used."""
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
            # CogVideo (Hong et al. 2022, arXiv:2205.15868) takes the lowest rate: a clip should show the caption's
            # whole action.
            fps = rates[0] if config.fps_rule == "lowest" else rates[rng.integers(len(rates))]
            length = (config.frames - 1) / fps
            start = rng.uniform(0, max(0.0, item.seconds - length))
            video_THWC = item.read(start, fps, config.frames, augment.magnified(config, rng))
        except (UserError, OSError) as error:
            self.unreadable.add(error)
            so_far = f"{self.unreadable.count} of {self.unreadable.read} reads"
            log.warning("video %d cannot be read, another takes its place (%s): %s", index, so_far, error)
            return None
        self.unreadable.good()
        captions = [caption.text for caption in captions_within(item.captions, start, start + length)]
        video_THWC = augment.augment(video_THWC, captions, config, rng)
        if self.conditions and rng.random() < config.conditions:
            shown = self.conditions[int(rng.integers(len(self.conditions)))]
            video_THWC = shown.disguised(video_THWC)
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


class ImageAdder:
    """Adds to each clip `config.images` single frames of the folder `config.images_path` or of `source`."""

    def __init__(self, clips: ClipCutter, source: VideoSource, config: DataConfig):
        if config.images_path:
            from tokvid.input_pipeline.folder import FolderSource  # needs PyAV

            source = FolderSource(
                config.images_path, fit=config.fit, max_unreadable=config.max_unreadable, captioned=False
            )
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
    conditions: Sequence[Condition] = (),
    shard: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator[VideoBatch]:
    """Endless batches of clips of `config.frames` frames, with images and, with `encode`, their captions' ids.

    A share of the clips, `config.conditions`, is shown as one of `conditions` instead.

    `batch` is the number of samples of this process; `shard` is (its index, the number of processes). All processes
    together get `batch * shard[1]` samples, which depend on the step alone. The iterator's `get_state` and `set_state`
    save and restore its place. UserError for an unknown source, and when too many videos cannot be read.
    """
    source = open_source(config, split)
    if not len(source):
        raise UserError(f"there are no videos in the split {split} of {config.source} {config.path}; give at least one")
    clips = ClipCutter(source, config, encode, conditions)
    samples = samples_of(len(source), seed).random_map(ImageAdder(clips, source, config) if config.images else clips)
    return batches(samples, batch, threads=config.threads, shard=shard)


def samples_of(videos: int, seed: int) -> grain.MapDataset[int]:
    """Endless indices of videos, in a new order each epoch. A `random_map` over it also draws from `seed`.

    Each index comes once an epoch; in a small set, several times, because grain takes 19 ms for each shuffle.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative; use 0 or more")
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])  # grain's seeds have 32 bits
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
    """Joins samples (NamedTuples of arrays) to batches: at its step s, process i of n gets batch s*n + i."""
    if batch < 1 or not 0 <= shard[0] < shard[1] or threads < 0:
        raise UserError(
            f"batch {batch}, shard {shard}, threads {threads}: batch should be 1 or more, shard (i, n) with "
            "0 <= i < n, threads 0 or more"
        )
    # The buffer holds whole batches, so it has few.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)

    def together(samples: Sequence[Any]) -> Any:
        return joined(samples, join)

    mine = samples.batch(batch, drop_remainder=True, batch_fn=together)[shard[0] :: shard[1]]
    return iter(mine.to_iter_dataset(options))
