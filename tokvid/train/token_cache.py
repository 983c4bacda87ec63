"""The token cache: opened and checked here, for all its readers. `tokenize.py` writes it."""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokvid import weights
from tokvid.config import LayoutConfig, Recipe, TransformerConfig
from tokvid.distributed import first
from tokvid.errors import UserError
from tokvid.input_pipeline.records import RecordSource
from tokvid.input_pipeline.sources import fingerprint, holds_out
from tokvid.input_pipeline.text import TextModel
from tokvid.io.settings import to_dict
from tokvid.io.urls import is_url
from tokvid.tasks.conditions import CONDITIONS
from tokvid.tasks.tasks import conditions_of
from tokvid.text.t5 import load_text

log = logging.getLogger(__name__)

AGAIN = "delete it and run `tokvid tokenize` again"
HELD_OUT = "tokens_held_out"  # beside the token cache


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """Tokens, their captions' text model, and the config and layouts of their windows.

    UserError where these don't match, with both values.
    """

    source: RecordSource
    text: TextModel
    config: TransformerConfig
    layouts: LayoutConfig = dataclasses.field(default_factory=LayoutConfig)

    def __post_init__(self) -> None:
        path, config, about = self.source.path, self.config, self.about
        if self.source.kind != "tokens" or not len(self.source):
            raise UserError(f"{path} holds {len(self.source)} records of kind {self.source.kind}, no tokens; {AGAIN}")
        earlier = {"subcodes": 1} if "vocabulary" in about else {}  # earlier caches have no entry for sub-codes
        for name, value in (
            ("vocabulary", config.vocabulary),
            ("subcodes", config.subcodes),
            ("grid", list(config.grid)),
            ("temporal_patch", config.temporal_patch),
        ):
            if (stored := (earlier | about).get(name, value)) != value:
                raise UserError(
                    f"{path} needs transformer {name} {stored}, the config has {value}; use one tokenizer, and give "
                    "the settings, --tokenizer.…, that it was trained with"
                )
        if (stored := about.get("text_model", self.text.fingerprint)) != self.text.fingerprint:
            raise UserError(f"{path} was made with text model {stored}, this one is {self.text.fingerprint}; {AGAIN}")
        if self.text.width != config.text_width:
            raise UserError(
                f"the prompts of {path} are hidden states of width {self.text.width}, the config has "
                f"transformer.text_width {config.text_width}; give the same tokens.t5 as to `tokvid tokenize`"
            )
        if (
            not self.text.width and self.text.vocabulary > config.text_vocabulary
        ):  # fewer are fine: captions of few words give few ids
            raise UserError(
                f"the text model of {path} has {self.text.vocabulary} ids, the config's transformer.text_vocabulary "
                f"is {config.text_vocabulary}; raise it to {self.text.vocabulary}"
            )
        self._check_conditions()

    def _check_conditions(self) -> None:
        stored = self.about.get("conditions", {})
        if (
            self.about.get("tokens", {}).get("coarse_factor") == CONDITIONS["coarse"].slower
        ):  # an entry of earlier versions
            stored = {"coarse": CONDITIONS["coarse"].facts}
        for name, condition in conditions_of(self.layouts.tasks).items():
            if stored.get(name) != condition.facts:
                raise UserError(f"{self.source.path} has no tokens of the condition {name} as it is now; {AGAIN}")

    @property
    def about(self) -> dict[str, Any]:
        """The metadata written with the tokens."""
        return self.source.metadata

    @property
    def facts(self) -> dict[str, Any]:
        """What weights that were trained on these tokens keep of them."""
        kept = {name: self.about[name] for name in ("tokenizer", "text_model", "fps", "size")}
        return kept | {"layouts": to_dict(self.layouts)}

    @property
    def held_out(self) -> "TokenCache | None":
        """The tokens of the held-out videos, or None where there are none."""
        folder = self.source.path.with_name(HELD_OUT)
        return dataclasses.replace(self, source=RecordSource(folder)) if folder.is_dir() else None


def open_token_cache(workdir: Path, recipe: Recipe) -> TokenCache:
    """The token cache of a training folder; UserError where a part is missing or doesn't match."""
    folder = workdir / "tokens"
    if not folder.is_dir():
        raise UserError(f"no token cache in {folder}; make it with `tokvid tokenize CONFIG.py --workdir {workdir}`")
    source, text = RecordSource(folder), load_text(workdir)
    tokenizer, codes = weights.describe(workdir / "tokenizer", "tokenizer"), source.metadata.get("tokenizer")
    if not weights.same_codes(codes, tokenizer):
        raise UserError(f"{folder} was made with tokenizer {codes}, {workdir} has {tokenizer.get('codes')}; {AGAIN}")
    if recipe.train_transformer.start:
        _check_start(recipe.train_transformer.start, tokenizer, text, folder)
    if first():
        _warn_of_changes(recipe, workdir, source.metadata)
    return TokenCache(source, text, recipe.transformer, recipe.layouts)


def _warn_of_changes(recipe: Recipe, workdir: Path, metadata: Mapping[str, Any]) -> None:
    """Warns where the videos have changed since, and where held-out ones were not tokenized. They may lie elsewhere."""
    data, again = recipe.data, "to train on them as they are, tokenize them in another --workdir"
    here = not is_url(data.path) and Path(data.path).exists()
    files = metadata.get("files")
    with contextlib.suppress(UserError, OSError):  # the clips may be gone
        files = fingerprint(data) if here else files
    if metadata.get("files", files) != files:
        log.warning("clips or captions in %s have changed since they were tokenized; %s", data.path, again)
    if holds_out(data) and recipe.tokens.held_out and not (workdir / HELD_OUT).is_dir():
        log.warning(
            "%s is not there, so there will be no held-out loss; run `tokvid tokenize` again", workdir / HELD_OUT
        )


def _check_start(start: str, tokenizer: dict[str, Any], text: TextModel, folder: Path) -> None:
    """UserError where the weights to start from know other tokens or other text ids than those in `folder`."""
    about = weights.describe(weights.find(start) / "transformer", "transformer")
    if not weights.same_codes(about.get("tokenizer"), tokenizer):
        raise UserError(
            f"{start} was trained on tokenizer {about.get('tokenizer')}, {folder} was made with another; use another "
            "--workdir, where `tokvid tokenize` takes the tokenizer of the start"
        )
    if about.get("text_model") != text.fingerprint:
        raise UserError(
            f"{start} was trained with text model {about.get('text_model')}, {folder} was made with "
            f"{text.fingerprint}; {AGAIN}, with --train_transformer.start {start}"
        )
