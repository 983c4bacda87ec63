"""The training loop of both models, from top to bottom: restore, step, log, save, sample, finish."""

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from tokvid import weights
from tokvid.config import TrainConfig
from tokvid.distributed import check_same, first, from_first, shard_of, to_first
from tokvid.errors import UserError
from tokvid.io.progress import progress
from tokvid.io.settings import to_dict
from tokvid.sharding import BATCH, make_mesh, running_on, shard_batch, shardings
from tokvid.train.checkpoints import Checkpoints
from tokvid.train.metrics_log import MetricsLog, due
from tokvid.train.profiler import Profiler
from tokvid.train.state import (
    Training,
    TrainState,
    abstract_state,
    init_state,
    make_step,
    make_validation,
    sheet,
    start_from,
    with_lora,
)
from tokvid.train.watchdog import Watchdog
from tokvid.transformer import lora_files

# The seconds, about, and the steps at most, after which several processes look at the clock again.
ASKED_SECONDS, MOST_UNASKED = 10.0, 1000


def train(training: Training, config: TrainConfig, folder: Path) -> int:
    """Trains to `config.steps`, from the newest checkpoint in `folder` if there is one; returns the step reached.

    SIGTERM and Ctrl-C save and return. Writes checkpoints/, metrics.jsonl, samples/ and, by `finish`, the weights.
    Resuming gives the same batches and numbers, bit for bit on the same mesh. All processes of a job call this with the
    same `folder`, and process 0 writes. UserError if the folder holds another training or cannot be written to, or if
    the loss stays non-finite.
    """
    agree = agreement(training, config)
    with (
        _stop_signal() as stopped,
        Watchdog(config.step_timeout) as watchdog,
        Checkpoints(folder / "checkpoints", config.keep, agree) as checkpoints,
    ):
        mesh = make_mesh(config.mesh)
        check_same([to_dict(config), agree])
        like, graph = abstract_state(training, config, mesh)
        train_step = make_step(training, config, mesh, like, graph)
        run = _Run(training, config, folder, checkpoints, mesh, like, graph)
        with contextlib.closing(training.batches(run.shard)) as batches:
            window = run.begin(batches)
            begun = run.step
            with (
                progress(training.name, config.steps, "steps", done=begun, quiet=not first()) as advance,
                MetricsLog(folder, training, config, begun, window, advance, checkpoints.newest) as run.log,
                Profiler(folder / "profile", config.profile) as profiler,
            ):
                if begun and due(begun, config.val_every) and run.log.lacks_validation(begun):
                    run.validate()  # the job ended meanwhile
                if begun and due(begun, config.sample_every) and run.lacks_samples():
                    run.sample()
                while run.step < config.steps and not stopped(run.step):
                    run.state, metrics = train_step(run.state, run.batch(batches))
                    run.step += 1
                    run.log.add(run.step, metrics)
                    watchdog.beat(run.step)
                    profiler.stepped(run.step - begun)
                    if due(run.step, config.save_every) or run.overdue():
                        run.save(batches)
                    if due(run.step, config.val_every):
                        run.validate()
                    if due(run.step, config.sample_every):
                        run.sample()
                run.save(batches)
                if run.step == config.steps and config.sample_every and not due(run.step, config.sample_every):
                    run.sample()
            checkpoints.wait()
            run.finish()
    run.say(begun)
    return run.step


