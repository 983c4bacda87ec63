"""Checkpoints that count only once they are proved whole.

orbax writes state and data iterator asynchronously; a thread then writes `commit.json` last, with the SHA-256 of every file.
A step without its commit record never counts as saved; one whose files don't match it is set aside and named.
"""

import fcntl
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tokvid.errors import UserError
from tokvid.files import write_json

log = logging.getLogger(__name__)
FORMAT = 1


class Checkpoints:
    """The checkpoints of one training folder, locked against a second job; a context manager."""

    def __init__(self, folder: Path, keep: int, agree: Mapping[str, Any]):
        """`agree`: JSON values (model config, data fingerprint) that a checkpoint must share to be resumed from."""
        self.folder, self.agree = folder.absolute(), json.loads(json.dumps(agree))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "w")
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {folder}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another job is training in {folder.parent}; wait for it or use another --workdir") from error
        for step in self._steps():  # what a killed job left unfinished
            if not (self._path(step) / "commit.json").exists():
                shutil.rmtree(self._path(step))
        options = ocp.CheckpointManagerOptions(max_to_keep=max(2, keep), cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()
            self._lock.close()

    def save(self, step: int, state: Any, data: Mapping[str, Any]) -> None:
        """Starts saving; raises what went wrong with the save before. The state may be donated once this returns."""
        self.wait()
        if self._path(step).exists():
            return
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(dict(data)))
        )
        self._thread = threading.Thread(target=self._commit, args=(step,))
        self._thread.start()

    def wait(self) -> None:
        """Returns when the last save is committed; UserError where it failed (a full disk, say)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise UserError(f"saving a checkpoint to {self.folder} failed: {_first_line(error)}") from error

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest whole checkpoint as (step, state with `like`'s shapes and shardings, data iterator state), or None."""
        for step in reversed(self._steps()):
            damage = self._damage(step)
            if damage:
                aside = self._path(step).with_name(f"damaged-{step}")
                shutil.rmtree(aside, ignore_errors=True)
                self._path(step).rename(aside)
                log.warning("checkpoint %d is damaged (%s): set aside as %s, going back one", step, damage, aside)
                self._manager.reload()
                continue
            self._check_agreement(step)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore())
            found = self._manager.restore(step, args=args)
            return step, found["state"], found["data"]
        return None

    def _commit(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                record = {"format": FORMAT, "step": step, "agree": self.agree, "files": _hashes(self._path(step))}
                write_json(self._path(step) / "commit.json", record)
        except BaseException as error:  # raised again in the training thread, by wait()
            self._error = error

    def _damage(self, step: int) -> str:
        """What is wrong with a committed step, or nothing."""
        try:
            record = json.loads((self._path(step) / "commit.json").read_text())
            wanted, found = record["files"], _hashes(self._path(step))
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"unreadable: {error}"
        bad = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        return f"{bad[0]} is not what was saved" if bad else ""

    def _check_agreement(self, step: int) -> None:
        saved = json.loads((self._path(step) / "commit.json").read_text())["agree"]
        for key in self.agree.keys() | saved.keys():
            if saved.get(key) != self.agree.get(key):
                raise UserError(
                    f"{self.folder.parent} was trained with {key} {_shorter(saved.get(key), self.agree.get(key))}; "
                    "resume with the same config or use another --workdir"
                )

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.iterdir() if path.is_dir() and path.name.isdigit())

    def _path(self, step: int) -> Path:
        return self.folder / str(step)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "commit.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _shorter(saved: Any, wanted: Any) -> str:
    """Only the fields in which two configs differ."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        names = [name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name)]
        return ", ".join(f"{name}={saved.get(name)!r} (asked for: {wanted.get(name)!r})" for name in sorted(names))
    return f"{saved!r} (asked for: {wanted!r})"
