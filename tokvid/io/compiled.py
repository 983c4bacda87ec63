"""Keeps compiled programs on disk, so that later runs don't compile them again."""

import contextlib
import hashlib
import logging
import os
import platform
import zlib
from pathlib import Path

import filelock
import jax

from tokvid.io.libtpu import quiet_without_tpu

log = logging.getLogger(__name__)
MOST_BYTES = 2 << 30  # on disk, after a start; the least recently used programs are removed first
ZSTANDARD = b"\x28\xb5\x2f\xfd"


def keep_programs() -> None:
    """Keeps programs in $JAX_COMPILATION_CACHE_DIR, by default in the user's cache folder; see `default_folder`.

    $JAX_ENABLE_COMPILATION_CACHE=0 disables it. On CPUs, a program runs on one processor model only, so each has a
    folder; and even small programs are kept, because together they take seconds.
    """
    quiet_without_tpu()
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
    _tidy(folder)
    if jax.default_backend() == "cpu":
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", -1)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _tidy(folder: Path) -> None:
    """Removes programs that a killed process was writing and, beyond MOST_BYTES, those that were not used for longest.

    Not JAX's own eviction, which looks through the whole folder whenever a program is added: 0.2 s at 4,000 programs.
    """
    with contextlib.suppress(OSError, filelock.Timeout), filelock.FileLock(folder / ".lockfile", timeout=10):
        stamp, programs = folder / ".checked", []
        checked = stamp.stat().st_mtime if stamp.exists() else 0.0
        for program in folder.glob("*-cache"):
            status = program.stat()
            if status.st_mtime >= checked - 1 and not _is_whole(program.read_bytes()):
                program.unlink(missing_ok=True)
            else:
                programs.append((max(status.st_atime, status.st_mtime), status.st_size, program))
        stamp.touch()
        left = sum(size for _, size, _ in programs)
        for _, size, program in sorted(programs):
            if left <= MOST_BYTES:
                break
            program.unlink(missing_ok=True)
            left -= size


def _is_whole(program: bytes) -> bool:
    """Whether JAX's compression ends where the file does."""
    if program.startswith(ZSTANDARD):  # where that package is installed; JAX compiles again what it cannot read
        return True
    stream = zlib.decompressobj()
    try:
        stream.decompress(program)
    except zlib.error:
        return False
    return stream.eof


def default_folder() -> Path:
    """The default folder of compiled programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokvid" / "programs"


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """16 hex digits that processors of one model share: of its feature flags, where these are known, else its name."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        features = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    except OSError:  # not Linux
        features = [platform.processor(), platform.version()]
    return hashlib.sha256("\n".join([platform.machine(), *features]).encode()).hexdigest()[:16]
