"""The training loop of both models. It reads top to bottom: restore, step, log, save, sample, finish."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tokvid.config import TrainConfig
from tokvid.errors import UserError
from tokvid.progress import progress
from tokvid.sharding import make_mesh, shard_batch
from tokvid.train.checkpoints import Checkpoints
from tokvid.train.metrics_log import MetricsLog, due
from tokvid.train.state import Task, TrainState, abstract_state, init_state, make_step, start_from


def train(task: Task, config: TrainConfig, folder: Path) -> int:
    """Trains to `config.steps`, from the newest checkpoint in `folder` if there is one; returns the step reached.

    SIGTERM and Ctrl-C save and return. Writes checkpoints/, metrics.jsonl, samples/ and, by `task.finish`, the weights.
    Resuming gives the same batches and the same numbers, bit for bit on the same mesh. UserError where the folder holds
    another training, cannot be written to, or the loss stays non-finite.
    """
    agree = agreement(task, config)
    with (
        _stop_signal() as stopped,
        Checkpoints(folder / "checkpoints", config.keep, agree) as checkpoints,
        contextlib.closing(task.batches()) as batches,
    ):
        mesh = make_mesh(config.mesh)
        if config.batch % (parts := mesh.shape["data"] * mesh.shape["fsdp"]):
            raise UserError(f"batch {config.batch} can't be split over {parts} devices; use a multiple of {parts}")
        like, graph = abstract_state(task, config, mesh)
        train_step = make_step(task, config, mesh, like, graph)
        window: Mapping[str, Any] = {}
        if (restored := checkpoints.restore(like)) is None:
            state = init_state(task, config, like)
            if config.start:
                state = start_from(state, Path(config.start), task.name)
        else:
            _, state, saved = restored
            batches.set_state(saved["batches"])
            window = saved["metrics"]
        step = first = int(state.step)
        with (
            progress(task.name, config.steps, "steps", done=step) as advance,
            MetricsLog(folder, task, config, step, window, advance) as log,
        ):

            def save() -> None:
                log.flush()  # first, so that no line of a step that is saved can be lost
                _check_finite(state, step)
                checkpoints.save(step, state, {"batches": batches.get_state(), "metrics": log.window})

            while step < config.steps and not stopped():
                state, metrics = train_step(state, shard_batch(next(batches), mesh))
                step += 1
                log.add(step, metrics)
                if due(step, config.save_every):
                    save()
                if due(step, config.sample_every):
                    task.samples(nnx.merge(graph, state.ema, state.buffers), folder / "samples", step)
            save()
            if step == config.steps and config.sample_every and not due(step, config.sample_every):
                task.samples(nnx.merge(graph, state.ema, state.buffers), folder / "samples", step)
        checkpoints.wait()
        task.finish(nnx.merge_state(state.ema, state.buffers), folder, step)
    if step < config.steps:
        end = f"stopped at step {step} of {config.steps} and saved; run the same command again to go on from there"
    elif step == first:
        end = f"was trained to step {step} already; wrote its weights again"
    else:
        end = f"trained to step {step}"
    print(f"{task.name}: {end} ({folder})", file=sys.stderr, flush=True)
    return step


def agreement(task: Task, config: TrainConfig) -> dict[str, Any]:
    """What a run that goes on must share with its checkpoint: all that decides the next batch or the state's shape.

    The rest (steps, rates, threads) may change.
    """
    return {
        **task.describe(),
        "training": {name: getattr(config, name) for name in ("batch", "freeze", "optimizer", "seed")},
    }


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
