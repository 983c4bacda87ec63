"""Keeps compiled programs on disk, so that later runs don't compile them again."""

import contextlib
import hashlib
import logging
import os
import platform
from pathlib import Path

import filelock
import jax

log = logging.getLogger(__name__)
MOST_BYTES = 2 << 30  # on disk; the least recently used programs are removed first


def keep_programs() -> None:
    """Keeps programs in $JAX_COMPILATION_CACHE_DIR, by default in the user's cache folder; see `default_folder`.

    $JAX_ENABLE_COMPILATION_CACHE=0 disables it. On CPUs, a program runs on one processor model only, so each has a
    folder; and even small programs are kept, because together they take seconds.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    folder = default_folder()
    if jax.default_backend() == "cpu":
        folder /= f"cpu-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a read-only home
        log.debug("compiled programs are not kept: %s", error)
        return
    _remove_torn(folder)
    if jax.default_backend() == "cpu":
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _remove_torn(folder: Path) -> None:
    """Removes programs that a killed process was writing: JAX would keep no other one as long as they are there."""
    with contextlib.suppress(OSError, filelock.Timeout), filelock.FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():  # written after it
                program.unlink(missing_ok=True)


def default_folder() -> Path:
    """The default folder of compiled programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokvid" / "programs"


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """16 hex digits that processors of one model share: of its feature flags, where these are known, else its name."""
    try:
        features = sorted({line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))})
    except OSError:  # not Linux
        features = [platform.processor(), platform.version()]
    return hashlib.sha256("\n".join([platform.machine(), *features]).encode()).hexdigest()[:16]
