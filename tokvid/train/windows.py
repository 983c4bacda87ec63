"""Windows of cached tokens for the transformer: a part of a video, its known tokens, and its text."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from tokvid.config import LayoutConfig, TransformerConfig
from tokvid.errors import UserError
from tokvid.input_pipeline.loader import batches, samples_of
from tokvid.input_pipeline.stored import StoredVideo
from tokvid.tasks.conditions import CONDITIONS
from tokvid.tasks.tasks import TASKS
from tokvid.train.token_cache import TokenCache
from tokvid.transformer.layout import as_generated, condition_number, condition_shape, slot_count
from tokvid.types import Clip, TokenBatch, captions_in_force, joined, stride_of

WORD = re.compile(r"\s*(?:[\u2e80-\uffef]|[^\s\u2e80-\uffef]+)")  # Chinese and Japanese have no spaces
LEAST_SHARE = 0.75  # of the generated latent frames that the text must be in force for
STRICT_TRIES = 100  # records tried for a sample before any rate and share are accepted
MOST_TRIES = 200


class Kind(NamedTuple):
    """The kind of a batch: the latent frames of its windows, and their conditions."""

    frames: int
    conditions: tuple[str, ...]


class Part(NamedTuple):
    """Tokens (T, H, W, Q) of a condition, padded with -1, that count from latent frame `start` on."""

    tokens: np.ndarray
    start: int


class Window(NamedTuple):
    """Tokens (T, H, W, Q) of latent frames from `start` on; `known` (T, H, W) marks those not to generate.

    `conditions` are those of the task.
    """

    tokens: np.ndarray
    start: int
    known: np.ndarray
    text: str
    conditions: tuple[Part, ...] = ()


def cut_window(
    video: StoredVideo,
    task: str,
    rng: np.random.Generator,
    *,
    frames: int,
    temporal_patch: int,
    least_share: float = LEAST_SHARE,
    at_start: float = 0.0,
) -> Window | None:
    """A window of `frames` latent frames for `task` from a video's tokens, or None if none fits.

        text_to_video    start 0, nothing known     . . . . . .
        image_to_video   start 0, 1 known           K . . . . .
        continuation     start s, 1 to 3 known      K K . . . .    (where s = 0, not 1: that is an image)
        interpolation    start s, 0 to 3 known      K K . . . .    (where s > 0, not 0), and a condition
        infilling        start s, some known        K . . K . .
        inpaint          start s, 0 to 3 known      K K k k k k    (where s > 0, not 0), and a part of the others

    The text is the caption in force at the first generated latent frame, and is in force for at least `least_share` of
    the generated ones; known ones may show an earlier caption. Known parts that end where a caption begins teach the
    model to follow a new prompt, so they are drawn more often than by chance (`Task.at_switch`). So are, by
    `layouts.at_start`, windows that begin a video from nothing or a first frame, which only few would by chance; at 1,
    tasks that have such windows have no others.
    """
    if (tokens_THWQ := video.tokens) is None:
        raise UserError(f"{video.key} holds no tokens; make a token cache of the videos first")
    spec = TASKS[task]
    caption_T = captions_in_force(video.captions, len(tokens_THWQ), video.fps, temporal_patch)
    start_N, leading_N = _placements(task, len(tokens_THWQ), frames)
    first_N = start_N + leading_N  # the first generated latent frame
    ends_T = np.searchsorted(caption_T, caption_T, side="right")  # the end of each latent frame's caption
    covered_N = np.minimum(ends_T[first_N], start_N + frames) - first_N
    fits_N = covered_N >= least_share * (frames - leading_N)
    for name in spec.conditions:
        if not CONDITIONS[name].own and name not in video.conditions:
            raise UserError(f"{video.key} has no tokens of the condition {name}; tokenize again")
        if not CONDITIONS[name].still:
            fits_N &= -(-(start_N + frames - 1) // CONDITIONS[name].slower) < len(video.conditions[name])
    if not fits_N.any():
        return None
    if spec.at_switch:
        at_switch_N = fits_N & (caption_T[first_N] != caption_T[first_N - 1])
        if at_switch_N.any() and rng.random() < spec.at_switch:
            fits_N = at_switch_N
    begins_N = (start_N == 0) & (leading_N <= 1)
    if at_start and begins_N.any():
        at_start_N = fits_N & begins_N
        if at_start == 1 or (at_start_N.any() and rng.random() < at_start):
            fits_N = at_start_N
        if not fits_N.any():
            return None
    chosen = rng.choice(np.flatnonzero(fits_N))
    start, first = int(start_N[chosen]), int(first_N[chosen])
    known_THW = spec.given.known((frames, *tokens_THWQ.shape[1:3]), first - start, rng)
    parts = tuple(_part(video, name, start, first, frames) for name in spec.conditions)
    window_THWQ, text = tokens_THWQ[start : start + frames], video.captions[caption_T[first]].text
    return Window(window_THWQ, start, known_THW, text, parts)


def _part(video: StoredVideo, name: str, start: int, first: int, frames: int) -> Part:
    """What a window of `frames` from `start` on sees of a condition, where `first` is generated first."""
    assert video.tokens is not None
    condition = CONDITIONS[name]
    if condition.own:
        return Part(video.tokens[:1].astype(np.int32), start - 1)  # right before the window
    begin, count = condition.span(first, frames)
    part_THWQ = video.conditions[name][begin : begin + count].astype(np.int32)
    missing = ((0, count - len(part_THWQ)), (0, 0), (0, 0), (0, 0))
    return Part(np.pad(part_THWQ, missing, constant_values=-1), condition.number(first, frames))


@functools.lru_cache(maxsize=1000)
def _placements(task: str, latent_frames: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The starts of a task's windows, and their numbers of known leading latent frames: int64 (N,) each."""
    pairs = TASKS[task].given.placements(latent_frames, frames)
    start_N, leading_N = np.array(pairs, np.int64).reshape(-1, 2).T
    return start_N, leading_N


