"""Checkpoints that count only once they are verified.

orbax writes state and data iterator asynchronously. A thread then reads the step back and writes `commit.json`, with
the SHA-256 of every file and of itself. A step without this commit record doesn't count as saved; a step whose files
don't match it is set aside with a warning. Every process of a job writes its part of the arrays; process 0 commits,
verifies and removes checkpoints.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tokvid.config import computed
from tokvid.distributed import check_shared, first, from_first, together
from tokvid.errors import UserError, difference, reason
from tokvid.io.files import seal, to_json, write_json

log = logging.getLogger(__name__)
FORMAT = 3
HASHING = 4  # threads
READ_BACK = 1 << 28  # bytes at once
NONE = -1  # no step
OF_WEIGHTS = ("start", "lora of")  # what must agree and is a fingerprint
ADVICE = "free some space or choose another --workdir, then run again to resume"


class Checkpoints:
    """The checkpoints of one training folder, locked against a second job; a context manager."""

    def __init__(self, folder: Path, keep: int, agree: Mapping[str, Any]):
        """`agree`: JSON values (model config, data fingerprint) that must match a checkpoint on resuming.

        UserError if the folder cannot be written to or another job is using it.
        """
        self.folder, self.agree = folder.absolute(), json.loads(json.dumps(agree))
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved: int | None = None  # the last step saved or restored
        self._read_back = False  # whether this run has read back all values of a save
        self._held = contextlib.ExitStack()
        if first():
            self._held.enter_context(locked(self.folder / "lock", f"training in {self.folder.parent}"))
        logging.getLogger("absl").addFilter(_without_traceback)
        if not isinstance(sys.unraisablehook, _WithoutClosedLoop):
            sys.unraisablehook = _WithoutClosedLoop(sys.unraisablehook)
        try:
            for step in self._steps() if first() else ():
                if not self._record(step).exists():
                    log.warning("checkpoint %d in %s was never finished: removed", step, self.folder)
                    shutil.rmtree(self._path(step))
            together("checkpoints")  # no process reads them before
            check_shared(self.folder)
            self._literal = self._held.enter_context(_literal(self.folder))
            # At least two, because orbax removes old checkpoints before the new one is committed.
            options = ocp.CheckpointManagerOptions(max_to_keep=max(2, keep), cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self._literal, options=options)
        except OSError as error:
            self._release()
            raise UserError(f"cannot write checkpoints to {folder}: {reason(error)}; {ADVICE}") from error
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except UserError as failed:
            if error is None:
                raise
            log.error("%s", failed)  # the other error takes precedence
        finally:
            self._close()

    def save(self, step: int, state: Any, data: Mapping[str, Any]) -> None:
        """Starts saving, unless that step is saved already; `state` may be donated once this returns.

        UserError if this save or the previous one failed, or if a leaf of the state is not finite.
        """
        self.wait()
        if step == self._saved:
            return
        self._check_finite(step, state)
        data = json.loads(json.dumps(data))  # a copy: it is written in the background and may change meanwhile
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._failed(error) from error
        self._saved = step
        self._thread = threading.Thread(target=self._commit, args=(step, _leaves(state), data), name=f"commit {step}")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last save is committed; UserError if it failed (a full disk, for example)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise self._failed(error) from error

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest intact checkpoint as (step, state, data iterator state), or None if nothing was ever saved.

        `like` is a state, or one of ShapeDtypeStructs, with the shapes and shardings to restore to: any mesh, any
        number of processes. UserError if no checkpoint is intact, or the newest one doesn't match this training.
        """
        step = from_first(self._newest_whole(like) if first() else NONE)
        if step == NONE:
            return None
        self._manager.reload()
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:
            raise UserError(
                f"checkpoint {self._path(step)} cannot be read by this version of tokvid ({_first_line(error)}); "
                "resume with the version that wrote it or use another --workdir"
            ) from error
        self._saved = step
        return step, restored["state"], restored["data"]

    def newest(self) -> str:
        """A description of the newest committed checkpoint, after waiting for the last save."""
        if self._thread is not None:
            self._thread.join()
        saved = [step for step in self._steps() if self._record(step).exists()]
        return f"checkpoint {self._path(saved[-1])}" if saved else "the beginning: there is no checkpoint yet"

    def _newest_whole(self, like: Any) -> int:
        """The step of the newest intact checkpoint, or NONE if nothing was ever saved. Sets damaged ones aside."""
        damaged: dict[int, str] = {}
        for step in reversed(self._steps()):
            if damage := self._damage(step):
                damaged[step] = damage
                continue
            self._check_agreement(step, like)
            self._set_aside(damaged, step)
            return step
        if damaged:
            named = "; ".join(f"{step}: {damage}" for step, damage in damaged.items())
            raise UserError(f"no checkpoint in {self.folder} is intact ({named}); use another --workdir to start again")
        return NONE

    def _commit(self, step: int, leaves: Mapping[str, Any], data: Any) -> None:
        try:
            self._manager.wait_until_finished()  # of all processes
            if first():
                _read_back(self._literal / str(step), leaves, data, values=not self._read_back)
                self._read_back = True
                record = {"format": FORMAT, "step": step, "finite": True, "agree": self.agree, "leaves": leaves}
                record |= {"files": _hashes(self._path(step))}
                write_json(self._record(step), record | {"sha256": seal(record)})
        except BaseException as error:  # raised again in the training thread, by wait()
            self._error = error

    def _check_finite(self, step: int, state: Any) -> None:
        """UserError with the name of the first non-finite leaf, if any."""
        for name, finite in zip(_leaves(state), jax.device_get(_finite(state)), strict=True):
            if not finite:
                raise UserError(
                    f"{name} is not finite at step {step}, which was not saved. Lower the learning rate, then run "
                    f"again: training resumes from {self.newest()}"
                )

    def _close(self) -> None:
        try:
            self._manager.close()
        except Exception as error:  # orbax reports a failed save again
            log.debug("closing the checkpoints of %s: %s", self.folder, error)
        finally:
            self._release()

    def _release(self) -> None:
        self._held.close()

    def _failed(self, error: BaseException) -> UserError:
        why = _first_line(error.__cause__ or error)
        if code := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's message is much longer
            why = os.strerror(int(code[1]))
        return UserError(f"saving a checkpoint to {self.folder} failed: {why}; {ADVICE}")

    def _damage(self, step: int) -> str:
        """The damage of a committed step, or "". Steps of other versions can't be checked."""
        try:
            text = self._record(step).read_text(encoding="utf-8")
            record = json.loads(text)
            if record["format"] != FORMAT and record.get("sha256") is None:
                return ""
            # Compare the text, too: 1E-3 and 1e-3 are equal as values.
            if record["sha256"] != seal(record) or text != to_json(record) or record["finite"] is not True:
                return "commit.json is not what was saved"
            wanted, actual = record["files"], _hashes(self._path(step))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"unreadable: {_first_line(error)}"
        bad = sorted(name for name in wanted.keys() | actual.keys() if wanted.get(name) != actual.get(name))
        return f"{bad[0]} is not what was saved" if bad else ""

    def _set_aside(self, damaged: Mapping[int, str], instead: int) -> None:
        for step, damage in damaged.items():
            aside = self._path(step).with_name(f"damaged-{step}")
            shutil.rmtree(aside, ignore_errors=True)
            self._path(step).rename(aside)
            log.warning(
                "checkpoint %d is damaged (%s): set aside as %s; going back to %d",
                step,
                damage,
                aside,
                instead,
            )

    def _check_agreement(self, step: int, like: Any) -> None:
        record = json.loads(self._record(step).read_text(encoding="utf-8"))
        if (version := record.get("format")) != FORMAT:
            raise UserError(
                f"checkpoint {self._path(step)} has format {version!r}, this version of tokvid reads {FORMAT}; "
                "resume with the version that wrote it or use another --workdir"
            )
        saved = record["agree"]
        for key in sorted(self.agree.keys() | saved.keys()):
            was, now = (
                computed(value) if isinstance(value, Mapping) else value
                for value in (saved.get(key), self.agree.get(key))
            )
            if was != now and key in OF_WEIGHTS and was and now:
                raise UserError(
                    f"{self.folder.parent} was trained from weights {was}, those at train_transformer.start are {now} "
                    "now; resume with the weights that it started from, or use another --workdir"
                )
            if was != now:
                raise UserError(
                    f"{self.folder.parent} was trained with {key} {difference(was, now)}; "
                    "resume with the same config or use another --workdir"
                )
        # orbax casts types silently.
        leaves, wanted = record["leaves"], _leaves(like)
        for name in [*wanted, *leaves]:
            if leaves.get(name) != wanted.get(name):
                raise UserError(
                    f"checkpoint {self._path(step)} doesn't fit this training: {name} is {_kind(leaves.get(name))} "
                    f"there, {_kind(wanted.get(name))} here; resume with the config and the version that wrote it or "
                    "use another --workdir"
                )

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.iterdir() if path.is_dir() and path.name.isdecimal())

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _record(self, step: int) -> Path:
        return self._path(step) / "commit.json"


