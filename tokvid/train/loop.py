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
from jax.sharding import NamedSharding

from tokvid.config import TrainConfig, to_dict
from tokvid.distributed import check_same, first, shard_of, to_first, told_by_first
from tokvid.io.progress import progress
from tokvid.sharding import BATCH, make_mesh, shard_batch
from tokvid.train.checkpoints import Checkpoints
from tokvid.train.metrics_log import MetricsLog, due
from tokvid.train.profiler import Profiler
from tokvid.train.state import Training, abstract_state, init_state, make_step, make_validation, start_from
from tokvid.train.watchdog import Watchdog


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
        shard = shard_of(NamedSharding(mesh, BATCH), config.batch)
        with contextlib.closing(training.batches(shard)) as batches:
            window: Mapping[str, Any] = {}
            if (restored := checkpoints.restore(like)) is None:
                state = init_state(training, config, like)
                if config.start:
                    state = start_from(state, Path(config.start), training.name)
            else:
                _, state, saved = restored
                batches.set_state(saved["batches"])
                window = saved["metrics"]
            step = begun = int(state.step)
            if restored is not None and first():
                print(f"{training.name}: resumes from step {step} ({folder})", file=sys.stderr, flush=True)
            with (
                progress(training.name, config.steps, "steps", done=step, quiet=not first()) as advance,
                MetricsLog(folder, training, config, step, window, advance, checkpoints.newest) as log,
                Profiler(folder / "profile", config.profile) as profiler,
            ):
                saved_at, validation = time.monotonic(), None

                def save() -> None:
                    nonlocal saved_at
                    log.flush()  # first, so that no line of a saved step can be lost
                    checkpoints.save(step, state, {"batches": batches.get_state(), "metrics": log.window})
                    saved_at = time.monotonic()

                def overdue() -> bool:
                    # Process 0's clock decides for all; they ask it only at log steps.
                    if not config.save_minutes or (jax.process_count() > 1 and not due(step, config.log_every)):
                        return False
                    return bool(told_by_first(time.monotonic() - saved_at > 60 * config.save_minutes))

                def validate() -> None:
                    nonlocal validation
                    log.flush()
                    validation = validation or make_validation(training, mesh, like, graph)
                    if (held_out := training.validation(shard)) is None:
                        return
                    with contextlib.closing(held_out):
                        some = itertools.islice(held_out, config.val_batches)
                        results = [jax.device_get(validation(state, shard_batch(batch, mesh))) for batch in some]
                    if not results:
                        return
                    log.validated(step, {name: float(np.mean([each[name] for each in results])) for name in results[0]})

                def sample() -> None:
                    if (variables := to_first((state.ema, state.buffers))) is not None:
                        training.samples(nnx.merge(graph, *variables), folder / "samples", step)

                while step < config.steps and not stopped(step):
                    state, metrics = train_step(state, shard_batch(next(batches), mesh))
                    step += 1
                    log.add(step, metrics)
                    watchdog.beat(step)
                    profiler.stepped(step - begun)
                    if due(step, config.save_every) or overdue():
                        save()
                    if due(step, config.val_every):
                        validate()
                    if due(step, config.sample_every):
                        sample()
                save()
                if step == config.steps and config.sample_every and not due(step, config.sample_every):
                    sample()
            checkpoints.wait()
            if (variables := to_first((state.ema, state.buffers))) is not None:
                training.finish(nnx.merge_state(*variables), folder, step)
    if step < config.steps:
        end = f"stopped at step {step} of {config.steps} and saved; run the same command again to resume"
    elif step == begun:
        end = f"is already trained to step {step}; wrote its weights again"
    else:
        end = f"trained to step {step}"
    if first():
        print(f"{training.name}: {end} ({folder})", file=sys.stderr, flush=True)
    return step


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

    A signal to one of several processes stops all of them before the same step.
    """
    together, flag = jax.process_count() > 1, list[int]()

    def handler(number: int, frame: object) -> None:
        if not flag:  # not print(), which may have been interrupted itself
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
    handlers = {signal.SIGINT: pass_on} if together else {signal.SIGTERM: handler, signal.SIGINT: handler}
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
