"""The command line as a whole: every command and flag is explained, and help is there at once."""

import argparse
import dataclasses
import gc
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import pytest

from tokvid.cli import main as cli
from tokvid.cli import option_values, options
from tokvid.config import Sampling


def commands(parser, words=()):
    """("data", "shapes"), … and the parser of each; with all parsers of commands of commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield (*words, name), inner, {choice.dest: choice.help for choice in action._choices_actions}[name]
                yield from commands(inner, (*words, name))


COMMANDS = {words: (parser, line) for words, parser, line in commands(cli.parser())}


def test_help_is_quick_and_imports_nothing_slow():
    code = f"""
import sys, time
from tokvid.cli.main import main
for command in {[(), *COMMANDS]}:
    try:
        main([*command, "--help"])
    except SystemExit as error:
        assert error.code == 0
assert not {{"jax", "numpy", "yaml", "av"}} & set(sys.modules), sorted(sys.modules)
assert time.process_time() < 1, time.process_time()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "--prompt PROMPT" in done.stdout and "COMMAND" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc's")
@pytest.mark.parametrize(("own", "starts"), [(None, ["None", cli.HUGE_PAGES]), ("", [""])])
def test_training_starts_once_more_with_huge_pages_unless_the_user_decides(tmp_path, own, starts):
    code = "import os; print(os.environ.get('GLIBC_TUNABLES'), flush=True); from tokvid.cli.main import main; main()"
    words = [sys.executable, "-c", code, "train", "tokenizer", str(tmp_path / "missing.py"), "--workdir", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {} if own is None else {"GLIBC_TUNABLES": own}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2 and "missing.py" in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout.split("\n")[:-1] == starts


def test_every_command_is_there_once_and_can_be_called():
    assert [words[0] for words in COMMANDS if len(words) == 1] == [command.name for command in cli.COMMANDS]
    assert len(COMMANDS) == len(cli.COMMANDS) + len(cli.Data.kinds)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_and_argument_has_a_line_of_help(words):
    parser, line = COMMANDS[words]
    assert line and line in f"{line[0]}{parser.description[1:]}"
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), (words, action.option_strings)
    parser.format_help()  # which fails where a % isn't doubled


@pytest.mark.parametrize("words", ["story", "generate", "extend", "interpolate", "loop", "evaluate"])
def test_every_field_of_sampling_has_a_flag(words):
    actions = {action.dest: action for action in COMMANDS[(words,)][0]._actions}
    for field in dataclasses.fields(Sampling):
        text, own = actions[field.name].help, "(default: the weights' own)"
        default = own if field.default is None else f"(default {field.default})"
        assert field.metadata["help"] in text and text.endswith(default)
        assert actions[field.name].default is None


