"""Tokens to more tokens, without end: a window that slides over a video, and what it sees beside it."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, Num

from tokvid.config import Sampling
from tokvid.errors import UserError
from tokvid.sampling.decode import Request, generate, generate_means
from tokvid.sampling.models import Models
from tokvid.sampling.prompts import Prompt
from tokvid.tasks.conditions import CONDITIONS
from tokvid.transformer.layout import condition_number
from tokvid.types import Clip, token_batch


@functools.partial(jax.jit, static_argnames="graph")
def _latents_of_codes(graph, params):
    return nnx.merge(graph, params).latents_of_codes()


@jax.jit
def _keys(seeds_B: jax.Array, latent_frame: jax.Array) -> jax.Array:
    """Keys depend on the seed and the place in the video, not on the number of windows before."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), latent_frame))(seeds_B)


class Source:
    """A condition as a stream of latent frames; only those that later windows can see are kept."""

    def __init__(self, name: str, fps: float, tokens: Iterator[Int[np.ndarray, "b t h w q"]]):
        """`name` is a key of CONDITIONS, `fps` the condition's rate, `tokens` its parts (B, T, H, W, Q) in order."""
        self.name, self.fps, self._tokens = name, fps, tokens
        self._first, self._last_BTHWQ = 0, next(tokens)

    def clip(self, first: int, models: Models) -> Clip:
        """The latent frames that a window sees whose first generated latent frame is number `first`."""
        config, condition = models.transformer.config, CONDITIONS[self.name]
        start, count = condition.span(first, config.latent_frames)
        batch = len(self._last_BTHWQ)
        return Clip(
            self.take(start, count),
            np.full(batch, condition.number(first, config.latent_frames), np.int32),
            np.full(batch, self.fps, np.float32),
            np.full(batch, condition_number(config, self.name), np.int32),
        )

    def take(self, first: int, count: int) -> Int[np.ndarray, "b {count} h w q"]:
        """Latent frames from number `first` on, (B, count, H, W, Q), -1 past the end; earlier ones are dropped."""
        while self._first + self._last_BTHWQ.shape[1] < first + count:
            more_BTHWQ = next(self._tokens, None)
            if more_BTHWQ is None:
                break
            self._last_BTHWQ = np.concatenate([self._last_BTHWQ, more_BTHWQ], axis=1)
        self._last_BTHWQ = self._last_BTHWQ[:, first - self._first :]
        self._first = first
        taken_BTHWQ = self._last_BTHWQ[:, :count]
        missing = count - taken_BTHWQ.shape[1]
        return np.pad(taken_BTHWQ, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), constant_values=-1)


class Around(NamedTuple):
    """What is given among latent frames to generate: the tokens (B, T, H, W, Q) that are `known_BTHW`.

    Each video of a batch has as many. With `forced`, these are whole latent frames at a video's beginning, and given
    during sampling alone, to weights that were not trained for known ones there.
    """

    tokens_BTHWQ: Int[np.ndarray, "b t h w q"]
    known_BTHW: Bool[np.ndarray, "b t h w"]
    forced: bool = False

    def part(self, first: int, count: int) -> "Around":
        """`count` latent frames from number `first` on, or as many as there are."""
        at = np.s_[:, first : first + count]
        return Around(self.tokens_BTHWQ[at], self.known_BTHW[at], self.forced)


@runtime_checkable  # so that tests check it
class Windows(Protocol):
    """A store of generated windows, tokens (B, T, H, W, Q), by the mark of all that determines them: a dict is one."""

    def get(self, mark: str) -> Int[np.ndarray, "b t h w q"] | None: ...

    def __setitem__(self, mark: str, tokens_BTHWQ: Int[np.ndarray, "b t h w q"]) -> None: ...


def _mark(models: Models, request: Request, sampling: Sampling) -> str:
    """32 hex digits of all that decides a window's tokens."""
    digest = hashlib.sha256(f"{models.mark} {sampling}".encode())
    for leaf in jax.tree.leaves(request._replace(keys_B=jax.random.key_data(request.keys_B))):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:32]


