"""Several processes as one job: how they find one another, what each of them does, and that none outlives another."""

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import IO, Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from tokvid.errors import Terminated, UserError

# A process that isn't heard of for so long is dead, and the others end. jax waits 100 s.
HEARTBEAT_SECONDS = 6
# How long those that are done wait at their end for the one that still writes. jax waits 300 s.
SHUTDOWN_SECONDS = 3600
# Stands beside each process, and says where it was when it is killed, by a signal or by jax for the death of another.
WITNESS = """
import sys
where = "before the first step"
for line in sys.stdin:
    where = line.strip()
if where:
    print(f"tokvid: {sys.argv[1]} died {where}", file=sys.stderr, flush=True)
"""
_witness: IO[str] | None = None


@contextlib.contextmanager
def joined(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    detect: bool = False,
    *,
    agree_to_stop: bool = True,
) -> Iterator[None]:
    """Joins the other processes of this job, if there are any, before a device is touched; inside, an error ends all.

    Plain processes are told where the first one listens (`coordinator`, host:port), how many they are and which this
    is, here or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. On SLURM, Open MPI and TPU slices jax
    finds it out; `detect` lets it try where nothing in the environment shows that there are several. SIGTERM is left to
    jax, whom the training loop asks at which step to stop, unless `agree_to_stop` is False. UserError for half of it,
    and where the processes don't find one another.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    processes = _number("JAX_NUM_PROCESSES") if processes is None else processes
    process = _number("JAX_PROCESS_ID") if process is None else process
    if not (coordinator or detect or _one_of_several()):
        if (processes, process) != (None, None):
            raise UserError(
                "give the coordinator's address (host:port) beside the number of processes and which this is"
            )
        yield
        return
    if (processes is None) != (process is None) or (processes is not None and not 0 <= (process or 0) < processes):
        raise UserError(f"process {process} of {processes}: give both, processes 1 or more, process from 0 to one less")
    jax.config.update("jax_enable_preemption_service", agree_to_stop)
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of this job cannot find one another: {_line(error)}") from error
    here = f"process {jax.process_index()} of {jax.process_count()}"
    with _witnessed(here):
        try:
            yield
            jax.distributed.shutdown()  # waits for the others
        except BaseException as error:
            _end(here, error)


@contextlib.contextmanager
def _witnessed(here: str) -> Iterator[None]:
    global _witness
    command = [sys.executable, "-I", "-S", "-c", WITNESS, here]
    # In a session of its own, so that what kills this process leaves it time to say so; it ends with its input.
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as process:
        _witness = process.stdin
        try:
            yield
        finally:
            reached("")
            _witness = None


def reached(where: str) -> None:
    """Remembers where this process is ("after step 3"), in case it is killed; "" for at its end."""
    if _witness is not None:
        with contextlib.suppress(OSError, ValueError):
            _witness.write(f"{where}\n")
            _witness.flush()


def _end(here: str, error: BaseException) -> NoReturn:
    """Ends this process at once, and so the job. By the usual way it would wait for the others, as they do for it."""
    code = 1
    if isinstance(error, UserError):
        code = 2
    elif isinstance(error, KeyboardInterrupt):
        code = 143 if isinstance(error, Terminated) else 130
    else:
        traceback.print_exception(error)
    where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    kind = "" if isinstance(error, UserError) or not str(error) else f"{type(error).__name__}: "
    reached("")
    print(f"tokvid: {here} ended{where}: {kind}{_line(error)}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    logging.shutdown()
    os._exit(code)


def first() -> bool:
    """Whether this is the one process that writes metrics, samples and weights, and commits checkpoints."""
    return jax.process_index() == 0


def block_of(sharding: Sharding, rows: int) -> tuple[int, int]:
    """(i, n): of n equal blocks of a batch's `rows`, this process's devices hold block i. Others may hold it as well.

    UserError where devices are so arranged that there are no such blocks.
    """
    held: dict[int, set[int]] = {}
    device: Any
    for device, index in sharding.devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(rows)[index[0]])
    blocks = sorted({tuple(sorted(mine)) for mine in held.values()})
    size = len(blocks[0])
    if blocks != [tuple(range(start, start + size)) for start in range(0, rows, size)]:
        raise UserError(
            f"a batch of {rows} can't be split evenly over {len(held)} processes; use another mesh or batch"
        )
    return blocks.index(tuple(sorted(held[jax.process_index()]))), len(blocks)


def to_first(tree: Any) -> Any:
    """All of a sharded tree as arrays of the first process, None in the others; what one process has stays as it is.

    Leaf by leaf, so that no more than one is whole on the devices.
    """
    if jax.process_count() == 1:
        return tree

    def one(leaf: jax.Array) -> jax.Array | None:
        whole = multihost_utils.process_allgather(leaf, tiled=True)
        return jax.numpy.asarray(whole) if first() else None

    gathered = jax.tree.map(one, tree)
    return gathered if first() else None


def told_by_first(value: int) -> int:
    """The first process's `value`, in all of them."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def together(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_same(value: Any) -> None:
    """UserError where processes were started with different settings (JSON values)."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    found = multihost_utils.process_allgather(np.frombuffer(digest, np.uint32))
    different = np.flatnonzero((found != found[0]).any(axis=1))
    if different.size:
        raise UserError(
            f"process {different[0]} of {len(found)} was started with another recipe or other data than process 0; "
            "give all the same"
        )


def _one_of_several() -> bool:
    """Whether the environment says that this process is one of several; jax then finds out the rest."""
    environment = os.environ
    return (
        ("SLURM_STEP_NODELIST" in environment and (_number("SLURM_NTASKS") or 1) > 1)  # not in sbatch, before srun
        or (_number("OMPI_COMM_WORLD_SIZE") or 1) > 1
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or (_number("MEGASCALE_NUM_SLICES") or 1) > 1
    )


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError as error:
        raise UserError(f"the environment variable {variable} should be a number, it is {value!r}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
