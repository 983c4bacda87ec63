"""Measures tokenizer quality: `tokvid evaluate reconstruction`."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tokvid.config import DataConfig
from tokvid.distributed import first
from tokvid.errors import UserError
from tokvid.evaluate.batches import BATCH, EVALUATION_SEED, measured, through
from tokvid.evaluate.clips import BEST
from tokvid.input_pipeline.loader import captions_within, usable_rates
from tokvid.input_pipeline.sources import holds_out, open_source
from tokvid.io.progress import progress
from tokvid.metrics.features import Features
from tokvid.metrics.video import METRICS, detail, frechet_distance, kernel_distance, psnr, ssim
from tokvid.sampling.codec import StreamDecoder, StreamEncoder
from tokvid.tokenizer.cvivit import latent_shape
from tokvid.tokenizer.quantizers import codes_of, kept_ids
from tokvid.types import Caption
from tokvid.weights import Loaded, shapes

LEAST_FOR_SSIM = 11  # pixels
SHOWN = 6  # clips on a sheet
SETS = ("real", "made", "shuffled")


def check_clips(samples: int, size: tuple[int, int]) -> None:
    """UserError for fewer than 4 clips, or frames (height, width) that are too small for SSIM."""
    if samples < 4 or min(size) < LEAST_FOR_SSIM:
        raise UserError(f"samples should be 4 or more, of {LEAST_FOR_SSIM} pixels or more, got {samples} of {size}")


def evaluate_reconstruction(
    tokenizer: Loaded,
    data: DataConfig,
    samples: int,
    seed: int,
    features: Features,
    show: Callable[..., object] = lambda rows, **how: None,
) -> dict[str, Any]:
    """Reconstructs held-out clips, compared with repeating their first frame.

    PSNR (dB), SSIM, L1 and error of frame-to-frame changes (grey levels), fine detail relative to the real clips, bits
    per pixel, codes used. Distances between the sets of clips by `features`, with two references: between two halves of
    the real clips, and between these and their shuffled frames. `show` gets the first clips as arguments for
    `contact_sheet`. `data.size` may be another than that of the tokenizer's training; UserError where its tokens don't
    divide it. If the data holds nothing out (and is not procedural), training videos are used, as `split` says.
    """
    check_clips(samples, data.size)
    latent_shape(tokenizer.config, 1, *data.size)
    features.check(data.frames)
    split = split_of(data)
    rng = np.random.default_rng([EVALUATION_SEED, seed])
    batch = min(BATCH, samples)

    def drawn() -> Iterator[tuple[tuple[list[np.ndarray], np.ndarray], int]]:
        """Clips, and an order to shuffle their frames."""
        clips = (clip_THWC for clip_THWC, _ in some_clips(data, split, samples, rng))
        while truths := list(itertools.islice(clips, batch)):
            yield (truths, rng.permutation(data.frames)), len(truths)

    with progress("evaluate reconstruction", samples, "clips", quiet=not first()) as advance:
        lists = measured(drawn(), lambda clips: _measure(tokenizer, *clips, batch, features), advance)
    count = len(lists["psnr"])
    if count < 4:
        raise UserError(f"only {count} {split} videos have {data.frames} frames at any of {data.fps} fps; 4 are needed")
    shown, counts_V = lists.pop("shown")[: 2 * SHOWN], np.sum(lists.pop("counts"), axis=0)
    sets = {name: np.concatenate(lists.pop(f"features of {name}")) for name in SETS}
    show(shown, captions=["truth", "made"] * (len(shown) // 2))
    share_V = counts_V[counts_V > 0] / counts_V.sum()
    return {
        **{name: float(np.mean(values)) for name, values in lists.items() if name != "detail_of_truth"},
        "detail": float(np.sum(lists["detail"]) / max(np.sum(lists["detail_of_truth"]), 1e-9)),
        **_distances(sets, features),
        "features": f"{features.name} {features.mark}",
        "bits_per_pixel": counts_V.sum() * math.log2(len(counts_V)) / (count * data.frames * math.prod(data.size)),
        "codes_used": float(np.mean(counts_V > 0)),
        "perplexity": float(np.exp(-np.sum(share_V * np.log(share_V)))),
        "split": split,
        "samples": count,
        "seed": seed,
        "size": list(data.size),
        "frames": data.frames,
        "later_codes": tokenizer.config.later_codes[0],
        "weights": tokenizer.about["fingerprint"],
    }


def _measure(
    tokenizer: Loaded, truths: list[np.ndarray], shuffled_T: np.ndarray, batch: int, features: Features
) -> dict[str, list[Any]]:
    """The figures of each clip, the features of all SETS, the uses of each code, and some clips for a sheet."""
    filled = np.stack(truths + truths[-1:] * (batch - len(truths)))  # the last batch isn't compiled anew
    rebuilt, ids = through(tokenizer, filled)
    lists = collections.defaultdict[str, list[Any]](list)
    for name, videos in zip(SETS, (filled, rebuilt, filled[:, shuffled_T]), strict=True):
        lists[f"features of {name}"].append(features.extract(videos)[: len(truths)])
    for truth_THWC, rebuilt_THWC in zip(truths, rebuilt, strict=False):
        for name, value in _compare(truth_THWC, rebuilt_THWC).items():
            lists[name].append(value)
        lists["shown"] += [truth_THWC, rebuilt_THWC]
    used = kept_ids(tokenizer.config, ids[: len(truths)])
    lists["counts"].append(np.bincount(used, minlength=codes_of(tokenizer.config).vocabulary))
    lists["shown"] = lists["shown"][: 2 * SHOWN]
    return lists


class Reconstruction:
    """One video through the tokenizer and back, measured as it is streamed: memory stays flat for any length."""

    def __init__(self, tokenizer: Loaded, size: tuple[int, int]):
        """`size`: (height, width) of its frames in pixels. UserError where tokens don't divide it."""
        _, rows, columns = latent_shape(tokenizer.config, 1, *size)
        self._encoder, self._decoder = StreamEncoder(tokenizer, 1, size), StreamDecoder(tokenizer, 1, rows, columns)
        self._config, self._size = tokenizer.config, size
        self._psnrs: list[float] = []
        self._ssims: list[float] = []
        self._waiting: list[np.ndarray] = []  # true frames that are not decoded yet
        self._tokens, self._codes = 0, 0
        self.complete = False  # whether all frames have been through

    def frames(self, truth: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The reconstructed frames of all true ones, uint8 (H, W, 3)."""
        for truth_HWC in truth:
            self._waiting.append(truth_HWC)
            yield from self._through(truth_HWC)
        while self._waiting:  # the last latent frame is filled up with the last frame
            yield from self._through(self._waiting[-1])
        self.complete = True

    def _through(self, truth_HWC: np.ndarray) -> Iterator[np.ndarray]:
        """The frames that come out when this one goes in."""
        ids_BTHWQ = self._encoder.feed(truth_HWC[None, None])
        self._codes += kept_ids(self._config, ids_BTHWQ, first=not self._tokens).size
        self._tokens += ids_BTHWQ[..., 0].size
        for made_HWC in self._decoder.feed(ids_BTHWQ)[0][: len(self._waiting)]:
            truth_1HWC, made_1HWC = self._waiting.pop(0)[None], made_HWC[None]
            self._psnrs.append(min(psnr(truth_1HWC, made_1HWC), BEST))
            if min(self._size) >= LEAST_FOR_SSIM:
                self._ssims.append(ssim(truth_1HWC, made_1HWC))
            yield made_HWC

    def figures(self) -> dict[str, Any]:
        """PSNR (dB) and SSIM, means of the frames so far; how many frames and tokens; bits per pixel."""
        pixels = len(self._psnrs) * math.prod(self._size)
        return {
            "psnr": round(float(np.mean(self._psnrs)), 4),
            "ssim": round(float(np.mean(self._ssims)), 5) if self._ssims else None,
            "frames": len(self._psnrs),
            "tokens": self._tokens,
            "bits_per_pixel": round(self._codes * math.log2(codes_of(self._config).vocabulary) / pixels, 6),
            "size": list(self._size),
        }


def with_later_codes(tokenizer: Loaded, later_codes: int) -> Loaded:
    """The tokenizer with so many sub-codes in latent frames after the first, 0 for all.

    UserError where it knows only one number.
    """
    config = tokenizer.config
    if not any(config.later_codes):
        raise UserError("these weights keep all sub-codes in every latent frame; leave out --later-codes")
    config = dataclasses.replace(config, later_codes=(later_codes, *config.later_codes))
    return tokenizer._replace(config=config, graph=shapes("tokenizer", config)[0])


def split_of(data: DataConfig) -> str:
    """The split to measure on: held-out videos if there are any."""
    return "held_out" if holds_out(data) else "train"


def _compare(truth_THWC: np.ndarray, rebuilt_THWC: np.ndarray) -> dict[str, float]:
    """The figures of one clip, and of repeating its first frame."""
    repeated_THWC = np.repeat(truth_THWC[:1], len(truth_THWC), axis=0)
    figures = {}
    for prefix, video_THWC in (("", rebuilt_THWC), ("repeat_", repeated_THWC)):
        for name, metric in METRICS.items():
            figures[prefix + name] = min(metric(truth_THWC, video_THWC), BEST)
    difference = truth_THWC.astype(np.float32) - rebuilt_THWC
    return figures | {
        "l1": float(np.abs(difference).mean()),
        "detail": detail(rebuilt_THWC),
        "detail_of_truth": detail(truth_THWC),
    }


def _distances(seen: dict[str, np.ndarray], features: Features) -> dict[str, float]:
    real_ND, half = seen["real"], len(seen["real"]) // 2
    figures = {}
    for name, distance in ((features.frechet, frechet_distance), ("kernel", kernel_distance)):
        figures[name] = distance(real_ND, seen["made"])
        figures[f"{name}_real_halves"] = distance(real_ND[:half], real_ND[half:])
        figures[f"{name}_shuffled"] = distance(real_ND, seen["shuffled"])
    return figures


def some_clips(
    data: DataConfig, split: str, samples: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, tuple[Caption, ...]]]:
    """Up to `samples` readable clips of different videos, at random times and rates, with their captions.

    UserError, the last one, where none is readable.
    """
    source = open_source(data, split)
    count, failed = 0, None
    for index in rng.permutation(min(len(source), 10 * samples + 1000)):
        if count == samples:
            break
        try:
            item = source[int(index)]
            if not (rates := usable_rates(item.seconds, data.frames, data.fps)):
                continue
            fps = float(rng.choice(rates))
            start = float(rng.uniform(0, max(0.0, item.seconds - data.frames / fps)))
            clip_THWC = item.read(start, fps, data.frames, data.size)
        except UserError as error:
            failed = error
            continue
        count += 1
        yield clip_THWC, captions_within(item.captions, start, start + data.frames / fps)
    if failed is not None and not count:
        raise failed