def locked(file: Path, doing: str) -> IO[str]:
    """The open lock file of a workdir, created if missing. Closing it, or the end of the process, releases the lock.

    UserError where another job holds it, which is said to be `doing` that.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(file, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write to {file.parent}: {reason(error)}; {ADVICE}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = not file.exists() or not os.path.samestat(os.fstat(lock.fileno()), file.stat())  # it has just ended
    except BlockingIOError:
        taken = True
    except OSError as error:
        log.warning("%s cannot be locked (%s): make sure that no other job is %s", file, error.strerror, doing)
        taken = False
    if taken:
        lock.close()
        raise UserError(f"another job is {doing}; wait for it or use another --workdir")
    return lock


@contextlib.contextmanager
def _literal(folder: Path) -> Iterator[Path]:
    """A path to `folder`, via a link if necessary, that orbax and TensorStore don't interpret as a pattern or URL.

    They do so silently: with `[` in the path, orbax doesn't find its own files and leaves them unmerged.
    """
    if _is_literal(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tokvid-") as name:
        if not _is_literal(Path(name)):
            raise UserError(f"checkpoints can be kept neither in {folder} nor by way of {name}: use another --workdir")
        link = Path(name) / "checkpoints"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _is_literal(path: Path) -> bool:
    return re.fullmatch(r"[\w ./-]*", str(path)) is not None


def _read_back(step: Path, leaves: Mapping[str, Any], data: Any, values: bool) -> None:
    """Raises ValueError, or orbax's error, if the step can't be restored: arrays are missing, or they or `data` differ.

    With `values`, reads all values, too, READ_BACK bytes at a time.
    """
    if ocp.JsonCheckpointHandler().restore(step / "data") != data:
        raise ValueError("the position in the data reads back differently")
    arrays = ocp.PyTreeCheckpointHandler()
    stored, tree = jax.tree.flatten(arrays.metadata(step / "state").tree)
    kinds = {leaf.name.removesuffix(".value"): [str(leaf.dtype), list(leaf.shape)] for leaf in stored}
    if kinds != leaves:
        wrong = next(name for name in [*leaves, *kinds] if kinds.get(name) != leaves.get(name))
        raise ValueError(f"{wrong} reads back as {_kind(kinds.get(wrong))}, not {_kind(leaves.get(wrong))}")
    ends = np.cumsum([np.dtype(leaf.dtype).itemsize * math.prod(leaf.shape) for leaf in stored]) // READ_BACK
    for part in np.unique(ends) if values else ():
        chosen = [leaf if end == part else ocp.PLACEHOLDER for leaf, end in zip(stored, ends, strict=True)]
        some = jax.tree.unflatten(tree, chosen)
        as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), some)
        arrays.restore(step / "state", args=ocp.args.PyTreeRestore(item=some, restore_args=as_numpy))


class _WithoutClosedLoop:
    """Drops what TensorStore's threads print after a failed save, even once the checkpoints are closed."""

    def __init__(self, shown: Callable[[Any], object]):
        self.shown = shown

    def __call__(self, what: Any) -> None:
        if str(what.exc_value) != "Event loop is closed":
            self.shown(what)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Drops the pages of tracebacks that orbax logs via absl for a failed save; `wait` reports it on one line.

    It stays for good: orbax's threads may end, and log, after the checkpoints are closed.
    """
    return not (record.exc_info and "orbax" in record.pathname)


def _hashes(folder: Path) -> dict[str, str]:
    def digest(path: Path) -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "commit.json")
    with ThreadPoolExecutor(HASHING) as pool:
        return dict(zip((str(path.relative_to(folder)) for path in files), pool.map(digest, files), strict=True))


def _leaves(state: Any) -> dict[str, list[Any]]:
    """Each leaf's type and shape by name, as JSON values."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): [
            str(leaf.dtype),
            list(leaf.shape),
        ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _kind(leaf: list[Any] | None) -> str:
    return f"{leaf[0]}{leaf[1]}" if leaf else "missing"


@jax.jit
def _finite(state: Any) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
