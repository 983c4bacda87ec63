"""Frames to tokens and back, as a stream, in memory that doesn't grow with length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Int32, Num, UInt8

from tokvid import weights
from tokvid.errors import UserError
from tokvid.tokenizer.cvivit import Cache, latent_shape, token_side
from tokvid.tokenizer.quantizers import codes_of

MOST_PATCHES = 8192  # of a latent frame; attention among them takes one to two gigabytes


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


def latent_frames_for(frames: int, temporal_patch: int) -> int:
    """The fewest latent frames that hold `frames` frames."""
    return 1 + -(-(frames - 1) // temporal_patch)


def frames_of(latent_frames: int, temporal_patch: int) -> int:
    """The number of frames in `latent_frames` latent frames."""
    return max(0, 1 + (latent_frames - 1) * temporal_patch)
