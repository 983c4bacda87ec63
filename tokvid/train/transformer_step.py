"""Training the transformer on the token cache: what it minimises, what it sees."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tokvid import weights
from tokvid.config import DataConfig, Recipe, computed, to_dict
from tokvid.errors import UserError
from tokvid.flops import TRAINING, window_flops, windows_in_a_row
from tokvid.input_pipeline.sources import fingerprint
from tokvid.input_pipeline.text import TextModel
from tokvid.input_pipeline.windows import TASKS, coarse_span, token_batches, window_lengths
from tokvid.transformer.layout import corrupted
from tokvid.transformer.model import Transformer, sequence_of
from tokvid.types import TokenBatch

HELD_OUT = "tokens_held_out"  # beside the token cache
VALIDATION_SEED = 1


class TransformerTask:
    """`Task` of the transformer, for `train.loop.train`."""

    name = "transformer"

    def __init__(
        self,
        recipe: Recipe,
        cache: Path | None = None,
        about: Mapping[str, Any] | None = None,
        text: TextModel | None = None,
        show: Callable[..., None] | None = None,
    ):
        """`cache`, `about` and `text` are what `token_cache.open_token_cache` gives; without, there are no batches.

        `show(model, directory, step)` makes sample videos: it needs the sampling room, which this one doesn't import.
        UserError where the cache doesn't fit the recipe.
        """
        self.recipe, self.config, self.show = recipe, recipe.transformer, show
        if cache is not None and about is not None and text is not None:
            self.cache, self.about, self.text = cache, about, text
            self._check()

    def _check(self) -> None:
        config, cache, about, text = self.config, self.cache, self.about, self.text
        for field, wanted, found in (
            ("vocabulary", about["vocabulary"], config.vocabulary),
            ("subcodes", about.get("subcodes", 1), config.subcodes),
            ("rows and columns of latent", about["grid"], list(config.latent[1:])),
            ("temporal_patch", about["temporal_patch"], config.temporal_patch),
        ):
            if wanted != found:
                raise UserError(f"the token cache {cache} needs transformer {field} {wanted}, the config has {found}")
        if text.vocabulary > config.text_vocabulary:  # fewer are fine: captions of few words give no more
            raise UserError(
                f"the text model of {cache} has {text.vocabulary} ids, the config's transformer text_vocabulary is "
                f"{config.text_vocabulary}; raise it to {text.vocabulary}"
            )

    def make_model(self, rngs: nnx.Rngs) -> Transformer:
        return Transformer(self.config, rngs=rngs)

    def loss(
        self, model: Transformer, batch: TokenBatch, key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the generated video tokens, all sub-codes together, plus z-loss (PaLM, section 5)."""
        sequence = sequence_of(self.config, batch)
        video = math.prod(batch.tokens.shape[1:4])  # the last slots; text, rate and coarse clip are never predicted
        if key is not None and (most := self.recipe.layouts.corruption):
            sequence = corrupted(sequence, video, most, model.vocabulary, key)
        hidden, _ = model.run(sequence, None, 0)
        scores = model.head.scores(model.norm(hidden[:, -video:]), sequence.target[:, -video:])
        weight_BL = sequence.generated[:, -video:].astype(jnp.float32)
        count = jnp.maximum(weight_BL.sum(), 1.0)
        cross_entropy = -jnp.sum(weight_BL * scores.log_likelihood) / count
        z = self.config.z_loss * jnp.sum(weight_BL * scores.normaliser) / count
        right = jnp.sum(weight_BL * scores.right) / count
        return cross_entropy + z, {"cross_entropy": cross_entropy, "z_loss": z, "accuracy": right}

    def weight(self, batch: TokenBatch) -> jax.Array:
        """How many tokens are generated, over which `loss` takes the mean."""
        return sequence_of(self.config, batch).generated.sum().astype(jnp.float32)

    def flops(self) -> float:
        config, layouts, factor = self.config, self.recipe.layouts, self.recipe.tokens.coarse_factor
        share = layouts.interpolation / sum(getattr(layouts, task) for task in TASKS)  # with a coarse clip before them
        coarse = window_flops(config, coarse_span(0, config.latent[0], factor)[1]) if share else 0.0
        lengths = window_lengths(layouts, config)
        plain = [windows_in_a_row(config, frames) * window_flops(config, frames=frames) for frames in lengths]
        return TRAINING * ((1 - share) * sum(plain) / len(plain) + share * coarse)

    def batches(self, block: tuple[int, int] = (0, 1)) -> Any:
        return self._batches(self.cache, self.recipe.train_transformer.seed, block)

    def validation(self, block: tuple[int, int] = (0, 1)) -> Any:
        folder = self.cache.with_name(HELD_OUT)
        return self._batches(folder, VALIDATION_SEED, block) if folder.is_dir() else None

    def _batches(self, folder: Path, seed: int, block: tuple[int, int]) -> Any:
        recipe, batch = self.recipe, self.recipe.train_transformer.batch // block[1]
        return token_batches(
            folder,
            recipe.layouts,
            self.config,
            batch,
            seed,
            text_model=self.text,
            threads=recipe.data.threads,
            shard=block,
        )

    def alarm(self, metrics: Mapping[str, float]) -> str:
        return ""

    def samples(self, model: Transformer, directory: Path, step: int) -> None:
        if self.show is not None:
            self.show(model, directory, step)

    def finish(self, variables: nnx.State, directory: Path, step: int) -> None:
        about: dict[str, Any] = {name: self.about[name] for name in ("tokenizer", "text_model", "fps", "size")}
        about |= {
            "layouts": to_dict(self.recipe.layouts),
            "coarse_factor": self.about.get("tokens", {}).get("coarse_factor", 1),
        }
        weights.save(directory, "transformer", self.config, variables, steps=step, **about)

    def describe(self) -> Mapping[str, Any]:
        return {
            "transformer": computed(self.config),
            "layouts": to_dict(self.recipe.layouts),
            "tokenizer": self.about["tokenizer"],
            "text_model": self.about["text_model"],
            "data": self.about["data"],
            "tokens": self.about["tokens"] | {"files": fingerprint(DataConfig(source="records", path=str(self.cache)))},
        }
