"""The trained models that turn a prompt into a video, and how they are loaded."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from tokvid import weights
from tokvid.errors import UserError
from tokvid.input_pipeline.text import TextModel
from tokvid.tasks.tasks import trained_tasks
from tokvid.text.t5 import load_text
from tokvid.tokenizer.cvivit import token_side
from tokvid.transformer import lora_files


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


def load_models(folder: str | Path, loras: Sequence[lora_files.Scaled] = ()) -> Models:
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
        return weights.load(folder / "transformer", "transformer", [*loras, lora_files.Scaled(path)])

    # A LoRA is used as it was trained: for its tasks, the weights' own ones weren't there.
    own, others = lora_files.task_loras(folder / "transformer"), transformer.about.get("lora_tasks", ())
    tuned = {task: functools.partial(load, path) for task, path in own.items() if task not in others}
    return Models(tokenizer, transformer, text, tuned)
