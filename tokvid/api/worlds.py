"""Weights by name: those that come with tokvid, a folder, or a URL. Imports nothing slow, for `--help`."""

import os
from pathlib import Path

from tokvid.io.files import shipped, worlds
from tokvid.io.urls import URL, is_url

SHIPPED, WORLDS = shipped(), worlds()  # the weights that come with tokvid, by name


def weights_named(name: str | os.PathLike[str]) -> URL | Path:
    """A name of WORLDS, a folder, or a URL, which stays one until it is fetched. A folder here wins over a name."""
    text = os.fspath(name)
    if text in WORLDS and not Path(text).exists():
        return WORLDS[text]
    return URL(text) if is_url(text) else Path(text)
