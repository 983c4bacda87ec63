"""The `tokvid` command: reads the arguments, runs one of COMMANDS, reports user errors on one line.

Imports nothing slow: `tokvid --help` is there at once.
"""

import argparse
import contextlib
import io
import itertools
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tokvid import __version__
from tokvid.cli.data import Data
from tokvid.cli.demo import Demo
from tokvid.cli.doctor import Doctor, no_device
from tokvid.cli.edit import Animate, Edit, Highlights, Interpolate, Loop
from tokvid.cli.evaluate import Evaluate
from tokvid.cli.generate import Extend, Generate, Tell
from tokvid.cli.options import Command
from tokvid.cli.plan import Plan
from tokvid.cli.studio import Studio
from tokvid.cli.train import Tokenize, Train
from tokvid.cli.weights import Export, Import, Inspect, Merge, Reconstruct
from tokvid.errors import Terminated, UserError, lacks_memory, plain, reason, show_warnings, suggestion
from tokvid.io.files import Outputs
from tokvid.io.libtpu import quiet_without_tpu
from tokvid.io.urls import URL, local

HUGE_PAGES = "glibc.malloc.hugetlb=1"
LONGEST_LINE = 2000  # characters of an error
MOST_CHOICES = 16  # that are listed beside a suggestion
COMMANDS: tuple[Command, ...] = (
    Demo(),
    Tell(),
    Generate(),
    Extend(),
    Edit(),
    Animate(),
    Interpolate(),
    Loop(),
    Highlights(),
    Studio(),
    Reconstruct(),
    Train(),
    Tokenize(),
    Plan(),
    Evaluate(),
    Data(),
    Export(),
    Import(),
    Merge(),
    Inspect(),
    Doctor(),
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, too."""

    given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError as error:
            if isinstance(action.metavar, tuple):  # which says what each argument is
                named = f"{error.message}, {' '.join(action.metavar)}, with spaces between them"
                raise argparse.ArgumentError(action, named) from error
            raise

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"invalid int value: (.*)", r"should be a whole number, got \1", message)
        message = re.sub(r"invalid float value: (.*)", r"should be a number, got \1", message)
        if wrong := re.search(r"invalid choice: '(.*?)'(?= \(choose from (.+)\))", message):
            choices = re.findall(r"[\w-]+", wrong[2])
            hint = suggestion(wrong[1], choices)
            listed = "" if hint and len(choices) > MOST_CHOICES else message[wrong.end() :]
            message = message[: wrong.end()] + hint + listed
        elif "required" in message:  # perhaps what is missing is there, misspelt
            for option in (word.partition("=")[0] for word in self.given if word.startswith("--")):
                if option not in self._option_string_actions and (
                    hint := suggestion(option, self._option_string_actions)
                ):
                    message += f"; {option!r} is unknown{hint}"
        _fail(f"{message}; see {self.prog} --help", 2)


def parser(outputs: Outputs | None = None) -> argparse.ArgumentParser:
    """All commands and their options; `outputs` learns the files and folders that are parsed for results."""
    outputs = Outputs() if outputs is None else outputs
    top = Parser(
        prog="tokvid",
        description="Text to video with discrete tokens: generate videos from prompts, train models, measure them.",
        epilog="`tokvid COMMAND --help` explains a command. The weights that come with tokvid draw moving shapes, from "
        "prompts like 'a large red circle moves slowly to the left'; train others with `tokvid train`.",
    )
    top.add_argument("--version", action="version", version=f"tokvid {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands, outputs)
    return top


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. Exit codes: 0 done, 1 `plan` or `doctor` says no, 2 the user's mistake (one line says which), 130
    and 143 interrupted."""
    if arguments is None:
        _keep_streams()
    outputs = Outputs()
    options, rest = parser(outputs).parse_known_args(arguments)
    command = next(command for command in COMMANDS if command.name == options.command)
    if command.large_arrays and arguments is None:
        _use_huge_pages()
    if command.sets_fields:
        options.fields = rest
    elif rest:
        hint = suggestion(rest[0], (f"--{name.replace('_', '-')}" for name in vars(options)))
        _fail(f"unrecognized arguments: {' '.join(rest)}{hint}; see tokvid {options.command} --help", 2)
    for stream in (sys.stdout, sys.stderr):  # names of files may be no UTF-8, and a terminal may have no Chinese
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy multiplies little, and its threads would disturb XLA's
    quiet_without_tpu()
    show_warnings()
    try:
        with _interruptible():
            _run(command, options, outputs)
            sys.stdout.flush()
    except UserError as error:
        waits = any(not each.daemon for each in threading.enumerate() if each is not threading.main_thread())
        _fail(str(error), 2, at_once=waits and arguments is None)  # orbax's wait five minutes after a failed save
    except KeyboardInterrupt as error:
        if arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # another Ctrl-C ends the process at once, without a traceback
        code = 143 if isinstance(error, Terminated) else 130
        _fail(str(error) or "interrupted", code, at_once=arguments is None)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        advice = "; check its permissions" * isinstance(error, PermissionError)
        _fail(f"{error.filename or 'a file'}: {reason(error)}{advice}", 2)
    except Exception as error:
        if why := no_device():
            _fail("; ".join(why), 2)
        if not lacks_memory(error):
            raise
        needed = re.search(r"[\d.]+ ?[KMGT]i?B|\d+ bytes", str(error))
        where = f"on the device for an array of {needed[0]}" if needed else "for this"
        _fail(f"there is not enough memory {where}; {command.less_memory}", 2)


class _Messages(io.FileIO):
    """Standard error, which nobody may read any more: messages are dropped then, and the work goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:  # of a pipe or a terminal that was closed, or of a full disk
            return len(data)


def _keep_streams() -> None:
    """Opens those of the standard streams that are closed: the next file opened would take the place of one, and be
    written to by what prints there. Standard error outlives its reader.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    messages = io.BufferedWriter(_Messages(2, "w", closefd=False))
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    sys.stderr = io.TextIOWrapper(messages, encoding, errors="backslashreplace", line_buffering=True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)


def _use_huge_pages() -> None:
    """Starts this process again with huge pages for large arrays, which save a fifth of a training step.

    glibc reads the setting only at its start. Whoever has set GLIBC_TUNABLES, to "" even, is left alone.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_inputs(options: argparse.Namespace, outputs: Outputs) -> None:
    """UserError where a file that is read would be replaced by a result."""
    files = [path for value in vars(options).values() for path in _paths_in(value) if path.is_file()]
    for out, other in itertools.permutations(files, 2):
        if outputs.has(out) and other.samefile(out):
            raise UserError(f"the output {out} would replace {other}, which is read; name another file")


def _paths_in(value: object) -> list[Path]:
    """Those in an option's value: itself, or those of a list, as of LoRAs and their scales."""
    if isinstance(value, list | tuple):
        return [path for each in value for path in _paths_in(each)]
    return [value] if isinstance(value, Path) else []


def _run(command: Command, options: argparse.Namespace, outputs: Outputs) -> None:
    for name, value in vars(options).items():
        if isinstance(value, URL):
            setattr(options, name, local(value))
    _keep_inputs(options, outputs)
    if hasattr(options, "weights") or command.large_arrays:  # it computes
        with held():
            import jax
    with contextlib.ExitStack() as stack:
        if command.joins(options):
            from tokvid.distributed import joined

            processes = (options.coordinator, options.processes, options.process, options.distributed)
            stack.enter_context(joined(*processes, agree_to_stop=False))  # before a device is touched
        if hasattr(options, "weights"):  # it computes with a model
            from tokvid.io.compiled import keep_programs

            keep_programs()
            if options.mesh:
                from tokvid.sharding import make_mesh, running_on

                stack.enter_context(running_on(make_mesh(tuple(options.mesh), jax.local_devices())))
        command.run(options)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Signals wait: what a handler raises while compiled code is imported may end the process there, and while another
    process is started, leave that one unknown."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    for each, handler in before.items():
        if callable(handler):
            signal.signal(each, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    for number in came[:1]:
        signal.raise_signal(number)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that closes, raise Terminated meanwhile, and neither they nor Ctrl-C are lost.
    (Training handles them in its own way.)

    Python drops what is raised in a callback, as those of garbage collection, so such a signal is sent again.
    """
    again: list[threading.Timer] = []
    hook = sys.unraisablehook

    def terminate(number: int, frame: object) -> NoReturn:
        raise Terminated

    def dropped(what: Any) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            hook(what)
            return
        number = signal.SIGTERM if issubclass(what.exc_type, Terminated) else signal.SIGINT
        again.append(threading.Timer(0.05, os.kill, (os.getpid(), number)))
        again[-1].start()

    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    # Whoever started it with nohup wants it to go on.
    ending = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, terminate) for each in ending}
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        sys.unraisablehook = hook
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)


def _fail(message: str, code: int, at_once: bool = False) -> NoReturn:
    """Prints a line and exits; `at_once`: without Python's shutdown, which waits for threads, and in which those of XLA
    that compile or compute crash or wait for ever."""
    line = plain(" ".join(message.split())).encode("utf-8", "backslashreplace").decode()
    print(f"tokvid: {line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + '…'}", file=sys.stderr)
    if not at_once:
        sys.exit(code)
    import multiprocessing

    for child in multiprocessing.active_children():
        child.terminate()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