def test_a_new_field_of_sampling_gets_its_flag(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Newer(Sampling):
        min_p: float = dataclasses.field(default=0.0, metadata={"help": "at least 5% of the most likely token's"})
        greedy: bool = dataclasses.field(default=False, metadata={"help": "take the most likely token"})
        order: Literal["rows", "spiral"] = dataclasses.field(default="rows", metadata={"help": "which come first"})

    monkeypatch.setattr(options, "Sampling", Newer)
    monkeypatch.setattr(option_values, "SAMPLING", tuple(field.name for field in dataclasses.fields(Newer)))
    parser = argparse.ArgumentParser()
    options.sampling_arguments(parser)
    assert "at least 5% of" in parser.format_help()
    words = ["--min-p", "0.25", "--greedy", "--order", "spiral", "--top-k", "3"]
    assert option_values.sampling_of(parser.parse_args(words), Newer(rows=2)) == Newer(
        min_p=0.25, greedy=True, order="spiral", top_k=3, rows=2
    )
    assert option_values.sampling_of(parser.parse_args(["--no-greedy"]), Newer(greedy=True)) == Newer()
    assert option_values.sampling_of(parser.parse_args([]), Newer(top_k=4)) == Newer(top_k=4)


def test_weights_that_come_with_tokvid_have_names(tmp_path, monkeypatch):
    """Unless a folder here has that name."""
    monkeypatch.chdir(tmp_path)
    assert options.weights("shapes") == options.SHIPPED and options.weights("robots") == options.SHIPPED / "robots"
    assert all((folder / "tokenizer" / "config.json").is_file() for folder in options.WORLDS.values())
    (tmp_path / "robots").mkdir()
    assert options.weights("robots") == Path("robots")
    assert options.weights("hf://me/mine") == "hf://me/mine"


def test_an_interrupted_command_waits_for_no_thread():
    """In Python's shutdown, threads that compile crashed, or were waited for."""
    program = """
import threading, time
from tokvid.cli import doctor, main

def run(self, options):
    threading.Thread(target=time.sleep, args=(60,)).start()
    raise KeyboardInterrupt

doctor.Doctor.run = run
main.main()
"""
    done = subprocess.run([sys.executable, "-c", program, "doctor"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "tokvid: interrupted\n")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_garbage_collection_is_not_lost(tokvid, monkeypatch, number, code):
    """JAX has a callback there, and Python drops what is raised in it."""

    def interrupted(phase, about):
        gc.callbacks.remove(interrupted)
        signal.raise_signal(number)

    def run(self, options):
        gc.callbacks.append(interrupted)
        gc.collect(0)
        assert interrupted not in gc.callbacks
        time.sleep(20)

    monkeypatch.setattr(cli.Doctor, "run", run)
    hook = sys.unraisablehook
    assert tokvid("doctor") == (code, "", "tokvid: interrupted\n")
    assert sys.unraisablehook is hook


def test_what_else_is_dropped_is_shown_as_ever(tokvid, monkeypatch):
    class Failing:
        def __del__(self):
            raise ValueError("on leaving")

    monkeypatch.setattr(cli.Doctor, "run", lambda *_: Failing() and None)
    monkeypatch.setattr(sys, "unraisablehook", lambda what: print(what.exc_value, file=sys.stderr))
    assert tokvid("doctor") == (0, "", "on leaving\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_compiled_code_is_imported_waits(number):
    done = []
    with pytest.raises(KeyboardInterrupt), cli._interruptible():
        with cli.held():
            signal.raise_signal(number)
            done.append("import")
        done.append("more")
    assert done == ["import"]


def test_under_nohup_a_terminal_may_close(tokvid, monkeypatch):
    monkeypatch.setattr(cli.Doctor, "run", lambda *_: signal.raise_signal(signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert tokvid("doctor") == (0, "", "")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_output_is_no_error():
    program = "from tokvid.cli import main; main.Doctor.run = lambda *_: print('all is well'); main.main()"
    command = f"{sys.executable} -c {shlex.quote(program)} doctor >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_work_goes_on_when_nobody_reads_its_messages():
    """As in `tokvid train … 2>&1 | head -1`, or when a terminal closes: what is done until then would be lost."""
    program = """
import logging, sys
from tokvid.cli import main

def run(self, options):
    for _ in range(3):
        print("message", file=sys.stderr)
        logging.warning("warning")
    print("done")

main.Doctor.run = run
main.main()
"""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", program, "doctor"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path, closed):
    """What libraries and handlers of signals print would be written to it, a checkpoint's perhaps."""
    program = """
import os
from tokvid.cli import main

def run(self, options):
    with open("file", "w+b", buffering=0) as file:
        os.write(2, b"message")
        file.seek(0)
        file.write(b"nothing" if not file.read() else b"something")

main.Doctor.run = run
main.main()
"""
    command = f"{sys.executable} -c {shlex.quote(program)} doctor {closed}"
    assert subprocess.run(command, shell=True, timeout=60, cwd=tmp_path).returncode == 0
    assert (tmp_path / "file").read_bytes() == b"nothing"


def test_a_device_that_is_not_there_is_named(tokvid, monkeypatch):
    """JAX's own error for a platform that no package is installed for is an assertion without a word."""

    def devices():
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(cli.Doctor, "run", lambda *_: jax.devices())
    unset = "unset JAX_PLATFORMS=cuda, or set JAX_PLATFORMS=cpu to compute without one"
    said = f"JAX finds no device (AssertionError); {unset}"
    assert tokvid("doctor") == (2, "", f"tokvid: {said}\n")


def test_an_error_does_not_wait_for_threads_that_go_on(tmp_path):
    """orbax's do, for five minutes, after a save that failed."""
    code = """
import threading, time
from tokvid.cli import main as cli
from tokvid.errors import UserError

def run(self, options):
    threading.Thread(target=time.sleep, args=(100,)).start()
    raise UserError("the disk is full; free some space")

cli.Doctor.run = run
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "tokvid: the disk is full; free some space\n")


@pytest.mark.parametrize("command, advice", [("doctor", "smaller videos"), ("train tokenizer", "a smaller batch")])
def test_too_little_memory_on_the_device_is_one_line(tokvid, monkeypatch, command, advice):
    def run(self, options):
        jax.block_until_ready(jnp.zeros(1 << 46, jnp.uint8))

    monkeypatch.setattr(type(next(each for each in cli.COMMANDS if each.name == command.split()[0])), "run", run)
    words = (*command.split(), "configs/tiny.py", "--workdir", "w") if command != "doctor" else ("doctor",)
    code, out, err = tokvid(*words)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("tokvid: there is not enough memory on the device for an array of 70368744177664 bytes; use ")
    assert advice in err


def test_other_errors_of_the_device_are_shown_whole(tokvid, monkeypatch):
    def run(self, options):
        raise RuntimeError("INTERNAL: a part of the machine is on fire")

    monkeypatch.setattr(cli.Doctor, "run", run)
    with pytest.raises(RuntimeError, match="on fire"):
        tokvid("doctor")


def test_a_second_interruption_ends_the_process_at_once(monkeypatch):
    """While it ends, JAX would print a traceback."""

    def run(self, options):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli.Doctor, "run", run)
    monkeypatch.setattr(sys, "argv", ["tokvid", "doctor"])
    monkeypatch.setattr(os, "_exit", sys.exit)  # or it would end the tests
    monkeypatch.setattr(cli, "_keep_streams", lambda: None)  # or it would change theirs
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit, match="130"):
            cli.main()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_terminal_would_obey_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text('segments: [{prompt: "a \\e[31m red\\u202e star", seconds: 1}]')
    cli.main(["inspect", "s.yaml"])
    out = capsys.readouterr().out
    assert "a \\x1b[31m red\\u202e star" in out and "\x1b" not in out
    with pytest.raises(SystemExit):
        cli.main(["inspect", "\x1b[31m.mp4"])
    assert "\x1b" not in capsys.readouterr().err
