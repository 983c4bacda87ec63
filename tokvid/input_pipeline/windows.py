"""Windows of ready tokens for the transformer: which part of a video, how much is known, under which text."""

import dataclasses
import functools
import typing
from pathlib import Path
from typing import Literal, NamedTuple

import grain
import numpy as np

from tokvid.config import LayoutConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.flops import windows_in_a_row
from tokvid.input_pipeline.loader import batches, samples_of
from tokvid.input_pipeline.records import RecordSource, StoredVideo
from tokvid.input_pipeline.text import TextModel
from tokvid.types import Caption, TokenBatch, tokens_at_once

Task = Literal["text_to_video", "image_to_video", "continuation", "infilling", "interpolation"]
TASKS: tuple[Task, ...] = typing.get_args(Task)
MOST_KNOWN = 3  # latent frames that a continuation starts from
AT_SWITCH = 0.25  # share of continuations, where a video has switches, whose known part ends at one
LEAST_SHARE = 0.75  # of the generated latent frames that the text must hold for
STRICT_TRIES = 100  # records tried for one sample as it should be, before any rate and share will do
MOST_TRIES = 200


class Kind(NamedTuple):
    """What all windows of a batch have in common: their latent frames, and whether they are interpolations."""

    frames: int
    interpolates: bool


class Window(NamedTuple):
    """Tokens (T, H, W) of latent frames from `start` on; those in `known` (T,) are given, `text` tells the rest.

    An interpolation has coarse tokens too, padded with -1, from coarse latent frame `coarse_start` on; others none.
    """

    tokens: np.ndarray
    start: int
    known: np.ndarray
    text: str
    coarse: np.ndarray
    coarse_start: int = 0


def captions_in_force(captions: tuple[Caption, ...], latent_frames: int, fps: float, temporal_patch: int) -> np.ndarray:
    """Which caption each latent frame of a video shows, by the middle of its frames: int64 (T,).

    Latent frame 0 is frame 0; latent frame j >= 1 is the frames (j-1)p + 1 up to jp, for temporal patch p.
    """
    middle_T = (np.arange(latent_frames) - 1) * temporal_patch + (temporal_patch + 1) / 2
    middle_T[:1] = 0
    starts = [caption.start for caption in captions]
    return np.maximum(np.searchsorted(starts, middle_T / fps + 1e-6, side="right") - 1, 0)


