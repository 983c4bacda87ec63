"""Video as a stream: frames to tokens, to more tokens, to frames again, in memory that doesn't grow with length."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int32, Integer, UInt8

from tokvid import weights
from tokvid.config import GUIDANCE, Sampling
from tokvid.errors import UserError
from tokvid.input_pipeline.text import TextModel
from tokvid.sampling.decode import Request, generate
from tokvid.tasks.conditions import CONDITIONS
from tokvid.tasks.tasks import trained_tasks
from tokvid.tokenizer.cvivit import Cache, latent_shape, token_side
from tokvid.tokenizer.quantizers import codes_of
from tokvid.transformer.layout import condition_number
from tokvid.types import Clip, token_batch

MOST_PATCHES = 8192  # of a latent frame: attention among them takes a gigabyte or two


class Models(NamedTuple):
    """All that a prompt needs to become a video."""

    tokenizer: weights.Loaded
    transformer: weights.Loaded
    text: TextModel

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of what they make."""
        side, (_, rows, columns) = token_side(self.tokenizer.config), self.transformer.config.latent
        return rows * side, columns * side

    def no_tokens(self, batch: int) -> Int32[np.ndarray, "b 0 h w q"]:
        """No latent frames of theirs: (B, 0, H, W, Q)."""
        config = self.transformer.config
        return np.zeros((batch, 0, *config.latent[1:], config.subcodes), np.int32)

    @property
    def tasks(self) -> dict[str, float]:
        """The tasks that they were trained for, and their shares."""
        return trained_tasks(self.transformer.about)

    @property
    def mark(self) -> str:
        """What these weights are: their fingerprints."""
        marks = [part.about["fingerprint"] for part in (self.tokenizer, self.transformer)]
        return "-".join([*marks, self.text.fingerprint])


def load_models(folder: str | Path) -> Models:
    """Tokenizer, transformer and text model of a weights folder; UserError where they don't belong together."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no weights folder {folder}; name one with --weights (a workdir of training will do)")
    tokenizer = weights.load(folder / "tokenizer", "tokenizer")
    transformer = weights.load(folder / "transformer", "transformer")
    weights.check_pair(tokenizer, transformer)
    text = TextModel.load(folder / "text.model")
    if text.fingerprint != transformer.about.get("text_model"):
        raise UserError(
            f"the transformer was trained with text model {transformer.about.get('text_model')}, "
            f"{folder / 'text.model'} is {text.fingerprint}; use the one it was trained with"
        )
    return Models(tokenizer, transformer, text)


@functools.partial(jax.jit, static_argnames=("graph", "first"))
def _encode(graph, params, video_BTHWC: UInt8[Array, "b t h w 3"], cache: Cache, first: bool):
    model = nnx.merge(graph, params)
    quantized, cache = model.encode_step(jnp.asarray(video_BTHWC, jnp.float32) / 127.5 - 1, cache, first)
    return quantized.ids, cache


@functools.partial(jax.jit, static_argnames=("graph", "first"))
def _decode(graph, params, ids_BTHWQ: Int[Array, "b tl hl wl q"], cache: Cache, first: bool):
    model = nnx.merge(graph, params)
    video_BTHWC, cache = model.decode_step(model.latents(ids_BTHWQ), cache, first)
    return jnp.clip(jnp.round((video_BTHWC + 1) * 127.5), 0, 255).astype(jnp.uint8), cache


@jax.jit
def _keys(seeds_B: jax.Array, latent_frame: jax.Array) -> jax.Array:
    """The seed and the place in the video decide what is drawn, not how many windows came before."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), latent_frame))(seeds_B)


class StreamEncoder:
    """Frames in, tokens out, as soon as a latent frame is full."""

    def __init__(self, tokenizer: weights.Loaded, batch: int, size: tuple[int, int]):
        """`size`: height and width of the frames, multiples of the patch and not too large, else UserError."""
        _, rows, columns = latent_shape(tokenizer.config, 1, *size)
        if (patches := rows * columns * tokenizer.config.fold**2) > MOST_PATCHES:  # each attends to all others
            raise UserError(
                f"frames of {size[0]}x{size[1]} pixels have {patches} patches, at most {MOST_PATCHES} are "
                "allowed; use a smaller size"
            )
        self._tokenizer, self._pending = tokenizer, np.zeros((batch, 0, *size, 3), np.uint8)
        self._first, self._none = (
            True,
            np.zeros((batch, 0, rows, columns, codes_of(tokenizer.config).per_token), np.int32),
        )
        self._cache = tokenizer.model.empty_cache("encoder", batch, rows, columns)

    def feed(self, video_BTHWC: UInt8[np.ndarray, "b t h w 3"]) -> Int32[np.ndarray, "b tl hl wl q"]:
        """uint8 frames, any number → tokens int32 (B, T', H', W', Q) of the latent frames they complete, maybe none."""
        self._pending = np.concatenate([self._pending, video_BTHWC], axis=1)
        out = [self._none]
        while self._pending.shape[1] >= (need := 1 if self._first else self._tokenizer.config.temporal_patch):
            now, self._pending = self._pending[:, :need], self._pending[:, need:]
            tokenizer = self._tokenizer
            ids, self._cache = _encode(tokenizer.graph, tokenizer.params, now, self._cache, first=self._first)
            self._first = False
            out.append(np.asarray(ids))
        return np.concatenate(out, axis=1)


