"""Several processes as one job: joining, dividing the work, and ending together."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pickle
import platform
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from tokvid.errors import Terminated, UserError

# A process that is silent for this long counts as dead, and the others end. JAX's default is 100 s. The
# variable TOKVID_HEARTBEAT_SECONDS of the environment takes its place.
HEARTBEAT_SECONDS = 6
# How long finished processes wait for one that is still writing. JAX's default is 300 s.
SHUTDOWN_SECONDS = 3600
NETWORK_SECONDS = 30  # in which a new file is seen by all processes
# A companion of each process that prints its last step when it is killed, by a signal or by JAX after another's death.
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
    """Joins the other processes of this job, if any, before a device is touched; inside, an error ends all of them.

    Plain processes need the address of process 0 (`coordinator`, host:port), the number of processes and this one's
    number, as arguments or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. JAX detects SLURM, Open
    MPI and TPU slices; `detect` makes it try where the environment shows no sign of several processes. JAX handles
    SIGTERM, and the training loop asks it at which step to stop, unless `agree_to_stop` is False. UserError for
    incomplete settings, or if the processes can't connect.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    processes = _number("JAX_NUM_PROCESSES") if processes is None else processes
    process = _number("JAX_PROCESS_ID") if process is None else process
    if not (coordinator or detect or _one_of_several()):
        if (processes, process) != (None, None):
            raise UserError(
                "give the coordinator's address (host:port) with the number of processes and this one's number"
            )
        yield
        return
    if (processes is None) != (process is None) or (processes is not None and not 0 <= (process or 0) < processes):
        raise UserError(f"process {process} of {processes}: give both, with 0 <= process < processes")
    heartbeat = _number("TOKVID_HEARTBEAT_SECONDS")
    if heartbeat is not None and heartbeat < 1:
        raise UserError(f"TOKVID_HEARTBEAT_SECONDS should be 1 or more, it is {heartbeat}")
    jax.config.update("jax_enable_preemption_service", agree_to_stop)
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS if heartbeat is None else heartbeat,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of this job cannot connect: {_line(error)}") from error
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
    # In its own session, so that it survives the signal that kills this process; it ends when its input closes.
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as process:
        _witness = process.stdin
        try:
            yield
        finally:
            reached("")
            _witness = None


def reached(where: str) -> None:
    """Records the progress of this process ("after step 3") in case it is killed; "" at its regular end."""
    if _witness is not None:
        with contextlib.suppress(OSError, ValueError):
            _witness.write(f"{where}\n")
            _witness.flush()


def _end(here: str, error: BaseException) -> NoReturn:
    """Ends this process at once, and so the job. A regular exit would wait for the others, which wait for this one."""
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
    """Whether this is process 0, which writes metrics, samples and weights, and commits checkpoints."""
    return jax.process_index() == 0


def shard_of(sharding: Sharding, rows: int) -> tuple[int, int]:
    """(i, n): this process's devices hold part i of n equal parts of a batch's `rows`. Other processes may, too.

    UserError if the arrangement of devices has no such blocks.
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
    """Gathers a sharded tree to process 0, and returns None in the others. With one process, returns the tree.

    Gathers leaf by leaf, as NumPy arrays, so that devices hold at most one unsharded leaf.
    """
    if jax.process_count() == 1:
        return tree

    def one(leaf: jax.Array) -> np.ndarray | None:
        whole = np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return whole if first() else None

    gathered = jax.tree.map(one, tree)
    return gathered if first() else None


def to_all(tree: Any) -> Any:
    """Gathers a sharded tree to all processes, as NumPy arrays."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), tree)


def from_first(value: int) -> int:
    """The `value` of process 0, in all processes."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def from_all(value: Any) -> list[Any]:
    """The `value` of each process, in all processes and in their order. It can be anything that pickle knows."""
    if jax.process_count() == 1:
        return [value]
    data_N = np.frombuffer(pickle.dumps(value), np.uint8)
    size_P = multihost_utils.process_allgather(np.int32(data_N.size))
    padded_PN = multihost_utils.process_allgather(np.pad(data_N, (0, size_P.max() - data_N.size)))
    return [pickle.loads(data_N[:size].tobytes()) for data_N, size in zip(padded_PN, size_P, strict=True)]


def together(name: str) -> None:
    """A barrier: returns when all processes have reached it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_same(value: Any) -> None:
    """UserError if processes were started with different settings (JSON values), or run different programs."""
    if jax.process_count() == 1:
        return
    for what, each in (("versions or code of tokvid", _program()), ("settings or data", value)):
        digest = hashlib.sha256(json.dumps(each, sort_keys=True).encode()).digest()
        digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint32))
        different = np.flatnonzero((digests != digests[0]).any(axis=1))
        if different.size:
            raise UserError(
                f"process {different[0]} of {len(digests)} was started with other {what} than process 0; "
                "start all with the same"
            )


def check_shared(folder: Path) -> None:
    """UserError where `folder`, which may be missing yet, isn't the same one for all processes of a job."""
    if jax.process_count() == 1:
        return
    name = folder / f".shared-{from_first(random.getrandbits(31))}"
    error: OSError | None = None
    if first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name.touch()
        except OSError as failed:
            error = failed
    together("a file in the folder")
    until = time.monotonic() + NETWORK_SECONDS
    while not (there := name.exists()) and error is None and time.monotonic() < until:
        time.sleep(0.1)
    seen = from_all((there, error and (error.strerror or str(error))))
    if first():
        name.unlink(missing_ok=True)
    for number, (sees, why) in enumerate(seen):
        if why:
            raise UserError(f"process {number} cannot write to {folder}: {why}; choose another --workdir")
        if not sees:
            raise UserError(
                f"{folder} of process {number} of {len(seen)} is not that of process 0; use a folder that all share"
            )


@functools.cache
def _program() -> list[str]:
    """The versions of what all processes run, and a digest of tokvid's own code."""
    code, package = hashlib.sha256(), Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        code.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return [platform.python_version(), jax.__version__, np.__version__, code.hexdigest()]


def _one_of_several() -> bool:
    """Whether the environment shows several processes, so that JAX can detect the rest."""
    environment = os.environ
    return (
        ("SLURM_STEP_NODELIST" in environment and (_number("SLURM_NTASKS") or 1) > 1)  # set by srun, not by sbatch
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
