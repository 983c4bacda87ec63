"""Video as a stream: frames to tokens, to more tokens, to frames again, in memory that doesn't grow with length."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, Integer, Num, UInt8

from tokvid import weights
from tokvid.config import GUIDANCE, Sampling
from tokvid.errors import UserError
from tokvid.input_pipeline.text import TextModel
from tokvid.sampling.decode import Request, generate, generate_means
from tokvid.tasks.conditions import CONDITIONS
from tokvid.tasks.tasks import trained_tasks
from tokvid.text.t5 import load_text
from tokvid.tokenizer.cvivit import Cache, latent_shape, token_side
from tokvid.tokenizer.quantizers import codes_of
from tokvid.transformer.layout import condition_number
from tokvid.types import Clip, token_batch

OWN_NOISE = 15_485_863  # between the seeds of levels, and of places
MOST_PATCHES = 8192  # of a latent frame; attention among them takes one to two gigabytes


class Models(NamedTuple):
    """The trained models that turn a prompt into a video.

    `tuned` has, by task, what loads the transformer with the LoRA that the weights have for it.
    """

    tokenizer: weights.Loaded
    transformer: weights.Loaded
    text: TextModel
    tuned: Mapping[str, Callable[[], weights.Loaded]] = {}

    def for_task(self, task: str) -> "Models":
        """The models that do a task best."""
        return self._replace(transformer=self.tuned[task]()) if task in self.tuned else self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the generated videos."""
        side, (_, rows, columns) = token_side(self.tokenizer.config), self.transformer.config.latent
        return rows * side, columns * side

    @property
    def temporal_patch(self) -> int:
        """The frames of a latent frame, but of the first, which is one."""
        return self.tokenizer.config.temporal_patch

    def no_tokens(self, batch: int) -> Int32[np.ndarray, "b 0 h w q"]:
        """An array of no latent frames, (B, 0, H, W, Q)."""
        config = self.transformer.config
        return np.zeros((batch, 0, *config.latent[1:], config.subcodes), np.int32)

    @property
    def tasks(self) -> dict[str, float]:
        """The tasks that the transformer was trained for, and their shares."""
        return trained_tasks(self.transformer.about)

    @property
    def mark(self) -> str:
        """The fingerprints of all three."""
        marks = [part.about["fingerprint"] for part in (self.tokenizer, self.transformer)]
        return "-".join([*marks, self.text.fingerprint])


def load_models(folder: str | Path, loras: Sequence[weights.Scaled] = ()) -> Models:
    """Tokenizer, transformer (with LoRAs added) and text model of a weights folder.

    UserError where they don't belong together, or a LoRA belongs to other weights.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no weights folder {folder}; name one with --weights (a training workdir is one)")
    tokenizer = weights.load(folder / "tokenizer", "tokenizer")
    transformer = weights.load(folder / "transformer", "transformer", loras)
    weights.check_pair(tokenizer, transformer)
    text = load_text(folder)
    if text.fingerprint != transformer.about.get("text_model"):
        raise UserError(
            f"the transformer was trained with text model {transformer.about.get('text_model')}, "
            f"that of {folder} is {text.fingerprint}; use the one it was trained with"
        )

    @functools.cache
    def load(path: Path) -> weights.Loaded:
        return weights.load(folder / "transformer", "transformer", [*loras, weights.Scaled(path)])

    # A LoRA is used as it was trained: for its tasks, the weights' own ones weren't there.
    own, others = weights.task_loras(folder / "transformer"), transformer.about.get("lora_tasks", ())
    tuned = {task: functools.partial(load, path) for task, path in own.items() if task not in others}
    return Models(tokenizer, transformer, text, tuned)


@functools.partial(jax.jit, static_argnames=("graph", "first"))
def _encode(graph, params, video_BTHWC: UInt8[Array, "b t h w 3"], cache: Cache, first: bool):
    model = nnx.merge(graph, params)
    quantized, cache = model.encode_step(jnp.asarray(video_BTHWC, jnp.float32) / 127.5 - 1, cache, first)
    return quantized.ids, cache


@functools.partial(jax.jit, static_argnames=("graph", "first"))
def _decode(graph, params, tokens: Num[Array, "b tl hl wl q *c"], cache: Cache, first: bool):
    model = nnx.merge(graph, params)
    latents_BTHWC = model.latents(tokens) if tokens.ndim == 5 else model.latents_of_parts(tokens)
    video_BTHWC, cache = model.decode_step(latents_BTHWC, cache, first)
    return jnp.clip(jnp.round((video_BTHWC + 1) * 127.5), 0, 255).astype(jnp.uint8), cache


@functools.partial(jax.jit, static_argnames="graph")
def _latents_of_codes(graph, params):
    return nnx.merge(graph, params).latents_of_codes()


@jax.jit
def _keys(seeds_B: jax.Array, latent_frame: jax.Array) -> jax.Array:
    """Keys depend on the seed and the place in the video, not on the number of windows before."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), latent_frame))(seeds_B)


