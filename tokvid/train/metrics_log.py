"""The metrics log of training: means over `log_every` steps as lines of JSON, for TensorBoard and W&B, too."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from tokvid.config import TrainConfig
from tokvid.distributed import first, from_first
from tokvid.errors import UserError, reason
from tokvid.flops import chip_of
from tokvid.io.files import atomic
from tokvid.io.settings import to_dict
from tokvid.train.checkpoints import ADVICE
from tokvid.train.state import Training

log = logging.getLogger(__name__)
RATES = ("clips_per_second", "flops_per_second", "mfu")  # depend on the clock; the rest is the same in every run
SHOWN = ("loss", "psnr", "accuracy", "val_loss", "clips_per_second", "mfu")  # beside the progress bar


class MetricsLog:
    """Writes metrics.jsonl, TensorBoard events if tensorboardX is installed, and a run of the W&B project that
    `config.wandb` names; a context manager.
    """

    def __init__(
        self,
        folder: Path,
        training: Training,
        config: TrainConfig,
        step: int,
        window: Mapping[str, Any],
        advance: Callable[..., None],
        saved: Callable[[], str],
    ):
        """Resumes after `step` with the unfinished `window` saved there; `advance` is called for every step read.

        Lines of later steps are dropped, since those steps will be repeated, and so is a line truncated by a crash.
        Only process 0 writes. `saved` names the checkpoint from which training can resume.
        """
        self._task, self._config, self._advance, self._saved = training, config, advance, saved
        self._path = folder / "metrics.jsonl"
        goes_on = step < config.steps and bool(window.get("count"))
        self._boards = self._begin(folder, step, goes_on) if first() else []
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._sums: dict[str, float] = dict(window.get("sums", {}))
        self._count, self._skipped = window.get("count", 0), window.get("skipped", 0)
        self._since: float | None = None  # start of the current rate; excludes the first step, which compiles
        self._timed = 0
        self._notes: dict[str, float] = {}
        self._shown: dict[str, float] = {}  # the same for held-out data
        self._alarmed = False

    def _begin(self, folder: Path, step: int, goes_on: bool) -> "list[_TensorBoard | _WandB]":
        with atomic(self._path) as temporary:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines() if self._path.exists() else []
            kept = [line for line in lines if 0 <= _step_of(line) <= step]
            if goes_on:  # a shorter training ended between two lines; what its last one tells, the next one does
                kept = [line for line in kept if _step_of(line) < step or "skipped" not in json.loads(line)]
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        boards = [
            _tensorboard(folder / "tensorboard", step),
            _WandB(folder, self._config) if self._config.wandb and step < self._config.steps else None,
        ]
        return [board for board in boards if board is not None]

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        for board in self._boards:
            board.close(failed=error[0] is not None)

    @property
    def window(self) -> dict[str, Any]:
        """The sums since the last line, as JSON values, so that a resumed training writes the same next line."""
        return {"sums": self._sums, "count": self._count, "skipped": self._skipped}

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of a step just dispatched, and meanwhile reads those of the previous one."""
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Reads the last step's metrics. UserError after too many non-finite steps, or if the disk is full."""
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
            self._sums, self._count, self._skipped = {}, 0, 0
        elif step == self._config.steps:  # the sums stay: a longer training's next line has them
            self._write(step)
        self._advance(1, **self._notes)

    def lacks_validation(self, step: int) -> bool:
        """Whether no means over held-out batches were written after `step`; the same in all processes."""
        lines = self._path.read_text(encoding="utf-8").splitlines() if first() else []
        return not from_first(any(_step_of(line) == step and '"val_' in line for line in lines))

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the means over held-out batches after `step`, on a separate line."""
        if first():
            named = {f"val_{name}": value for name, value in metrics.items()}
            self._put(step, named)
            self._shown |= {name: named[name] for name in SHOWN if name in named}

    def _skip(self, step: int, skipped: int) -> None:
        self._skipped += 1
        if skipped >= self._config.max_non_finite:
            raise UserError(
                f"the loss was not finite for {skipped} steps up to step {step}; they changed nothing. Lower the "
                f"learning rate or check the data, then run again: training resumes from {self._saved()}"
            )
        if skipped == 1:
            log.warning("the loss of step %d is not finite: the step changes nothing", step)

    def _write(self, step: int) -> None:
        means = {name: total / self._count for name, total in self._sums.items()} | {"skipped": float(self._skipped)}
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
        # Nine digits distinguish all float32 values.
        numbers = {name: float(f"{value:.9g}") for name, value in values.items() if math.isfinite(value)}
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
            for board in self._boards:
                board.write(step, numbers)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {reason(error)}; {ADVICE}") from error


def _speed(clips_per_second: float, training: Training) -> dict[str, float]:
    """The speed in clips, in FLOPs of all devices and, for a known chip, as a share of its peak (MFU)."""
    flops, chip = clips_per_second * training.flops(), chip_of(jax.devices()[0].device_kind)
    share = {} if chip is None else {"mfu": flops / (chip.flops * jax.device_count())}
    return {"clips_per_second": clips_per_second, "flops_per_second": flops} | share


def due(step: int, every: int) -> bool:
    """Whether `step` is an `every`-th step (0: never)."""
    return every > 0 and step % every == 0


def _step_of(line: str) -> int:
    """The step of a line in metrics.jsonl; -1 for an incomplete line."""
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
    """Replaces tensorboardX's SummaryWriter, whose thread dies on a full disk, after which its queue blocks forever."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        # Hides later steps from an earlier run.
        self._file.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in numbers.items():
            self._file.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
        self._file.flush()

    def close(self, failed: bool) -> None:
        try:
            self._file.close()
        except OSError as error:  # every line was flushed when it was written
            log.debug("closing TensorBoard's file: %s", error)


class _WandB:
    """A run of Weights & Biases, resumed by the same folder. Without a network, set WANDB_MODE=offline."""

    def __init__(self, folder: Path, config: TrainConfig):
        try:
            import wandb
        except ImportError as error:
            raise UserError("wandb is set, but not installed: pip install 'tokvid[wandb]', or leave it out") from error
        name = f"{folder.parent.name}-{folder.name}"
        mark = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        settings = to_dict(config)
        try:
            self._run = wandb.init(
                project=config.wandb,
                name=name,
                id=mark,
                resume="allow",
                dir=str(folder),
                config=settings,
                settings=wandb.Settings(quiet=True, console="off"),  # no tables at the end, no copy of the progress bar
            )
        except wandb.Error as error:
            said = str(error).strip().rstrip(".")
            raise UserError(f"W&B: {said}; run `wandb login`, set WANDB_MODE=offline, or leave out wandb") from error

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
