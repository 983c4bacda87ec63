"""Rewards of generated videos, for fine-tuning the transformer: `tokvid train transformer --rewards NAME`.

To add one: a function and a row of `REWARDS`. Users name their own as module:function.
"""

import contextlib
import dataclasses
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokvid import weights
from tokvid.config import Sampling
from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline.text import TextModel
from tokvid.sampling.codec import decode_clips
from tokvid.sampling.decode import Request, generate
from tokvid.shapes.drawing import attributes_of
from tokvid.shapes.reading import mean_distance, read_attributes, score
from tokvid.shapes.words import WORLD, ShapeAttributes
from tokvid.types import TokenBatch

BATCH = 64  # videos decoded at once
ATTRIBUTES = [field.name for field in dataclasses.fields(ShapeAttributes)]
NEAR = 2.0  # pixels of a world of 64: an object so far from its place counts a third


class Made(NamedTuple):
    """What a reward judges: a generated video, and the real one that it has its prompt, and all else, from.

    Both are uint8 (T, H, W, 3), as decoded from tokens. The prompt is what the model reads of the caption: normalised
    (NFKC, single spaces), cut off after `transformer.text_length` pieces, and "" where the task shows it none.
    """

    video_THWC: np.ndarray
    fps: float
    prompt: str
    real_THWC: np.ndarray


Reward = Callable[[Made], float]  # the higher, the better


def shapes(made: Made) -> float:
    """The share of the prompt's attributes that are read from the video, all of them together counted as one more.

    Without a prompt, the attributes are the real video's, and how near the object is to its place counts as one more.
    """
    reading = read_attributes(made.video_THWC, made.fps)
    if made.prompt:
        return float(np.mean([*score(reading, attributes_of(made.prompt)).values()]))
    real = read_attributes(made.real_THWC, made.fps)
    if reading is None or real is None:
        return 0.0
    right = [getattr(reading, name) == getattr(real, name) for name in ATTRIBUTES]
    width = made.real_THWC.shape[2]
    away = mean_distance(reading.centroid_TC, real.centroid_TC, width) * WORLD / width
    nearness = 0.0 if math.isnan(away) else math.exp(-away / NEAR)
    return float(np.mean([*right, all(right), nearness]))


REWARDS: dict[str, Reward] = {"shapes": shapes}


def load_reward(name: str) -> Reward:
    """A row of REWARDS, or the function that module:function names, called with a video and its prompt.

    The module may lie in the current folder. UserError where there is none.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise UserError(f"{did_you_mean(name, REWARDS, 'reward')}; or name a function of yours as module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        own = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        raise UserError(f"the reward's module {module} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(Path.cwd()))
    if not callable(own):
        raise UserError(f"the module {module} has no function {function!r} for the reward")
    return lambda made: own(made.video_THWC, made.prompt)


class Judge:
    """`train.reward_step.Rollouts`: windows from the model's own distribution, and their rewards."""

    def __init__(self, name: str, tokenizer: weights.Loaded, text: TextModel):
        self._name, self._reward = name, load_reward(name)
        self._tokenizer, self._text = tokenizer, text

    def draw(
        self,
        graph: nnx.GraphDef,
        params: nnx.State,
        windows: TokenBatch,
        seeds_B: jax.Array,
        sampling: Sampling,
        guidance_B: np.ndarray,
    ) -> jax.Array:
        """See `Rollouts`."""
        batch, frames, *grid, _ = windows.tokens.shape
        known = jnp.min(jnp.sum(windows.known, axis=(1, 2, 3)))
        request = Request(
            windows,
            jnp.full_like(windows.text, -1),
            jax.vmap(jax.random.key)(seeds_B),
            jnp.broadcast_to(guidance_B[:, None], (batch, frames)),
            known.astype(jnp.int32),
            (frames * math.prod(grid) - known).astype(jnp.int32),
        )
        return generate(graph, params, request, sampling=sampling, guided=bool((guidance_B != 1).any()))

    def judge(
        self, tokens_BTHWQ: np.ndarray, real_BTHWQ: np.ndarray, fps_B: np.ndarray, text_BL: np.ndarray
    ) -> np.ndarray:
        """See `Rollouts`."""
        real, number_B = np.unique(real_BTHWQ, axis=0, return_inverse=True)  # one for each group
        video_BTHWC, real_NTHWC = self._decoded(tokens_BTHWQ), self._decoded(real)
        rewards = []
        for video_THWC, fps, text_L, number in zip(video_BTHWC, fps_B, text_BL, number_B.ravel(), strict=True):
            rewards.append(self._of(Made(video_THWC, float(fps), self._text.decode(text_L), real_NTHWC[number])))
        return np.array(rewards, np.float32)

    def _decoded(self, tokens_NTHWQ: np.ndarray) -> np.ndarray:
        starts = range(0, len(tokens_NTHWQ), BATCH)
        return np.concatenate([decode_clips(self._tokenizer, tokens_NTHWQ[at : at + BATCH]) for at in starts])

    def _of(self, made: Made) -> float:
        where, advice = f"the reward {self._name} of a video of {made.prompt!r:.80}", "mend it, and run again to go on"
        try:
            value: Any = self._reward(made)
        except UserError:
            raise
        except Exception as error:  # the user's code can raise anything
            raise UserError(f"{where} raised {type(error).__name__}: {error}; {advice}") from error
        try:
            number = float(value)
        except Exception as error:  # also of arrays of other libraries
            raise UserError(f"{where} is {value!r:.40}, it should be a number; {advice}") from error
        if not math.isfinite(number):
            raise UserError(f"{where} is {number}, it should be a finite number; {advice}")
        return number


def judge_of(name: str, workdir: Path, text: TextModel) -> Judge:
    """The judge that decodes with a training folder's tokenizer."""
    return Judge(name, weights.load(workdir / "tokenizer", "tokenizer"), text)