class StreamEncoder:
    """Encodes frames to tokens, as soon as a latent frame is full."""

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
        while self._pending.shape[1] >= (count := 1 if self._first else self._tokenizer.config.temporal_patch):
            part, self._pending = self._pending[:, :count], self._pending[:, count:]
            tokenizer = self._tokenizer
            ids, self._cache = _encode(tokenizer.graph, tokenizer.params, part, self._cache, first=self._first)
            self._first = False
            out.append(np.asarray(ids))
        return np.concatenate(out, axis=1)


class StreamDecoder:
    """Decodes tokens, or the latents of their sub-codes, to frames; the result equals decoding all of them at once."""

    def __init__(self, tokenizer: weights.Loaded, batch: int, rows: int, columns: int):
        self._tokenizer, self._first = tokenizer, True
        self._cache = tokenizer.model.empty_cache("decoder", batch, rows, columns)

    def feed(self, tokens: Num[np.ndarray, "b tl hl wl q *c"]) -> UInt8[np.ndarray, "b t h w 3"]:
        """The next latent frames, maybe none → their frames, uint8 (B, T, H, W, 3).

        Tokens (B, T', H', W', Q), or latents (B, T', H', W', Q, C).
        """
        B, _, rows, columns, *_ = tokens.shape
        side = token_side(self._tokenizer.config)
        out = [np.zeros((B, 0, rows * side, columns * side, 3), np.uint8)]
        for index in range(tokens.shape[1]):  # one at a time: a single compiled shape
            part, tokenizer = tokens[:, index : index + 1], self._tokenizer
            video, self._cache = _decode(tokenizer.graph, tokenizer.params, part, self._cache, first=self._first)
            self._first = False
            out.append(np.asarray(video))
        return np.concatenate(out, axis=1)


def encode_clips(
    tokenizer: weights.Loaded, video_BTHWC: UInt8[np.ndarray, "b t h w 3"]
) -> Int32[np.ndarray, "b tl hl wl q"]:
    """The tokens of a batch of whole clips, whose last frame is repeated to fill the last latent frame."""
    spare = -(video_BTHWC.shape[1] - 1) % tokenizer.config.temporal_patch
    padded_BTHWC = np.concatenate([video_BTHWC, np.repeat(video_BTHWC[:, -1:], spare, axis=1)], axis=1)
    return StreamEncoder(tokenizer, len(video_BTHWC), video_BTHWC.shape[2:4]).feed(padded_BTHWC)


def decode_clips(
    tokenizer: weights.Loaded, tokens_BTHWQ: Int[np.ndarray, "b tl hl wl q"]
) -> UInt8[np.ndarray, "b t h w 3"]:
    """The frames of a batch of whole clips."""
    return StreamDecoder(tokenizer, len(tokens_BTHWQ), *tokens_BTHWQ.shape[2:4]).feed(tokens_BTHWQ)


class Prompt(NamedTuple):
    """The prompts of a batch of videos, in force from `start` seconds on.

    Prompts and negative prompts (B, L), padded with -1, or (B, L, E), as in `TokenBatch`; seeds (B,), and the guidance
    scales (B,) of the first and the last latent frame.
    """

    start: float
    text_BL: Num[np.ndarray, "b l *e"]
    negative_BL: Num[np.ndarray, "b l *e"]
    seeds_B: Integer[np.ndarray, " b"]
    guidance_B: Float[np.ndarray, " b"]
    last_guidance_B: Float[np.ndarray, " b"]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """The guidance scale at the beginning and at the end (None: the same), and the negative prompt."""

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


def next_seeds(seeds_B: Integer[np.ndarray, " b"], by: int | Integer[np.ndarray, " b"]) -> Integer[np.ndarray, " b"]:
    """The seeds that come `by` after these."""
    return (np.asarray(seeds_B, np.int64) + by) % 2**32


def with_noise_of(number: int, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts with other seeds, for a further level, or place on a canvas: noise that it shared with another
    one would have been chosen by what that one drew."""
    return [prompt._replace(seeds_B=next_seeds(prompt.seeds_B, OWN_NOISE * number)) for prompt in prompts]


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


def latent_frames_for(frames: int, temporal_patch: int) -> int:
    """The fewest latent frames that hold `frames` frames."""
    return 1 + -(-(frames - 1) // temporal_patch)


def frames_of(latent_frames: int, temporal_patch: int) -> int:
    """The number of frames in `latent_frames` latent frames."""
    return max(0, 1 + (latent_frames - 1) * temporal_patch)