def window_lengths(layouts: LayoutConfig, transformer: TransformerConfig) -> list[int]:
    """The latent frames of training windows; UserError for no length, or for one above a whole window's."""
    whole = transformer.latent_frames
    if not layouts.lengths or not all(0 <= frames <= whole for frames in layouts.lengths):
        raise UserError(f"layouts.lengths {layouts.lengths} should be 1 to {whole} latent frames, or 0 for all {whole}")
    return [frames or whole for frames in layouts.lengths]


def windows_in_a_row(config: TransformerConfig, frames: int) -> int:
    """The number of windows of `frames` latent frames that fit into the slots of a whole window."""
    return slot_count(config) // slot_count(config, frames)


class Share(NamedTuple):
    """A kind of batch, its share of all batches, and its slots."""

    share: float
    kind: Kind
    windows: int  # in a row
    slots: int  # of one window


def batch_kinds(layouts: LayoutConfig, config: TransformerConfig) -> list[Share]:
    """All kinds of batches in a mixture of tasks.

    Conditions make a sequence longer, so windows with the same ones have batches of their own, and so have windows of
    each length. Several short windows fill a row of as many slots as a whole window.
    """
    total, lengths = sum(layouts.tasks.values()), window_lengths(layouts, config)
    kinds = []
    for names in sorted({TASKS[name].conditions for name, share in layouts.tasks.items() if share}):
        share = sum(share for task, share in layouts.tasks.items() if TASKS[task].conditions == names) / total
        if names:
            slots = slot_count(config, conditions=[condition_shape(config, name) for name in names])
            kinds.append(Share(share, Kind(config.latent_frames, names), 1, slots))
            continue
        for frames in lengths:
            windows, slots = windows_in_a_row(config, frames), slot_count(config, frames)
            kinds.append(Share(share / len(lengths), Kind(frames, names), windows, slots))
    return kinds


