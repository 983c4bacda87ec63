"""The training loop of both models. It reads top to bottom: restore, step, log, save, sample, finish."""

import contextlib
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tokvid.config import TrainConfig
from tokvid.errors import UserError
from tokvid.files import atomic
from tokvid.progress import progress
from tokvid.sharding import make_mesh, shard_batch
from tokvid.train.checkpoints import ADVICE, Checkpoints
from tokvid.train.state import Task, TrainState, abstract_state, init_state, make_step

log = logging.getLogger(__name__)
SHOWN = ("loss", "psnr", "accuracy", "clips_per_second")  # behind the progress bar


def train(task: Task, config: TrainConfig, folder: Path) -> int:
    """Trains to `config.steps`, from the newest checkpoint in `folder` if there is one; returns the step reached.

    SIGTERM and Ctrl-C save and return. Writes checkpoints/, metrics.jsonl, samples/ and, by `task.finish`, the weights.
    Resuming gives the same batches and the same numbers, bit for bit on the same mesh. UserError where the folder holds
    another training, cannot be written to, or the loss stays non-finite.
    """
    # Whatever decides the next batch or the shape of the state; the rest (steps, rates, threads) may change.
    agree = {**task.describe(), "training": {"batch": config.batch, "seed": config.seed}}
    with (
        _stop_signal() as stopped,
        Checkpoints(folder / "checkpoints", config.keep, agree) as checkpoints,
        contextlib.closing(task.batches()) as batches,
    ):
        mesh = make_mesh(config.mesh)
        like, graph = abstract_state(task, config, mesh)
        train_step = make_step(task, config, mesh, like, graph)
        window: Mapping[str, Any] = {}
        if (restored := checkpoints.restore(like)) is None:
            state = init_state(task, config, like)
        else:
            _, state, saved = restored
            batches.set_state(saved["batches"])
            window = saved["metrics"]
        step = first = int(state.step)
        with progress(task.name, config.steps, "steps", done=step) as advance:
            metrics_log = MetricsLog(folder, task, config, step, window, advance)

            def save() -> None:
                metrics_log.flush()  # first, so that no line of a step that is saved can be lost
                _check_finite(state, step)
                checkpoints.save(step, state, {"batches": batches.get_state(), "metrics": metrics_log.window})

            while step < config.steps and not stopped():
                state, metrics = train_step(state, shard_batch(next(batches), mesh))
                step += 1
                metrics_log.add(step, metrics)
                if _due(step, config.save_every):
                    save()
                if _due(step, config.sample_every):
                    task.samples(nnx.merge(graph, state.ema), folder / "samples", step)
            save()
            metrics_log.close()
        checkpoints.wait()
        task.finish(state.ema, folder, step)
    if step < config.steps:
        end = f"stopped at step {step} of {config.steps} and saved; run the same command again to go on from there"
    elif step == first:
        end = f"was trained to step {step} already; wrote its weights again"
    else:
        end = f"trained to step {step}"
    print(f"{task.name}: {end} ({folder})", file=sys.stderr, flush=True)
    return step


class MetricsLog:
    """Means over `log_every` steps, into metrics.jsonl (and TensorBoard, where tensorboardX is installed)."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        config: TrainConfig,
        step: int,
        window: Mapping[str, Any],
        advance: Callable[..., None],
    ):
        """Goes on after `step` with the unfinished `window` saved there; `advance` is told of every step read.

        Lines of later steps are dropped: they are about to be made again. So is a line that a crash cut off.
        """
        self._task, self._config, self._advance = task, config, advance
        self._path = folder / "metrics.jsonl"
        with atomic(self._path) as temporary:
            lines = self._path.read_text(errors="replace").splitlines() if self._path.exists() else []
            temporary.write_text("".join(f"{line}\n" for line in lines if 0 <= _step_of(line) <= step))
        self._board: Any = None
        with contextlib.suppress(ImportError):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._sums: dict[str, float] = dict(window.get("sums", {}))
        self._count, self._skipped = window.get("count", 0), window.get("skipped", 0)
        self._since: float | None = None  # of the rate shown; the first step, which compiles, doesn't count
        self._timed = 0
        self._notes: dict[str, float] = {}
        self._alarmed = False

    @property
    def window(self) -> dict[str, Any]:
        """The steps since the last line, as JSON values, so that a resumed training writes the same next line."""
        return {"sums": self._sums, "count": self._count, "skipped": self._skipped}

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step that was just dispatched, and reads those of the step before meanwhile."""
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Reads the last step's metrics too. UserError after too many non-finite steps."""
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
        if _due(step, self._config.log_every):
            self._write(step)
        self._advance(1, **self._notes)

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _skip(self, step: int, skipped: int) -> None:
        self._skipped += 1
        if skipped >= self._config.max_non_finite:
            raise UserError(
                f"the loss was not finite for {skipped} steps up to step {step}; nothing of them was kept. Lower the "
                "learning rate or look at the data, then run again: training goes on from the last checkpoint"
            )
        if skipped == 1:
            log.warning("the loss of step %d is not finite: the step changes nothing", step)

    def _write(self, step: int) -> None:
        means = {name: total / self._count for name, total in self._sums.items()} | {"skipped": float(self._skipped)}
        self._sums, self._count, self._skipped = {}, 0, 0
        if step > self._config.warmup and not self._alarmed and (alarm := self._task.alarm(means)):
            log.warning("step %d: %s", step, alarm)
            self._alarmed = True
        now = time.monotonic()
        if self._timed and self._since is not None:
            means["clips_per_second"] = self._timed * self._config.batch / (now - self._since)
            self._since, self._timed = now, 0
        # Nine digits tell every float32 from the next.
        numbers = {name: float(f"{value:.9g}") for name, value in means.items() if math.isfinite(value)}
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}; {ADVICE}") from error
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        self._notes = {name: means[name] for name in SHOWN if name in means}


def _step_of(line: str) -> int:
    """The step of a line in metrics.jsonl; -1 where it isn't a whole one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@jax.jit
def _finite(state: TrainState) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]


def _check_finite(state: TrainState, step: int) -> None:
    """Nothing non-finite is ever saved: UserError with the name of the first such leaf."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    for path, finite in zip(paths, jax.device_get(_finite(state)), strict=True):
        if not finite:
            raise UserError(
                f"{jax.tree_util.keystr(path)} is not finite at step {step}, which was not saved. Lower the learning "
                "rate, then run again: training goes on from the last checkpoint"
            )


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and the first Ctrl-C into a flag that the loop reads between two steps."""
    flag: list[int] = []

    def handler(number: int, frame: object) -> None:
        if not flag:  # not print(): it may be what was interrupted
            os.write(2, b"\nstopping after this step, then saving (Ctrl-C to stop at once)\n")
        flag.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield lambda: False
        return
    try:
        yield lambda: bool(flag)
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
