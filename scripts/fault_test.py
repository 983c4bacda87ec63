"""Injects faults into one of two training processes: how long until both have ended, and what they print.

python scripts/fault_test.py                 # all faults
python scripts/fault_test.py killed sleeps   # these only
"""

import argparse
import ctypes
import dataclasses
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job import begin, left, start

RANKS, DEVICES, FAULT_AT = 2, 2, 5
MOST_SECONDS = 10.0
TIMEOUT = 4.0  # of a step, where one is to hang


def fails() -> None:
    raise RuntimeError("a part of the machine is on fire")


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps() -> None:
    time.sleep(3600)


def sleeps_with_the_lock() -> None:
    ctypes.PyDLL(None).sleep(3600)  # no other thread of Python can run


def is_stopped() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def has_another_recipe() -> None:
    """From the beginning."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to `rank`; `said` are patterns that the log must hold, `codes` are exit codes (None: any)."""

    rank: int
    what: Callable[[], None]
    said: tuple[str, ...]
    codes: tuple[int | None, int | None]
    within: float = MOST_SECONDS
    timeout: float = 60.0  # of a step, in seconds


ON_FIRE = r"process {rank} of 2 ended after step \d+: RuntimeError: a part of the machine is on fire"
DIED = r"process {rank} of 2 died after step \d+"
HANGS = r"process 1 of 2 has hung for \d+ s after step \d+; the stacks of all threads follow"
OTHER = "process 1 of 2 was started with other settings or data than process 0"
SAVED = r"toy: stopped at step \d+ of \d+ and saved"
LATE = TIMEOUT + MOST_SECONDS
FAULTS = {
    "raises": Fault(1, fails, (ON_FIRE.format(rank=1), DIED.format(rank=0)), (None, 1)),
    "first-raises": Fault(0, fails, (ON_FIRE.format(rank=0), DIED.format(rank=1)), (1, None)),
    "killed": Fault(1, is_killed, (DIED.format(rank=1), DIED.format(rank=0)), (None, -signal.SIGKILL)),
    "first-killed": Fault(0, is_killed, (DIED.format(rank=0), DIED.format(rank=1)), (-signal.SIGKILL, None)),
    "sleeps": Fault(1, sleeps, (HANGS, r"in sleeps\b"), (None, 3), LATE, TIMEOUT),
    "sleeps-with-lock": Fault(0, sleeps_with_the_lock, (r"in sleeps_with_the_lock\b",), (None, None), LATE, TIMEOUT),
    "another-recipe": Fault(1, has_another_recipe, (OTHER,), (None, None), 60.0),  # from the start of the processes on
    "stopped": Fault(1, is_stopped, (SAVED,), (0, 0)),
}


class Toy:
    """A linear map learns to double; `fault` happens when batch FAULT_AT is asked for."""

    name, together = "toy", 1

    def __init__(self, rank: int, fault: Fault, folder: Path):
        self.rank, self.fault, self.folder = rank, fault, folder

    def make_model(self, rngs: Any) -> Any:
        from tokvid.nn.blocks import Linear

        return Linear(4, 4, ("embed", None), rngs=rngs)

    def loss(self, model: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        return ((model(batch) - 2 * batch) ** 2).mean(), {}

    def flops(self) -> float:
        return 6.0 * 4 * 4

    def batches(self, shard: tuple[int, int]) -> Any:
        return Batches(self, shard)

    def prepare(self, batch: Any, state: Any, mesh: Any) -> Any:
        return batch

    def alarm(self, metrics: Any) -> str:
        return ""

    def finish(self, variables: Any, directory: Path, step: int) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {}


class Batches:
    """Batch i is a function of i alone."""

    def __init__(self, training: Toy, shard: tuple[int, int]):
        self.training, self.shard, self.next = training, shard, 0

    def __next__(self) -> Any:
        import numpy as np

        self.next += 1
        if self.next == FAULT_AT and self.training.rank == self.training.fault.rank:
            (self.training.folder / "happened").write_text(repr(time.time()))
            self.training.fault.what()
        batch = np.random.default_rng(self.next).normal(size=(RANKS * DEVICES, 4)).astype(np.float32)
        return np.split(batch, self.shard[1])[self.shard[0]]

    def get_state(self) -> dict[str, int]:
        return {"next": self.next}

    def set_state(self, state: dict[str, int]) -> None:
        self.next = state["next"]

    def close(self) -> None:
        pass


def work(rank: int, address: str, folder: Path, name: str) -> None:
    """One of the processes."""
    begin(folder / f"{rank}.log", DEVICES)
    from tokvid.config import TrainConfig
    from tokvid.distributed import joined
    from tokvid.train.loop import train

    fault = FAULTS[name]
    steps = 100_000 if fault.what is is_stopped else 2 * FAULT_AT
    config = TrainConfig(steps=steps, batch=RANKS * DEVICES, log_every=1, save_every=3, sample_every=0, warmup=1)
    if fault.what is has_another_recipe:
        (folder / "happened").write_text(repr(time.time()))
        config = dataclasses.replace(config, weight_decay=0.1 * rank)
    with joined(address, RANKS, rank):
        train(Toy(rank, fault, folder), dataclasses.replace(config, step_timeout=fault.timeout), folder / "job")


def show(name: str, folder: Path) -> str:
    """Lets the fault happen; a line about it. RuntimeError where the processes don't do as they should."""
    fault, processes = FAULTS[name], start(RANKS, work, folder, name)
    try:
        for process in processes:
            process.join(240)
        ended = time.time()
    finally:
        for process in processes:
            process.kill()
    for _ in range(100):  # the witnesses speak after the processes have gone
        logs = "".join((folder / f"{rank}.log").read_text() for rank in range(RANKS))
        if not (wrong := [f"the log lacks {said!r}" for said in fault.said if not re.search(said, logs)]):
            break
        time.sleep(0.05)
    codes = tuple(process.exitcode for process in processes)
    if any(wanted not in (None, code) for wanted, code in zip(fault.codes, codes, strict=True)):
        wrong.append(f"exit codes {codes}, not {fault.codes}")
    if fault.codes != (0, 0) and 0 in codes:
        wrong.append(f"exit codes {codes}: one of them thinks that all went well")
    if not (folder / "happened").exists():
        wrong.append("it never happened")
    else:
        took = ended - float((folder / "happened").read_text())
        if took > fault.within:
            wrong.append(f"they were gone after {took:.1f} s only, {fault.within:g} s are allowed")
    if any(map(left, processes)):
        wrong.append("something of them lives on")
    if wrong:
        raise RuntimeError(f"{name}: {'; '.join(wrong)}\n{logs[-6000:]}")
    return f"{name}: both gone after {took:.1f} s, exit codes {codes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    options = parser.parse_args()
    for name in options.faults or FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(show(name, Path(folder)), flush=True)
            except RuntimeError:
                traceback.print_exc()
                sys.exit(1)


if __name__ == "__main__":
    main()