def token_batches(
    cache: TokenCache, batch: int, seed: int, *, threads: int = 2, shard: tuple[int, int] = (0, 1)
) -> grain.DatasetIterator[TokenBatch]:
    """Endless batches of windows from a token cache, for the mixture of tasks in its `layouts`.

    A batch of short windows (`layouts.lengths`) has more of them, to fill as many slots: three images, say, in place of
    one whole window. So windows aren't padded, and no mask separates the samples of a sequence. `batch`, `seed`,
    `shard` and the iterator's state are as in `loader.clip_batches`.
    """
    sampler = WindowSampler(cache)

    def kind(number: int) -> Kind:
        """The kind of the batch, over all processes, of sample `number`."""
        return sampler.kind(np.random.default_rng([seed, number // (batch * shard[1])]))

    samples = samples_of(len(cache.source), seed).map_with_index(lambda number, index: (index, kind(number)))
    return batches(samples.random_map(sampler), batch, threads=threads, shard=shard, join=np.concatenate)


class WindowSampler:
    """Draws a task and cuts a window for it, from a given video or, where that has none, from another."""

    def __init__(self, cache: TokenCache):
        self.source, self.layouts, self.config = cache.source, cache.layouts, cache.config
        self.kinds = {each.kind: each for each in batch_kinds(self.layouts, self.config)}
        self.strides = [stride_of(rows, self.config.latent) for rows in self.layouts.rows]
        if self.layouts.word_dropout and self.config.text_width:
            raise UserError(
                "layouts.word_dropout is for text models; a T5 has read whole captions; leave one of them out"
            )
        self.encode = cache.text.encoder(self.config.text_length)  # once a caption, not once a step

    def kind(self, rng: np.random.Generator) -> Kind:
        """Draws the kind of a batch."""
        return [*self.kinds][_draw(rng, [each.share for each in self.kinds.values()])]

    def __call__(self, drawn: tuple[int, Kind], rng: np.random.Generator) -> TokenBatch:
        """A row of windows of the video and kind `drawn`; where windows are short, other videos fill the row."""
        index, kind = drawn
        others = rng.integers(len(self.source), size=self.kinds[kind].windows - 1)
        videos = [index, *others.tolist()]
        windows = [self._window(video, kind, rng) for video in videos]
        return joined(windows, np.stack)

    def _window(self, index: int, kind: Kind, rng: np.random.Generator) -> TokenBatch:
        """One window, without the batch dimension, of video `index` or, where that has none, of another."""
        # Task and rate are kept when the video is replaced. Drawn anew with each video, those that seldom fit (at a
        # slow rate, few first captions are in force for a window) would hardly be trained.
        tasks = self.layouts.tasks.items()
        shares = {name: share for name, share in tasks if TASKS[name].conditions == kind.conditions}
        task = [*shares][_draw(rng, [*shares.values()])]
        if kind.frames == 1:  # the only task of an image
            task = "text_to_video"
        video = self.source[index]
        fps = video.fps
        for attempt in range(MOST_TRIES):
            strict = attempt < STRICT_TRIES
            if video.fps == fps or not strict:
                window = cut_window(
                    video,
                    task,
                    rng,
                    frames=kind.frames,
                    temporal_patch=self.config.temporal_patch,
                    least_share=LEAST_SHARE if strict else 0.0,
                    at_start=self.layouts.at_start,
                )
                if window is not None:
                    return self._sample(video, window, task, kind, rng)
            video = self.source[int(rng.integers(len(self.source)))]
        raise UserError(
            f"{MOST_TRIES} videos of {self.source.path} had no window of {kind.frames} latent frames for {task}; "
            "cache longer videos, or use a smaller window (transformer.latent_frames, layouts.lengths)"
        )

    def _sample(
        self, video: StoredVideo, window: Window, task: str, kind: Kind, rng: np.random.Generator
    ) -> TokenBatch:
        tokens_THWQ, config = window.tokens.astype(np.int32), self.config
        T, H, W, Q = tokens_THWQ.shape
        if (*config.grid, config.subcodes) != (H, W, Q):
            raise UserError(
                f"{video.key} has {H}x{W} tokens of {Q} sub-codes a latent frame, the transformer has grid "
                f"{config.grid} and subcodes {config.subcodes}; use one tokenizer and size"
            )
        conditions = tuple(
            Clip(
                part.tokens,
                np.int32(part.start),
                np.float32(video.fps / CONDITIONS[name].slower),
                np.int32(condition_number(config, name)),
            )
            for name, part in zip(kind.conditions, window.conditions, strict=True)
        )
        # The device would clamp an id out of range, and train on noise.
        least, most = tokens_THWQ.min(), max(tokens_THWQ.max(), *(clip.tokens.max() for clip in conditions), 0)
        if not 0 <= least <= most < config.vocabulary:
            raise UserError(
                f"{video.key} has tokens {least} to {most}, the transformer's vocabulary is {config.vocabulary}; "
                "use one tokenizer for both"
            )
        dropped = rng.random() < max(self.layouts.text_dropout, TASKS[task].text_dropout)
        stride = self.strides[rng.integers(len(self.strides))]
        if stride == H * W and (window.known.any(axis=(1, 2)) != window.known.all(axis=(1, 2))).any():
            stride = W  # a latent frame with known parts isn't drawn in rounds
        in_rounds = stride == H * W
        return TokenBatch(
            tokens=as_generated(config, tokens_THWQ, window.known),
            start=np.asarray(window.start, np.int32),
            fps=np.asarray(video.fps, np.float32),
            text=self._text(video, "" if dropped else fewer_words(window.text, self.layouts.word_dropout, rng)),
            known=window.known,
            stride=np.asarray(stride, np.int32),
            drawn=_drawn(window.known, rng) if in_rounds else np.zeros((T, H, W), bool),
            conditions=conditions,
        )

    def _text(self, video: StoredVideo, text: str) -> np.ndarray:
        """A caption's ids (L,), or the hidden states (L, E) that are stored with the tokens."""
        config = self.config
        if not config.text_width:
            return self.encode(text)
        states_LE = np.zeros((config.text_length, config.text_width), np.float16)
        if text:
            number = [caption.text for caption in video.captions].index(text)
            if number >= len(video.states) or video.states[number].shape[1] != config.text_width:
                raise UserError(f"{video.key} has no hidden states of width {config.text_width}; tokenize again")
            own_LE = video.states[number][: config.text_length]
            states_LE[: len(own_LE)] = own_LE
        return states_LE


def fewer_words(text: str, most: float, rng: np.random.Generator) -> str:
    """A caption without some of its words (of Chinese, characters), a share of them that is drawn from 0 to `most`.

    So each word's meaning is learned without the others. Where two words always come together in training, a model may
    read only one of them, and is then wrong about any other pair.
    """
    if not most:
        return text
    words = WORD.findall(text)
    stays = rng.random(len(words)) >= rng.uniform(0, most)
    return "".join(word for word, stay in zip(words, stays, strict=True) if stay).strip()


def _draw(rng: np.random.Generator, shares: Sequence[float]) -> int:
    """An index, drawn by the shares."""
    return int(rng.choice(len(shares), p=np.array(shares) / sum(shares)))


def _drawn(known_THW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The tokens (T, H, W) that are fixed already when latent frames are drawn in rounds.

    Each latent frame is at a round of its own (MaskGIT's cosine, section 3.2). In half of the windows, all latent
    frames before a random one are complete, as they are in sampling.
    """
    known_T: np.ndarray = np.all(known_THW, axis=(1, 2))
    left_T = np.cos(np.pi / 2 * rng.random(len(known_T)))
    if rng.random() < 0.5:
        left_T[: rng.choice(np.flatnonzero(~known_T))] = 0
    return rng.random(known_THW.shape) >= left_T[:, None, None]
