"""Compiled programs are kept on disk, so that a job that starts again doesn't compile again."""

import os
from pathlib import Path

import jax


def keep_programs() -> None:
    """Keeps them in $JAX_COMPILATION_CACHE_DIR, else in the user's cache folder ($JAX_ENABLE_COMPILATION_CACHE=0: not).

    Not on a CPU unless that folder is named: there a program is for one model of processor alone, and compiles soon.
    """
    if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(default_folder()))


def default_folder() -> Path:
    """Where they are kept unless the environment says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokvid" / "programs"
