"""Starts the processes of one job on this machine, quickly: their common modules are imported once."""

import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

IMPORTED = ["tokvid.train.loop", "tokvid.train.tokenizer_step", "tokvid.input_pipeline.loader"]


def start(count: int, target: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """`count` processes that call `target` with their rank, a free address to find one another at, and `arguments`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [context.Process(target=target, args=(rank, address, *arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    return processes


def begin(log: Path, devices: int = 1) -> None:
    """The first thing in such a process: a session of its own, all it says into `log`, so many devices."""
    os.setsid()
    threading.Thread(target=leave_with_parent, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"


def leave_with_parent() -> None:
    """So that none is left behind where the script is cut off."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def left(process: BaseProcess) -> bool:
    """Whether anything that a process began lives on after it."""
    try:
        os.killpg(process.pid or 0, 0)
    except ProcessLookupError:
        return False
    return True
