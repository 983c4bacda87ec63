"""Clips shown while the transformer trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from tokvid import weights
from tokvid.config import Sampling
from tokvid.evaluate.batches import Settings, generate_batch
from tokvid.io.media import contact_sheet, write_video
from tokvid.sampling.codec import frames_of
from tokvid.sampling.models import Models
from tokvid.train.state import sheet
from tokvid.train.token_cache import TokenCache

SHOWN = 4  # prompts


def training_samples(workdir: Path, cache: TokenCache) -> Callable[[Any, Path, int], None]:
    """The `show` of `TransformerTraining`: clips of some training prompts, as a sheet, and as a video side by side.

    They are told at one level, and drawn as many rows at once as comes first in `layouts.rows`.
    """
    tokenizer, source = weights.load(workdir / "tokenizer", "tokenizer"), cache.source
    settings = Settings(scheme="one-level", sampling=Sampling(rows=cache.layouts.rows[0]))
    prompts = [source[index].captions[0].text for index in range(min(SHOWN, len(source)))]

    def show(model: Any, directory: Path, step: int) -> None:
        graph, params = nnx.split(model)
        models = Models(tokenizer, weights.Loaded(model.config, graph, params, cache.facts), cache.text)
        fps = float(max(cache.about["fps"]))
        parts = [(frames_of(2 * model.config.latent_frames, model.config.temporal_patch) / fps, prompts)]
        videos = generate_batch(models, fps, parts, np.arange(len(prompts)), settings)
        write_video(directory / f"{step:07d}.mp4", np.concatenate(list(videos), axis=2).repeat(4, 1).repeat(4, 2), fps)
        contact_sheet(sheet(directory, step), list(videos), captions=prompts)

    return show