class StreamDecoder:
    """Tokens in, frames out: equal to decoding all of them at once."""

    def __init__(self, tokenizer: weights.Loaded, batch: int, rows: int, columns: int):
        self._tokenizer, self._first = tokenizer, True
        self._cache = tokenizer.model.empty_cache("decoder", batch, rows, columns)

    def feed(self, tokens_BTHWQ: Int[np.ndarray, "b tl hl wl q"]) -> UInt8[np.ndarray, "b t h w 3"]:
        """Tokens of the next latent frames, maybe none → their frames, uint8 (B, T, H, W, 3)."""
        B, _, rows, columns, _ = tokens_BTHWQ.shape
        side = token_side(self._tokenizer.config)
        out = [np.zeros((B, 0, rows * side, columns * side, 3), np.uint8)]
        for index in range(tokens_BTHWQ.shape[1]):  # one at a time: one compiled shape, whatever comes
            now, tokenizer = tokens_BTHWQ[:, index : index + 1], self._tokenizer
            video, self._cache = _decode(tokenizer.graph, tokenizer.params, now, self._cache, first=self._first)
            self._first = False
            out.append(np.asarray(video))
        return np.concatenate(out, axis=1)


class Prompt(NamedTuple):
    """What is asked of every video of a batch from `start` seconds on.

    Texts (B, L) to follow and to turn away from, padded with -1, seeds, and the guidance scale of the first and of the
    last latent frame, (B,) each.
    """

    start: float
    text_BL: Int[np.ndarray, "b l"]
    negative_BL: Int[np.ndarray, "b l"]
    seeds_B: Integer[np.ndarray, " b"]
    guidance_B: Float[np.ndarray, " b"]
    last_guidance_B: Float[np.ndarray, " b"]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How closely a text is followed: the scale at the beginning and at the end (None: the same), a negative prompt."""

    scale: float = GUIDANCE
    last: float | None = None
    negative: str = ""


def make_prompt(
    models: Models,
    texts: Sequence[str],
    seeds_B: Integer[np.ndarray, " b"],
    guidance: Guidance,
    start: float = 0.0,
) -> Prompt:
    """A prompt for a video of each text."""
    encode, batch = models.text.encoder(models.transformer.config.text_length), len(texts)
    last = guidance.scale if guidance.last is None else guidance.last
    return Prompt(
        start,
        np.stack([encode(text) for text in texts]),
        np.stack([encode(guidance.negative)] * batch),
        seeds_B,
        np.full(batch, guidance.scale, np.float32),
        np.full(batch, last, np.float32),
    )


class Source:
    """The condition that a video is made from, latent frame after latent frame; only what may still be seen is kept."""

    def __init__(self, name: str, fps: float, tokens: Iterator[Int[np.ndarray, "b t h w q"]]):
        """`name` is a key of CONDITIONS; `fps` its own rate; `tokens` (B, T, H, W, Q) in turn."""
        self.name, self.fps, self._tokens = name, fps, tokens
        self._first, self._last_BTHWQ = 0, next(tokens)

    def clip(self, first: int, models: Models) -> Clip:
        """Those latent frames that a window sees whose first new latent frame is number `first`."""
        config = models.transformer.config
        start, count = CONDITIONS[self.name].span(first, config.latent_frames)
        batch = len(self._last_BTHWQ)
        return Clip(
            self.take(start, count),
            np.full(batch, start, np.int32),
            np.full(batch, self.fps, np.float32),
            np.full(batch, condition_number(config, self.name), np.int32),
        )

    def take(self, first: int, count: int) -> Int[np.ndarray, "b {count} h w q"]:
        """Latent frames from number `first` on, (B, count, H, W, Q), -1 behind its end; those before are forgotten."""
        while self._first + self._last_BTHWQ.shape[1] < first + count:
            more_BTHWQ = next(self._tokens, None)
            if more_BTHWQ is None:
                break
            self._last_BTHWQ = np.concatenate([self._last_BTHWQ, more_BTHWQ], axis=1)
        self._last_BTHWQ = self._last_BTHWQ[:, first - self._first :]
        self._first = first
        there_BTHWQ = self._last_BTHWQ[:, :count]
        missing = count - there_BTHWQ.shape[1]
        return np.pad(there_BTHWQ, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), constant_values=-1)


class RollingWindow:
    """Tokens that go on and on: the last `keep` latent frames stay as what is known, the next are generated.

    A new text just re-prefills the kept latent frames under it; no frame is ever decoded and encoded again. With a
    `source`, the video is made from that condition.
    """

    def __init__(
        self,
        models: Models,
        batch: int,
        fps: float,
        *,
        keep: int = 2,
        sampling: Sampling = Sampling(),
        source: Source | None = None,
    ):
        frames = models.transformer.config.latent_frames
        if not 1 <= keep < frames:
            raise UserError(f"keep should be 1 to {frames - 1} latent frames (the window has {frames}), got {keep}")
        if not 0 < fps <= 240:
            raise UserError(f"fps should be above 0 and at most 240, got {fps}")
        self.models, self._keep, self._sampling, self._source = models, keep, sampling, source
        self._knows_serial = 0 in models.transformer.about.get("layouts", {}).get("rows", [0])
        self.fps, self._batch = fps, batch
        self.latent_frames = 0  # how many there are by now
        self._first = 0  # the number of the first one within its clip
        self._last = models.no_tokens(batch)

    def given(self, tokens_BTHWQ: Int[np.ndarray, "b t h w q"]) -> None:
        """Takes latent frames as they are: an image's, a video's, or those of a story that was interrupted."""
        self.latent_frames += tokens_BTHWQ.shape[1]
        self._last = np.concatenate([self._last, tokens_BTHWQ], axis=1)[:, -self._keep :]
        self._first = self.latent_frames - self._last.shape[1]

    def extend(
        self,
        prompt: Prompt,
        guidance_BT: Float[np.ndarray, "b t"],
        until_BTHWQ: Int[np.ndarray, "b after h w q"] | None = None,
    ) -> Int[np.ndarray, "b t h w q"]:
        """Generates as many latent frames as there are guidances, at most a window: tokens (B, T, H, W, Q).

        With `until_BTHWQ`, the new latent frames lead up to it (and it ends the window).
        """
        if self._sampling.rows and not self.latent_frames and self._knows_serial:
            # All others follow from a video's first latent frame, so that one is worth the time.
            first_BTHWQ = self._generate(prompt, guidance_BT[:, :1], None, dataclasses.replace(self._sampling, rows=0))
            if guidance_BT.shape[1] == 1:
                return first_BTHWQ
            return np.concatenate([first_BTHWQ, self.extend(prompt, guidance_BT[:, 1:], until_BTHWQ)], axis=1)
        return self._generate(prompt, guidance_BT, until_BTHWQ, self._sampling)

    def _generate(
        self, prompt: Prompt, guidance_BT: np.ndarray, until_BTHWQ: np.ndarray | None, sampling: Sampling
    ) -> np.ndarray:
        transformer, (window, H, W) = self.models.transformer, self.models.transformer.config.latent
        known, count = self._last.shape[1], guidance_BT.shape[1]
        tokens = np.zeros((self._batch, window, *self._last.shape[2:]), np.int32)
        tokens[:, :known] = self._last
        known_T = np.arange(window) < known
        if until_BTHWQ is not None:
            tokens[:, known + count :], known_T[known + count :] = until_BTHWQ, True
        batch = token_batch(
            tokens,
            np.full(self._batch, self._first, np.int32),
            np.full(self._batch, self.fps, np.float32),
            prompt.text_BL,
            np.broadcast_to(known_T, (self._batch, window)),
            [] if self._source is None else [self._source.clip(self.latent_frames, self.models)],
        )
        keys_B = _keys(np.asarray(prompt.seeds_B, np.uint32), np.int32(self.latent_frames))
        scale_BT = np.pad(guidance_BT, ((0, 0), (known, window - known - count)), mode="edge").astype(np.float32)
        filled = generate(
            transformer.graph,
            transformer.params,
            Request(batch, prompt.negative_BL, keys_B, scale_BT, np.int32(count * H * W)),
            known=int(known_T.sum()) * H * W,
            sampling=sampling,
            guided=bool(np.any(guidance_BT != 1)),
        )
        new_BTHWQ = np.asarray(filled)[:, known : known + count]
        self.given(new_BTHWQ)
        return new_BTHWQ


def window_ends(first: int, end: int, window: int, keep: int) -> Iterator[int]:
    """Where the windows end that make the latent frames `first` up to `end`, each behind the `keep` before it."""
    while first < end:
        first = min(first + window - min(keep, first), end)
        yield first


def latent_frames_for(frames: int, temporal_patch: int) -> int:
    """How many latent frames hold at least this many frames."""
    return 1 + -(-(frames - 1) // temporal_patch)


def frames_of(latent_frames: int, temporal_patch: int) -> int:
    """How many frames so many latent frames are."""
    return max(0, 1 + (latent_frames - 1) * temporal_patch)
