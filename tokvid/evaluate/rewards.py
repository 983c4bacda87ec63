"""Rewards of generated videos, for fine-tuning the transformer: `tokvid train transformer --rewards NAME`.

To add one: a function and a row of `REWARDS`. Users name their own as module:function.
"""

import contextlib
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokvid import weights
from tokvid.config import Sampling
from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline.text import TextModel
from tokvid.sampling.decode import Request, generate
from tokvid.sampling.stream import StreamDecoder
from tokvid.shapes.drawing import attributes_of
from tokvid.shapes.reading import read_attributes, score
from tokvid.types import TokenBatch

# (video uint8 (T, H, W, 3), frames per second, prompt) → a number, the higher the better.
Reward = Callable[[np.ndarray, float, str], float]
BATCH = 64  # videos decoded at once


def shapes(video_THWC: np.ndarray, fps: float, prompt: str) -> float:
    """The share of the prompt's attributes that are read from the video, all of them together counted as one more."""
    right = score(read_attributes(video_THWC, fps), attributes_of(prompt))
    return float(np.mean([*right.values()]))


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
    except Exception as error:  # the user's code can raise anything
        raise UserError(f"the reward's module {module} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(Path.cwd()))
    if not callable(own):
        raise UserError(f"the module {module} has no function {function!r} for the reward")
    return lambda video_THWC, fps, prompt: own(video_THWC, prompt)


class Judge:
    """`train.reward_step.Rollouts`: windows from the model's own distribution, and their rewards."""

    def __init__(self, name: str, tokenizer: weights.Loaded, text: TextModel):
        self._name, self._reward = name, load_reward(name)
        self._tokenizer, self._text = tokenizer, text

    def draw(
        self, graph: nnx.GraphDef, params: nnx.State, windows: TokenBatch, seeds_B: jax.Array, known: int, rows: int
    ) -> jax.Array:
        """See `Rollouts`. Neither guidance nor temperature: the gradient is that of the model's own distribution."""
        batch, frames, *grid, _ = windows.tokens.shape
        request = Request(
            windows,
            jnp.full_like(windows.text, -1),
            jax.vmap(jax.random.key)(seeds_B),
            jnp.ones((batch, frames)),
            jnp.int32(known),
            jnp.int32(frames * math.prod(grid) - known),
        )
        own = Sampling(temperature=1.0, later_temperature=1.0, rows=rows)
        return generate(graph, params, request, sampling=own, guided=False)

    def judge(self, tokens_BTHWQ: np.ndarray, fps_B: np.ndarray, text_BL: np.ndarray) -> np.ndarray:
        """See `Rollouts`."""
        rewards = []
        for first in range(0, len(tokens_BTHWQ), BATCH):
            part = slice(first, first + BATCH)
            video_BTHWC = self._decoded(tokens_BTHWQ[part])
            for video_THWC, fps, text_L in zip(video_BTHWC, fps_B[part], text_BL[part], strict=True):
                rewards.append(self._of(video_THWC, float(fps), self._text.decode(text_L)))
        return np.array(rewards, np.float32)

    def _decoded(self, tokens_BTHWQ: np.ndarray) -> np.ndarray:
        batch, _, rows, columns, _ = tokens_BTHWQ.shape
        return StreamDecoder(self._tokenizer, batch, rows, columns).feed(tokens_BTHWQ)

    def _of(self, video_THWC: np.ndarray, fps: float, prompt: str) -> float:
        where, advice = f"the reward {self._name} of a video of {prompt!r:.80}", "mend it, and run again to go on"
        try:
            value: Any = self._reward(video_THWC, fps, prompt)
            number = float(value)
        except UserError:
            raise
        except Exception as error:  # the user's code can raise anything
            raise UserError(f"{where} raised {type(error).__name__}: {error}; {advice}") from error
        if not math.isfinite(number):
            raise UserError(f"{where} is {number}, it should be a finite number; {advice}")
        return number


def judge_of(name: str, workdir: Path, text: TextModel) -> Judge:
    """The judge that decodes with a training folder's tokenizer."""
    return Judge(name, weights.load(workdir / "tokenizer", "tokenizer"), text)
