"""Exact likelihood of real videos under the autoregressive model: bits per pixel, and the best-fitting caption."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokvid.nn.visibility import NEVER
from tokvid.sampling.models import Models
from tokvid.sampling.window import window_ends
from tokvid.train.transformer_step import scored
from tokvid.transformer.layout import as_generated, clip_slots, lay_out
from tokvid.types import TokenBatch, token_batch

CANDIDATES = 16  # captions ranked per video, the true one included


def log_likelihood(
    models: Models, tokens_BTHWQ: np.ndarray, fps: float, captions: Sequence[str], known: int = 0, keep: int = 2
) -> np.ndarray:
    """Nats (B,) of each video's tokens after the first `known` latent frames, under its caption, token by token.

    Long videos are evaluated window by window, as in sampling, each given the `keep` latent frames before it.
    """
    config = models.transformer.config
    batch, end = tokens_BTHWQ.shape[:2]
    text_BL = np.stack([models.text.encode(caption, config.text_length) for caption in captions])
    total_B, first = np.zeros(batch), known
    for last in window_ends(known, end, config.latent_frames, keep):
        start = first - min(keep, first)
        window = np.full((batch, config.latent_frames, *tokens_BTHWQ.shape[2:]), -1, np.int32)
        window[:, : last - start] = tokens_BTHWQ[:, start:last]
        given_T = np.arange(config.latent_frames) < first - start
        known_BTHW = np.broadcast_to(given_T[:, None, None], window.shape[:-1])
        request = token_batch(
            as_generated(config, window, known_BTHW),
            np.full(batch, start, np.int32),
            np.full(batch, fps, np.float32),
            text_BL,
            known_BTHW,
        )
        total_B += np.asarray(_window(models.transformer.graph, models.transformer.params, request), np.float64)
        first = last
    return total_B


@functools.partial(jax.jit, static_argnames="graph")
def _window(graph: nnx.GraphDef, params: nnx.State, batch: TokenBatch) -> jax.Array:
    """Nats (B,) of the generated tokens of windows; tokens of -1 are absent."""
    model = nnx.merge(graph, params)
    sequence, clip = lay_out(model.config, batch), clip_slots(batch)
    scores, generated_BL = scored(model, sequence, clip)
    asked_BL = (generated_BL > 0) & (sequence.block[:, clip] != NEVER)
    return jnp.sum(jnp.where(asked_BL, scores.log_likelihood, 0), axis=1)


def other_captions(captions: Sequence[str], rng: np.random.Generator) -> list[list[str]]:
    """For each caption, CANDIDATES - 1 of those that differ from it, or all of these if there are fewer."""
    others = [sorted({other for other in captions if other != caption}) for caption in captions]
    return [rng.permutation(each)[: CANDIDATES - 1].tolist() for each in others]


def caption_ranks(
    models: Models,
    tokens_BTHWQ: np.ndarray,
    fps: float,
    captions: Sequence[str],
    others: Sequence[Sequence[str]],
) -> tuple[np.ndarray, np.ndarray]:
    """Per video, how many `others` give it a higher likelihood than its own caption, and its own nats."""
    own_B = log_likelihood(models, tokens_BTHWQ, fps, captions)
    better_B = np.zeros(len(captions), int)
    for number in range(max(map(len, others), default=0)):
        instead = [
            each[number] if number < len(each) else caption for each, caption in zip(others, captions, strict=True)
        ]
        better_B += log_likelihood(models, tokens_BTHWQ, fps, instead) > own_B
    return better_B, own_B
