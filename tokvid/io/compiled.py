"""Compiled programs are kept on disk, so that what runs again doesn't compile again."""

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax

log = logging.getLogger(__name__)
MOST_BYTES = 2 << 30  # that are kept; those used longest ago go first


def keep_programs() -> None:
    """Keeps them in $JAX_COMPILATION_CACHE_DIR, else in the user's cache folder ($JAX_ENABLE_COMPILATION_CACHE=0: not).

    On a CPU, where a program is for one model of processor alone, in a folder of its own for each; and all of them, for
    the many small ones take seconds together.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    folder = default_folder()
    if jax.default_backend() == "cpu":
        folder /= f"cpu-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a home that can't be written to
        log.debug("compiled programs are not kept: %s", error)
        return
    if jax.default_backend() == "cpu":
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def default_folder() -> Path:
    """Where they are kept unless the environment says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokvid" / "programs"


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """16 hex digits that processors of one model share: what it can do, where that is told, else its name."""
    try:
        told = sorted({line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))})
    except OSError:  # not Linux
        told = [platform.processor(), platform.version()]
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:16]
