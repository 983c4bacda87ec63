"""The training loop of both models. It reads top to bottom: restore, step, log, sample, save, finish."""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from tokvid.config import TrainConfig
from tokvid.errors import UserError
from tokvid.files import atomic
from tokvid.progress import progress
from tokvid.sharding import make_mesh, shard_batch
from tokvid.train.checkpoints import Checkpoints
from tokvid.train.state import Task, TrainState, init_state, make_step


def train(task: Task, config: TrainConfig, folder: Path) -> int:
    """Trains to `config.steps`, from the newest checkpoint in `folder` if there is one; returns the step reached.

    SIGTERM and Ctrl-C save and return. Writes checkpoints/, metrics.jsonl, samples/ and, by `task.finish`, the weights.
    """
    mesh = make_mesh(config.mesh)
    with Checkpoints(folder / "checkpoints", config.keep, task.describe()) as checkpoints, _stop_signal() as stopped:
        state, places, graph = init_state(task, config, mesh)
        train_step = make_step(task, config, mesh, places, graph)
        batches = task.batches()
        restored = checkpoints.restore(state)
        if restored is not None:
            _, state, data = restored
            batches.set_state(data)
        step = int(state.step)
        with contextlib.closing(batches), MetricsLog(folder, step) as log:
            with progress(f"{task.name}", config.steps, "steps", done=step) as advance:
                pending: tuple[int, dict[str, Any]] | None = None
                while step < config.steps and not stopped():
                    state, metrics = train_step(state, shard_batch(next(batches), mesh))
                    # Read the numbers of the step before, while this one runs.
                    if pending is not None:
                        notes = log.add(*pending, config)
                        advance(1, **notes)
                    step += 1
                    pending = (step, metrics)
                    if step % config.save_every == 0:
                        _check_finite(state, config, step)
                        checkpoints.save(step, state, batches.get_state())
                    if step % config.sample_every == 0:
                        task.samples(nnx.merge(graph, state.ema), folder / "samples", step)
                if pending is not None:
                    advance(1, **log.add(*pending, config))
            if pending is not None:
                _check_finite(state, config, step)
            checkpoints.save(step, state, batches.get_state())
        task.finish(state.ema, folder, step)
    return step


class MetricsLog:
    """Means over `log_every` steps, into metrics.jsonl (and TensorBoard, where tensorboardX is installed)."""

    def __init__(self, folder: Path, step: int):
        """Lines of steps after `step` are dropped: they are about to be made again."""
        self._path = folder / "metrics.jsonl"
        kept = []
        if self._path.exists():
            lines = [line for line in self._path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
        with atomic(self._path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self._file = open(self._path, "a")
        self._board: Any = None
        with contextlib.suppress(ImportError):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        self._recent: list[dict[str, float]] = []
        self._since = time.monotonic()
        self._notes: dict[str, float] = {}

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def add(self, step: int, metrics: dict[str, Any], config: TrainConfig) -> dict[str, float]:
        """Takes one step's metrics; gives back what is worth showing. UserError after too many non-finite steps."""
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        if values["skipped"] >= config.max_non_finite:
            raise UserError(
                f"the loss was not finite for {int(values['skipped'])} steps up to step {step}; nothing of them was kept. "
                "Lower the learning rate or look at the data, then run again: it resumes from the last checkpoint"
            )
        if values["skipped"] == 0:
            self._recent.append(values)
        if step % config.log_every == 0 and self._recent:
            mean = {name: float(np.mean([values[name] for values in self._recent])) for name in values}
            now = time.monotonic()
            mean["clips_per_second"] = config.log_every * config.batch / (now - self._since)
            self._recent, self._since = [], now
            self._file.write(json.dumps({"step": step, **{name: round(value, 7) for name, value in mean.items()}}) + "\n")
            self._file.flush()
            if self._board is not None:
                for name, value in mean.items():
                    self._board.add_scalar(name, value, step)
            shown = ("loss", "psnr", "accuracy", "clips_per_second")
            self._notes = {name: mean[name] for name in shown if name in mean}
        return self._notes


def _check_finite(state: TrainState, config: TrainConfig, step: int) -> None:
    """Nothing non-finite is ever saved."""
    bad = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if not bool(jax.numpy.isfinite(leaf).all())
    ]
    if bad:
        raise UserError(f"parameter {bad[0]} is not finite at step {step}; not saved: lower the learning rate")


@contextlib.contextmanager
def _stop_signal() -> Iterator[Any]:
    """Turns SIGTERM and the first Ctrl-C into a flag that the loop reads between two steps."""
    flag: list[int] = []

    def handler(number: int, frame: object) -> None:
        flag.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield lambda: False
        return
    try:
        yield lambda: bool(flag)
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
