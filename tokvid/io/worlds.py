"""Weights by name: those that come with tokvid, a folder, or a URL. Imports nothing slow, for `--help`."""

import os
from pathlib import Path

from tokvid.io.urls import URL, is_url


def _shipped() -> Path:
    """The folder of the shipped weights and stories: `data/` in a checkout, or in the installed package."""
    package = Path(__file__).resolve().parents[1]
    return inside if (inside := package / "data").is_dir() else package.parent / "data"


SHIPPED = _shipped()
# The folders of the shipped weights, by name.
WORLDS = {"shapes": SHIPPED, **{each.parent.name: each.parent for each in sorted(SHIPPED.glob("*/tokenizer"))}}


def weights_named(name: str | os.PathLike[str]) -> URL | Path:
    """A name of WORLDS, a folder, or a URL, which stays one until it is fetched. A folder here wins over a name."""
    text = os.fspath(name)
    if text in WORLDS and not Path(text).exists():
        return WORLDS[text]
    return URL(text) if is_url(text) else Path(text)