class RollingWindow:
    """Tokens of any length: the last `keep` latent frames are known, and the next ones are generated after them.

    Under a new prompt, the kept latent frames are prefilled again; no frame is decoded and encoded again. With
    `sources`, the video is generated from these conditions; with `windows`, none of these is generated twice. Weights
    that were trained to `recall` see the video's first latent frame beside every window of mid-video.
    """

    def __init__(
        self,
        models: Models,
        batch: int,
        fps: float,
        *,
        keep: int = 2,
        sampling: Sampling = Sampling(),
        sources: Sequence[Source] = (),
        windows: Windows | None = None,
    ):
        frames = models.transformer.config.latent_frames
        if not 1 <= keep < frames:
            raise UserError(f"keep should be 1 to {frames - 1} latent frames (the window has {frames}), got {keep}")
        if not 0 < fps <= 240:
            raise UserError(f"fps should be above 0 and at most 240, got {fps}")
        self.models, self.keep, self._sampling, self._sources = models, keep, sampling, sources
        self._windows = windows
        self._knows_serial = 0 in models.transformer.about.get("layouts", {}).get("rows", [0])
        self._recalls = not sources and "recall" in models.tasks
        self.fps, self._batch = fps, batch
        self.latent_frames = 0  # so far
        self._first = 0  # the number of the first latent frame in `_last`
        self._last = models.no_tokens(batch)
        self._opening: np.ndarray | None = None  # the first latent frame, for weights that recall it

    @property
    def room(self) -> int:
        """The latent frames of the next window after those that it keeps."""
        return self.models.transformer.config.latent_frames - self._last.shape[1]

    def append(self, tokens_BTHWQ: Int[np.ndarray, "b t h w q"]) -> None:
        """Adds latent frames: of an image, of a video, or of a story that is resumed."""
        if self._recalls and not self.latent_frames and tokens_BTHWQ.shape[1]:
            self._opening = tokens_BTHWQ[:, :1]
        self.latent_frames += tokens_BTHWQ.shape[1]
        self._last = np.concatenate([self._last, tokens_BTHWQ], axis=1)[:, -self.keep :]
        self._first = self.latent_frames - self._last.shape[1]

    def _recalled(self, around: Around | None) -> list[Clip]:
        """The video's first latent frame, right before a window of mid-video."""
        if self._opening is None or not self._first or around is not None:
            return []
        start, fps = np.full(self._batch, self._first - 1, np.int32), np.full(self._batch, self.fps, np.float32)
        return [Clip(self._opening, start, fps, np.zeros(self._batch, np.int32))]

    def extend(
        self,
        prompt: Prompt,
        guidance_BT: Float[np.ndarray, "b t"],
        around: Around | None = None,
        means: bool = False,
    ) -> Num[np.ndarray, "b t h w q *c"]:
        """Generates a latent frame for each guidance scale, at most a window: tokens (B, T, H, W, Q).

        `around` is given of the latent frames after the known ones, up to the end of the window or earlier: of the new
        ones, which may be partly known, and of those that they lead up to. With `means`, which `windows` don't keep,
        returns the mean latents of what could be there (B, T, H, W, Q, C); later windows go on from the tokens.
        """
        if self._sampling.rows and not self.latent_frames and self._knows_serial:
            # All others copy from a video's first latent frame, so it is always drawn token by token.
            serial, first_around = dataclasses.replace(self._sampling, rows=0), around and around.part(0, 1)
            first = self._generate(prompt, guidance_BT[:, :1], first_around, serial, means)
            if guidance_BT.shape[1] == 1:
                return first
            rest = around and around.part(1, around.known_BTHW.shape[1])
            return np.concatenate([first, self.extend(prompt, guidance_BT[:, 1:], rest, means)], axis=1)
        return self._generate(prompt, guidance_BT, around, self._sampling, means)

    def _generate(
        self, prompt: Prompt, guidance_BT: np.ndarray, around: Around | None, sampling: Sampling, means: bool
    ) -> np.ndarray:
        known, count = self._last.shape[1], guidance_BT.shape[1]
        request, new_T = self._request(prompt, guidance_BT, around), np.s_[:, known : known + count]
        # Where no prompt differs from its negative one, as where there is none, both passes would be the same.
        guided = np.any(guidance_BT != 1) and np.any(prompt.text_BL != prompt.negative_BL)
        how = {"sampling": sampling, "guided": bool(guided)}
        models, tokenizer = (self.models.transformer.graph, self.models.transformer.params), self.models.tokenizer
        if means:
            latents_VC = _latents_of_codes(tokenizer.graph, tokenizer.params)
            both = generate_means(*models, request, latents_VC, **how)
            new_BTHWQ, means_BTHWQC = (np.asarray(each)[new_T] for each in both)
            self.append(new_BTHWQ)
            return means_BTHWQC
        mark = "" if self._windows is None else _mark(self.models, request, sampling)
        kept_BTHWQ = None if self._windows is None else self._windows.get(mark)
        if not request.tokens:
            new_BTHWQ = np.asarray(request.batch.tokens)[new_T]
        elif kept_BTHWQ is not None:
            new_BTHWQ = kept_BTHWQ
        else:
            new_BTHWQ = np.asarray(generate(*models, request, **how))[new_T]
            if self._windows is not None:
                self._windows[mark] = new_BTHWQ
        self.append(new_BTHWQ)
        return new_BTHWQ

    def _request(self, prompt: Prompt, guidance_BT: np.ndarray, around: Around | None) -> Request:
        """The next window, of which a latent frame for each guidance scale is to be generated."""
        window, known, count = self.models.transformer.config.latent_frames, self._last.shape[1], guidance_BT.shape[1]
        tokens = np.zeros((self._batch, window, *self._last.shape[2:]), np.int32)
        tokens[:, :known] = self._last
        known_BTHW, forced = np.zeros(tokens.shape[:-1], bool), 0
        known_BTHW[:, :known] = True
        if around is not None:
            end = known + around.known_BTHW.shape[1]
            tokens[:, known:end] = np.where(around.known_BTHW[..., None], around.tokens_BTHWQ, 0)
            if around.forced:
                forced = int(around.known_BTHW[0].sum())
            else:
                known_BTHW[:, known:end] = around.known_BTHW
        new = int((~known_BTHW[0, known : known + count]).sum())
        batch = token_batch(
            tokens,
            np.full(self._batch, self._first, np.int32),
            np.full(self._batch, self.fps, np.float32),
            prompt.text_BL,
            known_BTHW,
            [source.clip(self.latent_frames, self.models) for source in self._sources] + self._recalled(around),
        )
        keys_B = _keys(np.asarray(prompt.seeds_B, np.uint32), np.int32(self.latent_frames))
        scale_BT = np.pad(guidance_BT, ((0, 0), (known, window - known - count)), mode="edge").astype(np.float32)
        sizes = (np.int32(known_BTHW[0].sum()), np.int32(new), np.int32(forced))
        return Request(batch, prompt.negative_BL, keys_B, scale_BT, *sizes)


def window_ends(first: int, end: int, window: int, keep: int) -> Iterator[int]:
    """The ends of the windows that generate the latent frames `first` up to `end`, each after `keep` known ones."""
    while first < end:
        first = min(first + window - min(keep, first), end)
        yield first