class _Run:
    """A training under way: its state, and what happens to it at some steps."""

    log: MetricsLog

    def __init__(
        self,
        training: Training,
        config: TrainConfig,
        folder: Path,
        checkpoints: Checkpoints,
        mesh: Mesh,
        like: TrainState,
        graph: nnx.GraphDef,
    ):
        self.training, self.config, self.folder, self.checkpoints = training, config, folder, checkpoints
        self.mesh, self.like, self.graph = mesh, like, graph
        self.shard = shard_of(NamedSharding(mesh, BATCH), config.batch)
        self._samples = folder / "samples"
        self._validation: Callable[[TrainState, Any], Mapping[str, Any]] | None = None

    def begin(self, batches: Any) -> Mapping[str, Any]:
        """Restores the newest checkpoint, or initialises; returns the metrics of the steps not yet logged."""
        window: Mapping[str, Any] = {}
        if (restored := self.checkpoints.restore(self.like)) is None:
            self.state = init_state(self.training, self.config, self.like)
            if self.config.start:
                folder, without = weights.find(self.config.start), self.config.start_without
                self.state = start_from(self.state, folder, self.training.name, without)
            if self.config.start_lora:
                self.state = with_lora(self.state, self.config.start_lora)
        else:
            _, self.state, saved = restored
            batches.set_state(saved["batches"])
            window = saved["metrics"]
        self.step, self._saved_at = int(self.state.step), time.monotonic()
        self._asked, self._asks = (self._saved_at, self.step), self.step + 1
        if self.step < self.config.steps and not self.config.lora:
            lora_files.check_no_loras(self.folder)
        if restored is not None:
            self._print(f"resumes from step {self.step}")
        return window

    def batch(self, batches: Any) -> Any:
        """The next batch; where it can't be prepared, saves first, so that nothing is lost."""
        batch = shard_batch(next(batches), self.mesh)
        try:
            return self.training.prepare(batch, self.state, self.mesh)
        except UserError:
            self.save(batches)
            raise

    def save(self, batches: Any) -> None:
        """Writes a checkpoint."""
        self.log.flush()  # first, so that no line of a saved step can be lost
        self.checkpoints.save(self.step, self.state, {"batches": batches.get_state(), "metrics": self.log.window})
        self._saved_at = time.monotonic()

    def overdue(self) -> bool:
        """Whether `save_minutes` have passed since the last checkpoint."""
        if not self.config.save_minutes:
            return False
        now = time.monotonic()
        late = now - self._saved_at > 60 * self.config.save_minutes
        if jax.process_count() == 1:
            return late
        if self.step < self._asks:
            return False
        # Process 0's clock decides for all, and also when they ask it again: they do so at the same step.
        pace = (now - self._asked[0]) / (self.step - self._asked[1])
        answer = from_first(2 * max(1, min(MOST_UNASKED, round(ASKED_SECONDS / max(pace, 1e-6)))) + late)
        self._asked, self._asks = (now, self.step), self.step + answer // 2
        return bool(answer % 2)

    def validate(self) -> None:
        """Logs the mean metrics of the averaged weights on held-out batches, if there are any."""
        self.log.flush()
        if (held_out := self.training.validation(self.shard)) is None:
            return
        validation = self._validation or make_validation(self.training, self.mesh, self.like, self.graph)
        self._validation = validation
        with contextlib.closing(held_out):
            batches = itertools.islice(held_out, self.config.val_batches)
            results = [jax.device_get(validation(self.state, shard_batch(batch, self.mesh))) for batch in batches]
        if results:
            means = {name: float(np.mean([each[name] for each in results])) for name in results[0]}
            self.log.validated(self.step, means)

    def lacks_samples(self) -> bool:
        """Whether none, or not all, were made after this step; the same in all processes."""
        return not from_first(first() and sheet(self._samples, self.step).exists())

    def sample(self) -> None:
        """Shows what the averaged weights make."""
        if (variables := to_first((self.state.ema, self.state.buffers))) is not None:
            mesh = self.mesh
            if jax.process_count() > 1:  # over this process's own devices: a single one might not hold them
                mesh = make_mesh((1, 1, -1, 1), jax.local_devices())  # with fsdp, each token would gather all of them
                variables = jax.device_put(variables, shardings(variables, mesh))
            with running_on(mesh):  # XLA partitions no TPU kernel by itself
                self.training.samples(nnx.merge(self.graph, *variables), self._samples, self.step)

    def finish(self) -> None:
        """Writes the averaged weights."""
        if (variables := to_first((self.state.ema, self.state.buffers))) is not None:
            self.training.finish(nnx.merge_state(*variables), self.folder, self.step)

    def say(self, begun: int) -> None:
        """How it ended."""
        if self.step < self.config.steps:
            again = "run the same command again to resume"
            self._print(f"stopped at step {self.step} of {self.config.steps} and saved; {again}")
        elif self.step == begun:
            self._print(f"is already trained to step {self.step}; wrote its weights again")
        else:
            self._print(f"trained to step {self.step}")

    def _print(self, text: str) -> None:
        if first():
            print(f"{self.training.name}: {text} ({self.folder})", file=sys.stderr, flush=True)


def agreement(training: Training, config: TrainConfig) -> dict[str, Any]:
    """The settings that must match on resuming: those that determine the next batch or the state's shape.

    Others (steps, rates, threads) may change.
    """
    return {
        **training.describe(),
        "training": {name: getattr(config, name) for name in ("batch", "freeze", "moments", "optimizer", "seed")},
    }


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM and the first Ctrl-C into a function that says before each step whether to stop.

    So it does with SIGHUP, which comes when a terminal closes, unless it is ignored, as under nohup.
    A signal to one of several processes stops all of them before the same step.
    """
    together, flag = jax.process_count() > 1, list[int]()

    def handler(number: int, frame: object) -> None:
        if not flag:  # not print(), which may have been interrupted itself
            with contextlib.suppress(OSError):  # the terminal may be closed
                os.write(2, b"\nstopping after this step, then saving (Ctrl-C to stop at once)\n")
        flag.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def pass_on(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    def agreed(step: int) -> bool:
        flag.extend([1] * (not flag and multihost_utils.reached_preemption_sync_point(step)))
        return bool(flag)

    # With jax.distributed, JAX handles SIGTERM.
    handlers: dict[signal.Signals, Callable[[int, Any], None]] = {signal.SIGINT: pass_on if together else handler}
    if not together:
        handlers[signal.SIGTERM] = handler
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        handlers[signal.SIGHUP] = handlers[signal.SIGINT]
    try:
        before = {number: signal.signal(number, handle) for number, handle in handlers.items()}
    except ValueError:  # not in the main thread: the caller handles signals
        yield agreed if together else lambda step: False
        return
    try:
        yield agreed if together else lambda step: bool(flag)
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
