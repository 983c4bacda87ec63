"""What training writes down of its numbers: means over `log_every` steps, as lines of JSON and for TensorBoard."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from tokvid.config import TrainConfig
from tokvid.distributed import first
from tokvid.errors import UserError
from tokvid.flops import chip_of
from tokvid.io.files import atomic
from tokvid.train.checkpoints import ADVICE
from tokvid.train.state import Task

log = logging.getLogger(__name__)
RATES = ("clips_per_second", "flops_per_second", "mfu")  # what the clock says: the rest is the same in every run
SHOWN = ("loss", "psnr", "accuracy", "val_loss", "clips_per_second", "mfu")  # behind the progress bar


class MetricsLog:
    """metrics.jsonl, and TensorBoard's file where tensorboardX is installed; a context manager."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        config: TrainConfig,
        step: int,
        window: Mapping[str, Any],
        advance: Callable[..., None],
        saved: Callable[[], str],
    ):
        """Goes on after `step` with the unfinished `window` saved there; `advance` is told of every step read.

        Lines of later steps are dropped: they are about to be made again. So is a line that a crash cut off. Only the
        first process writes. `saved` says which checkpoint training can go on from.
        """
        self._task, self._config, self._advance, self._saved = task, config, advance, saved
        self._path = folder / "metrics.jsonl"
        self._board = self._begin(folder, step) if first() else None
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._sums: dict[str, float] = dict(window.get("sums", {}))
        self._count, self._skipped = window.get("count", 0), window.get("skipped", 0)
        self._since: float | None = None  # of the rate shown; the first step, which compiles, doesn't count
        self._timed = 0
        self._notes: dict[str, float] = {}
        self._shown: dict[str, float] = {}  # of held-out data, beside them
        self._alarmed = False

    def _begin(self, folder: Path, step: int) -> "_TensorBoard | None":
        with atomic(self._path) as temporary:
            lines = self._path.read_text(errors="replace").splitlines() if self._path.exists() else []
            temporary.write_text("".join(f"{line}\n" for line in lines if 0 <= _step_of(line) <= step))
            return _tensorboard(folder / "tensorboard", step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._board.close()

    @property
    def window(self) -> dict[str, Any]:
        """The steps since the last line, as JSON values, so that a resumed training writes the same next line."""
        return {"sums": self._sums, "count": self._count, "skipped": self._skipped}

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step that was just dispatched, and reads those of the step before meanwhile."""
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Reads the last step's metrics too. UserError after too many non-finite steps, or where the disk is full."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if skipped := int(values.pop("skipped")):
            self._skip(step, skipped)
        else:
            self._count += 1
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
        if self._since is None:
            self._since = time.monotonic()
        else:
            self._timed += 1
        if due(step, self._config.log_every):
            self._write(step)
        self._advance(1, **self._notes)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the means of held-out batches after `step`, a line of their own."""
        if first():
            named = {f"val_{name}": value for name, value in metrics.items()}
            self._put(step, named)
            self._shown |= {name: named[name] for name in SHOWN if name in named}

    def _skip(self, step: int, skipped: int) -> None:
        self._skipped += 1
        if skipped >= self._config.max_non_finite:
            raise UserError(
                f"the loss was not finite for {skipped} steps up to step {step}; nothing of them was kept. Lower the "
                f"learning rate or look at the data, then run again: training goes on from {self._saved()}"
            )
        if skipped == 1:
            log.warning("the loss of step %d is not finite: the step changes nothing", step)

    def _write(self, step: int) -> None:
        means = {name: total / self._count for name, total in self._sums.items()} | {"skipped": float(self._skipped)}
        self._sums, self._count, self._skipped = {}, 0, 0
        if not first():
            return
        if step > self._config.warmup and not self._alarmed and (alarm := self._task.alarm(means)):
            log.warning("step %d: %s", step, alarm)
            self._alarmed = True
        now = time.monotonic()
        if self._timed and self._since is not None:
            means |= _speed(self._timed * self._config.batch / (now - self._since), self._task)
            self._since, self._timed = now, 0
        self._put(step, means)
        self._notes = {name: means[name] for name in SHOWN if name in means} | self._shown

    def _put(self, step: int, values: Mapping[str, float]) -> None:
        # Nine digits tell every float32 from the next.
        numbers = {name: float(f"{value:.9g}") for name, value in values.items() if math.isfinite(value)}
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
            if self._board is not None:
                self._board.write(step, numbers)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}; {ADVICE}") from error


def _speed(clips_per_second: float, task: Task) -> dict[str, float]:
    """As clips, as FLOPs of all devices and, where the chip is known, as the share of what they can do (MFU)."""
    flops, chip = clips_per_second * task.flops(), chip_of(jax.devices()[0].device_kind)
    share = {} if chip is None else {"mfu": flops / (chip.flops * jax.device_count())}
    return {"clips_per_second": clips_per_second, "flops_per_second": flops} | share


def due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps (0: never) is done at this one."""
    return every > 0 and step % every == 0


def _step_of(line: str) -> int:
    """The step of a line in metrics.jsonl; -1 where it isn't a whole one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def _tensorboard(folder: Path, step: int) -> "_TensorBoard | None":
    try:
        return _TensorBoard(folder, step)
    except ImportError:
        return None


class _TensorBoard:
    """Not tensorboardX's SummaryWriter: its thread dies of a full disk, and then its queue blocks for ever."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        # What an earlier run wrote of later steps is hidden.
        self._file.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in numbers.items():
            self._file.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
        self._file.flush()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # every line was flushed when it was written
            log.debug("closing TensorBoard's file: %s", error)