def cut_window(
    video: StoredVideo,
    task: Task,
    rng: np.random.Generator,
    *,
    frames: int,
    temporal_patch: int,
    least_share: float = LEAST_SHARE,
) -> Window | None:
    """A window of `frames` latent frames for `task` from a video's tokens, or None where none fits.

        text_to_video    start 0, known 0           . . . . . .
        image_to_video   start 0, known 1           K . . . . .
        continuation     start s, known 1 to 3      K K . . . .    (where s = 0, not 1: that is an image)
        interpolation    start s, known 0 to 3      K K . . . .    (where s > 0, not 0), and a coarse clip
        infilling        start s, some known        K . . K . .

    The text is the caption in force at the first latent frame to generate, and holds for `least_share` of
    them at least; known ones may show the caption before. Known parts that end right where a caption begins
    teach to follow a new prompt, so they are drawn more often than chance would (`AT_SWITCH`).
    """
    tokens_THWQ = video.tokens
    if tokens_THWQ is None:
        raise UserError(f"{video.key} holds no tokens; make a token cache of the videos first")
    shown_T = captions_in_force(video.captions, len(tokens_THWQ), video.fps, temporal_patch)
    start_N, known_N = _placements(task, len(tokens_THWQ), frames)
    first_N = start_N + known_N  # to be generated
    ends_T = np.searchsorted(shown_T, shown_T, side="right")  # where each latent frame's caption gives way
    told_N = np.minimum(ends_T[first_N], start_N + frames) - first_N
    fits_N = told_N >= least_share * (frames - known_N)
    if task == "interpolation":
        if video.coarse is None:
            raise UserError(f"{video.key} has no coarse tokens; set tokens.coarse_factor and tokenize again")
        fits_N &= -(-(start_N + frames - 1) // video.coarse_factor) < len(video.coarse)
    if not fits_N.any():
        return None
    if task == "continuation":
        at_switch_N = fits_N & (shown_T[first_N] != shown_T[first_N - 1])
        if at_switch_N.any() and rng.random() < AT_SWITCH:
            fits_N = at_switch_N
    chosen = rng.choice(np.flatnonzero(fits_N))
    start, known_T = int(start_N[chosen]), np.arange(frames) < known_N[chosen]
    if task == "infilling":
        known_T = rng.permutation(np.arange(frames) < rng.integers(1, frames))
    first = start + int(known_N[chosen])
    nothing = np.zeros((0, *tokens_THWQ.shape[1:]), np.int32)
    window = Window(tokens_THWQ[start : start + frames], start, known_T, video.captions[shown_T[first]].text, nothing)
    if task != "interpolation" or video.coarse is None:
        return window
    coarse_start, count = coarse_span(first, frames, video.coarse_factor)
    coarse_THWQ = np.full((count, *tokens_THWQ.shape[1:]), -1, np.int32)
    there_THWQ = video.coarse[coarse_start : coarse_start + count]
    coarse_THWQ[: len(there_THWQ)] = there_THWQ
    return window._replace(coarse=coarse_THWQ, coarse_start=coarse_start)


def coarse_span(first: int, frames: int, factor: int) -> tuple[int, int]:
    """Which coarse latent frames a window sees: the number of the first, and how many.

    `first` is the first fine latent frame that the window of `frames` generates; fine latent frame j ends when coarse
    latent frame j / `factor` does. The one before is seen too: it tells what moves. For factor 2, windows of 4::

        fine     0   1   2   3 | 4   5     first 4 sees coarse 1, 2, 3
        coarse   0       1       2       3
    """
    return max(0, -(-first // factor) - 1), 1 + -(-frames // factor)


def window_lengths(layouts: LayoutConfig, transformer: TransformerConfig) -> list[int]:
    """Latent frames of the windows that are trained; UserError where there is none, or one longer than a whole one."""
    whole = transformer.latent[0]
    if not layouts.lengths or not all(0 <= frames <= whole for frames in layouts.lengths):
        raise UserError(f"layouts.lengths {layouts.lengths} should be 1 to {whole} latent frames, or 0 for all {whole}")
    return [frames or whole for frames in layouts.lengths]


@functools.lru_cache(maxsize=1000)
def _placements(task: Task, latent_frames: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Every start and known that `task` allows, int64 (N,) each."""
    pairs: list[tuple[int, int]] = []
    if task == "text_to_video":
        pairs = [(0, 0)]
    elif task == "image_to_video" and frames > 1:
        pairs = [(0, 1)]
    elif task == "infilling" and frames > 1:  # the text is to hold for all of it
        pairs = [(start, 0) for start in range(latent_frames - frames + 1)]
    elif task in ("continuation", "interpolation"):
        least = 2 if task == "continuation" else 0  # of what is known of a video's start
        pairs = [
            (start, known)
            for start in range(latent_frames - frames + 1)
            for known in range(1 if start else least, min(MOST_KNOWN, frames - 1) + 1)
        ]
    if latent_frames < frames:
        pairs = []
    start_N, known_N = np.array(pairs, np.int64).reshape(-1, 2).T
    return start_N, known_N


def token_batches(
    cache_path: str | Path,
    layouts: LayoutConfig,
    transformer: TransformerConfig,
    batch: int,
    seed: int,
    *,
    text_model: TextModel | None = None,
    threads: int = 2,
    shard: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator[TokenBatch]:
    """Endless windows of `transformer.latent` from a token cache, in tasks mixed as `layouts`: TokenBatch.

    A batch of shorter windows (`layouts.lengths`) has so many more that it fills as many slots: three images, say,
    where a whole window would be. So nothing is padded, and no mask need keep samples of one sequence apart.
    The cache is records of kind "tokens"; without `text_model`, the `text.model` beside their folder is
    taken. `batch`, `seed`, `shard`, and what the iterator saves and restores, as in `loader.clip_batches`.
    UserError when cache, text model and the transformer's config don't belong together, with both values.
    """
    source = RecordSource(cache_path)
    text_model = text_model or TextModel.load(source.path.parent / "text.model")
    if source.metadata.get("text_model", text_model.fingerprint) != text_model.fingerprint:
        raise UserError(
            f"{cache_path} was made with text model {source.metadata['text_model']}, this one is "
            f"{text_model.fingerprint}; use that one or make the cache again"
        )
    if text_model.vocabulary > transformer.text_vocabulary:
        raise UserError(
            f"the text model has {text_model.vocabulary} ids, the transformer text_vocabulary "
            f"{transformer.text_vocabulary}; use the text model it is made for"
        )
    if source.kind != "tokens" or not len(source):
        raise UserError(
            f"{cache_path} holds {len(source)} records of kind {source.kind!r}, not tokens; "
            "make a token cache of the videos first"
        )
    patch = source.metadata.get("temporal_patch", transformer.temporal_patch)
    if patch != transformer.temporal_patch:
        raise UserError(
            f"{cache_path} was made with temporal_patch {patch}, the transformer has "
            f"{transformer.temporal_patch}; use one tokenizer for both"
        )
    sampler = WindowSampler(source, layouts, transformer, text_model)

    def kind(number: int) -> Kind:
        """Of the batch, of all processes together, that sample `number` is in."""
        return sampler.kind(np.random.default_rng([seed, number // (batch * shard[1])]))

    samples = samples_of(len(source), seed).map_with_index(lambda number, index: (index, kind(number)))
    return batches(samples.random_map(sampler), batch, threads=threads, shard=shard, join=np.concatenate)


class WindowSampler:
    """Draws a task and cuts a window for it, from the video given or, where that has none, from another one.

    Interpolations have a coarse clip, which makes a sequence longer, so they come in batches of their own, and so do
    windows of each length.
    """

    def __init__(
        self,
        source: RecordSource,
        layouts: LayoutConfig,
        transformer: TransformerConfig,
        text_model: TextModel,
    ):
        weights = np.array([getattr(layouts, task) for task in TASKS], np.float64)
        if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
            raise UserError(f"layouts {dataclasses.asdict(layouts)}: weights should be 0 or more, one of them above 0")
        for name in ("text_dropout", "corruption"):
            if not 0 <= (share := getattr(layouts, name)) <= 1:
                raise UserError(f"layouts.{name} should be 0 to 1, got {share}")
        if not layouts.rows:
            raise UserError("layouts.rows is empty; give 0 (token by token), or how many rows are drawn at once")
        self.lengths = window_lengths(layouts, transformer)
        self.source, self.layouts, self.transformer = source, layouts, transformer
        self.steps = [tokens_at_once(rows, transformer.latent) for rows in layouts.rows]
        self.interpolations = float(weights[-1] / weights.sum())
        self.shares = weights[:-1] / max(weights[:-1].sum(), 1e-9)
        self.factor = int(source.metadata.get("tokens", {}).get("coarse_factor", 1))
        if self.interpolations and self.factor < 2:
            raise UserError(
                f"layouts.interpolation {layouts.interpolation} needs coarse tokens, which {source.path} lacks; "
                "set tokens.coarse_factor to 2 or more and make the token cache again"
            )
        self.encode = text_model.encoder(transformer.text_length)  # once a caption, not once a step

    def kind(self, rng: np.random.Generator) -> Kind:
        """That of a batch."""
        if rng.random() < self.interpolations:
            return Kind(self.transformer.latent[0], True)
        return Kind(int(rng.choice(self.lengths)), False)

    def __call__(self, drawn: tuple[int, Kind], rng: np.random.Generator) -> TokenBatch:
        """One window of the video and kind `drawn`, and of others where windows are short: as many as fill a row."""
        index, kind = drawn
        count = 1 if kind.interpolates else windows_in_a_row(self.transformer, kind.frames)
        videos = [index, *rng.integers(len(self.source), size=count - 1).tolist()]
        windows = [self._window(video, kind, rng) for video in videos]
        return TokenBatch(*map(np.stack, zip(*windows, strict=True)))

    def _window(self, index: int, kind: Kind, rng: np.random.Generator) -> TokenBatch:
        """One window, its arrays without the batch dimension, of video `index` if it has such a one."""
        # Task and rate are kept when the video is replaced: were they drawn again with each, those that
        # fit seldom (at a slow rate few first captions hold for a window) would hardly be trained.
        task = "interpolation" if kind.interpolates else TASKS[rng.choice(len(self.shares), p=self.shares)]
        if kind.frames == 1:  # nothing else can be asked of an image
            task = "text_to_video"
        patch = self.transformer.temporal_patch
        video = self.source[index]
        fps = video.fps
        for tried in range(MOST_TRIES):
            strict = tried < STRICT_TRIES
            if video.fps == fps or not strict:
                least_share = LEAST_SHARE if strict else 0.0
                window = cut_window(video, task, rng, frames=kind.frames, temporal_patch=patch, least_share=least_share)
                if window is not None:
                    return self._sample(video, window, rng)
            video = self.source[int(rng.integers(len(self.source)))]
        raise UserError(
            f"{MOST_TRIES} videos of {self.source.path} had no window of {kind.frames} latent frames for {task}; "
            "cache longer videos, or use a smaller window (transformer.latent, layouts.lengths)"
        )

    def _sample(self, video: StoredVideo, window: Window, rng: np.random.Generator) -> TokenBatch:
        tokens_THWQ = window.tokens.astype(np.int32)
        T, H, W, Q = tokens_THWQ.shape
        if (*self.transformer.latent[1:], self.transformer.subcodes) != (H, W, Q):
            raise UserError(
                f"{video.key} has {H}x{W} tokens of {Q} sub-codes a latent frame, the transformer has latent "
                f"{self.transformer.latent} and subcodes {self.transformer.subcodes}; use one tokenizer and size"
            )
        # An id out of range would be clamped on the device and train on noise.
        least, most = tokens_THWQ.min(), max(tokens_THWQ.max(), window.coarse.max(initial=0))
        if not 0 <= least <= most < self.transformer.vocabulary:
            raise UserError(
                f"{video.key} has tokens {least} to {most}, the transformer's "
                f"vocabulary is {self.transformer.vocabulary}; use one tokenizer for both"
            )
        dropped = rng.random() < self.layouts.text_dropout
        step = self.steps[rng.integers(len(self.steps))]
        in_rounds = step == H * W
        return TokenBatch(
            tokens=tokens_THWQ,
            start=np.asarray(window.start, np.int32),
            fps=np.asarray(video.fps, np.float32),
            text=self.encode("" if dropped else window.text),
            known=window.known,
            step=np.asarray(step, np.int32),
            drawn=_drawn(window.known, (T, H, W), rng) if in_rounds else np.zeros((T, H, W), bool),
            coarse=window.coarse,
            coarse_start=np.asarray(window.coarse_start, np.int32),
            coarse_fps=np.asarray(video.fps / self.factor, np.float32),
        )


def _drawn(known_T: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Which tokens (T, H, W) stand already when latent frames are drawn in rounds.

    Each latent frame is at a round of its own (MaskGIT's cosine, section 3.2); as often as not those before one of them
    are done, as when they are sampled one after another.
    """
    left_T = np.cos(np.pi / 2 * rng.random(len(known_T)))
    if rng.random() < 0.5:
        left_T[: rng.choice(np.flatnonzero(~known_T))] = 0
    return rng.random(shape) >= left_T[:, None, None]
