"""Injects faults into real jobs, for hours, and reports what became of each.

    python scripts/soak.py --hours 8 --report soak.json              # faults of all kinds, drawn from --seed on
    python scripts/soak.py --only 1234                               # the one of this seed again
    python scripts/soak.py --faults kill term --jobs transformer     # of some kinds, in some jobs

The jobs of a small world (data, both trainings, tokenizing, generation, a story, and opening every kind of file) run
once undisturbed; their results are the truth. Then each seed draws a fault and a job:

    kill, term, stop        a signal at a random moment, half of them during a save; then the job is run again
    flip, cut, swap, lose   a file that the job reads has a flipped bit, loses its end, is another one, or is gone
    garbled                 bytes and values of a file are changed at random
    disk                    the disk is full after a random number of bytes or files; with room, the job is run again
    read-only               nothing can be written; once it can, the job is run again
    slow                    each change of a file takes some milliseconds more
    memory                  there is a random amount of memory, and the kernel kills; with more, the job is run again
    clock                   the wall clock jumps; where that ends the job, it is run again
    nan                     batches of a training are not finite
    twice                   the job is started twice in one folder, and then once more

Outcomes that are fine: `same` (the truth, bit for bit), `missed` (the same, before the clock jumped), `resumed` (the
same, once the job was run again), `older` (an older checkpoint, with a warning), `refused` (exit code 2, and a line
that names the file), `other` (another result, after a garbled file of the user or after `nan`).
Failures: `wrong` (another result), `crashed` (a traceback or another exit code), `unnamed` (refused without naming
the file), `lost` (a file that was there before is changed or gone), `hung`. The folder of a failure is kept. The exit
code is 1 if there was one. `disk` and `read-only` mount a tmpfs, `slow` attaches strace, `memory` makes a control group
(version 1): where that isn't possible, such seeds are passed over. The studio has its own `scripts/soak_studio.py`.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kill_test import checkpoints
from soak_world import JOBS, JUMPED, SLOWEST, Ended, Run, Trouble, World, below, contents, digest

from tokvid.io.progress import progress

TRAININGS = ("tokenizer", "transformer")
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
DAMAGES = ("flip", "cut", "swap", "lose")
DISKS = ("disk", "read-only")
FAULTS = (*SIGNALS, *DAMAGES, "garbled", *DISKS, "slow", "memory", "clock", "nan", "twice")
MEMORY = Path("/sys/fs/cgroup/memory")  # control groups of version 1
CHANGES = "write,pwrite64,rename,fsync,fdatasync,ftruncate,mkdir,unlink,unlinkat"  # the system calls that `slow` delays
FINE = ("same", "missed", "resumed", "older", "refused", "other")
VERDICTS = {**dict.fromkeys(FINE, "survived"), "lost": "lost", "hung": "hung"}  # all others are "wrong"
CODES = (0, 2)
STOPPED = (143, -signal.SIGTERM, -signal.SIGKILL)  # -SIGTERM: it came before the command was ready
VALUES = (b"-1", b"0", b"1e999", b"nan", b"1e-300", b"9" * 30, b'""', b"null", b"[]", b"{}", b"true", b"'", b"\xff")


def able(fault: str, name: str) -> bool:
    """Whether a fault is one of a job's."""
    job = JOBS[name]
    if name.startswith("open"):
        return fault == "garbled" or (fault in DAMAGES and bool(job.reads))
    if fault == "nan":
        return name == "transformer"
    return bool(job.users) if fault == "garbled" else fault not in DAMAGES


class Case:
    """One fault in one job, by its seed."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        self.fault = self.draw.choice(FAULTS)
        self.name = self.draw.choice([name for name in JOBS if able(self.fault, name)])
        self.job, self.log, self.file = JOBS[self.name], "", ""

    def happen(self, world: World, folder: Path) -> str:
        """Injects the fault into the job, whose files are in `folder`; returns the outcome."""
        self.truth, self.times, self.truth_folder = world.truth[self.name], world.seconds, world.folder
        self.before = contents(folder)
        if self.fault in SIGNALS:
            return self._signalled(folder)
        if self.fault in (*DAMAGES, "garbled"):
            return self._damaged(folder)
        if self.fault in DISKS:
            return self._on_a_disk(folder)
        own = {"slow": self._slowly, "memory": self._without_memory, "clock": self._unsteadily}
        return (own | {"nan": self._poisoned, "twice": self._twice})[self.fault](folder)

    def _run(self, folder: Path) -> Ended:
        return self._end(Run(folder, self.job.command))

    def _end(self, run: Run) -> Ended:
        ended = run.end(SLOWEST + 10 * self.times[self.name])
        if ended.code == 0:  # programs that were compiled before make it faster
            self.times[self.name] = min(ended.seconds, self.times[self.name])
        self.log += f"exit code {ended.code} after {ended.seconds:.1f} s\n{ended.said}"
        return ended

    def _judge(self, folder: Path, ended: Ended) -> str:
        """The outcome of the last run of a case."""
        now = contents(folder)
        kept = (self.job.makes, "w/tokenizer/checkpoints")  # a damaged checkpoint is set aside
        if any(now.get(name) != mark for name, mark in self.before.items() if not name.startswith(kept)):
            return "lost"
        if ended.code is None:
            return "hung"
        if "Traceback (most recent call last)" in ended.said or ended.code not in CODES or "soak: " in ended.said:
            return "crashed"
        if ended.code == 2:
            path = Path(self.file)
            named = not self.file or any(part and part in ended.said for part in (path.name, path.parent.name))
            return "refused" if named and re.search(r"^tokvid: .", ended.said, re.MULTILINE) else "unnamed"
        result = digest(folder, self.job)
        if result in self.truth[1:] and re.search("set aside|was never finished", ended.said):  # without its record
            return "older"
        may_differ = self.fault == "garbled" and self.file.startswith(self.job.users or ("/",))
        return "same" if result == self.truth[0] else "other" if may_differ else "wrong"

    def _again(self, folder: Path) -> str:
        """The outcome once the job is run again without a fault: it has to come to its end."""
        outcome = self._judge(folder, self._run(folder))
        return {"same": "resumed", "refused": "wrong"}.get(outcome, outcome)

    def _signalled(self, folder: Path) -> str:
        moment = time.monotonic() + self.draw.uniform(0, 1.1 * self.times[self.name])
        saving = self.name in TRAININGS and self.draw.random() < 0.5
        run = Run(folder, self.job.command)
        while run.process.is_alive() and (
            time.monotonic() < moment or (saving and not checkpoints(folder / self.job.makes)[1])
        ):
            time.sleep(0.003)
        steps = checkpoints(folder / self.job.makes)[0]
        self._send(run, SIGNALS[self.fault])
        if self.fault == "stop":
            time.sleep(self.draw.uniform(0.2, 3))
            self._send(run, signal.SIGCONT)
        self.log += f"signal {self.fault} with checkpoints {steps}\n"
        ended = self._end(run)
        if ended.code is None:
            return "hung"
        if ended.code == 0:
            return self._judge(folder, ended)
        if self.fault == "stop" or ended.code not in STOPPED or "Traceback (most recent" in ended.said:
            return "crashed"
        outcome = self._again(folder)
        resumed = re.findall(r"resumes from step (\d+)", self.log)
        return "lost" if steps and (not resumed or int(resumed[-1]) < steps[-1]) else outcome

    def _send(self, run: Run, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.process.pid or 0, number if run.process.is_alive() else 0)

    def _damaged(self, folder: Path) -> str:
        parts = self.job.reads if self.fault != "garbled" else (*self.job.reads, *self.job.users)
        paths = [path for part in parts for path in below(folder / part)]
        path = self.draw.choice([path for path in paths if path.name != "lock"])
        self.file, data = str(path.relative_to(folder)), path.read_bytes()
        if self.fault == "lose":
            path.unlink()
        else:
            path.write_bytes(self._changed(data, path, paths))
        self.log += f"{self.fault}: {self.file}\n"
        self.before = contents(folder)
        return self._judge(folder, self._run(folder))

    def _changed(self, data: bytes, path: Path, paths: list[Path]) -> bytes:
        if self.fault == "swap":
            return self.draw.choice(paths).read_bytes()
        if self.fault == "cut":
            return data[: self.draw.randrange(len(data) or 1)]
        if self.fault == "flip":
            at, bit = self.draw.randrange(len(data) or 1), 1 << self.draw.randrange(8)
            return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :] if data else data
        for _ in range(self.draw.choice((1, 3, 30))):
            data = self._garbled(data)
        return data

    def _garbled(self, data: bytes) -> bytes:
        """With a random part replaced, gone or repeated, or a word or number of a text replaced."""
        words = [] if b"\0" in data else list(re.finditer(rb"[\w.+-]+", data))
        if words and self.draw.random() < 0.5:
            word = self.draw.choice(words)
            return data[: word.start()] + self.draw.choice(VALUES) + data[word.end() :]
        at, length = self.draw.randrange(len(data) or 1), self.draw.choice((1, 1, 4, 64))
        part = (
            self.draw.randbytes(length),
            b"",
            data[at : at + length] * self.draw.choice((2, 50)),
        )[self.draw.randrange(3)]
        return data[:at] + part + data[at + length :]

    def _on_a_disk(self, folder: Path) -> str:
        """Runs the job on a tmpfs that is small or read-only, and again once it isn't."""
        disk = folder.with_name(f"{folder.name}.disk")
        disk.mkdir()
        made = self.truth_folder / self.job.makes
        room = size_of(folder) + int(self.draw.uniform(4096, 1.2 * size_of(made)))
        files = count_of(folder) + self.draw.randint(1, 2 + int(1.2 * count_of(made)))
        full = self.draw.choice((f"size={room}", f"nr_inodes={files}")) if self.fault == "disk" else "size=1g"
        subprocess.run(["mount", "-t", "tmpfs", "-o", full, "soak", str(disk)], check=True)
        self.log += f"{self.fault}: {full}\n"
        try:
            shutil.copytree(folder, disk, dirs_exist_ok=True)
            if self.fault == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            if (outcome := self._judge(disk, self._run(disk))) != "refused":
                return outcome
            subprocess.run(["mount", "-o", "remount,rw,size=1g,nr_inodes=100000", str(disk)], check=True)
            return self._again(disk)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
            disk.rmdir()

    def _slowly(self, folder: Path) -> str:
        """As if files lay on a slow disk of a network."""
        delay = int(10 ** self.draw.uniform(2, 4))  # microseconds
        run = Run(folder, self.job.command)
        slow = ["strace", "-f", "-q", "-o", os.devnull, "-e", f"inject={CHANGES}:delay_enter={delay}"]
        with subprocess.Popen([*slow, "-p", str(run.process.pid)], stderr=subprocess.DEVNULL) as tracer:
            ended = self._end(run)
        self.log += f"slow: {delay} µs, strace ended with {tracer.returncode}\n"
        return self._judge(folder, ended) if tracer.returncode == 0 else "crashed"  # it could not trace

    def _without_memory(self, folder: Path) -> str:
        """The kernel kills a process that needs more, as in a container."""
        limit = int(2 ** self.draw.uniform(22, 29))
        self.log += f"memory: {limit} bytes\n"
        group = Path(tempfile.mkdtemp(prefix="soak.", dir=MEMORY))
        try:
            (group / "memory.limit_in_bytes").write_text(str(limit))
            run = Run(folder, self.job.command)
            with contextlib.suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(str(run.process.pid))
            return self._whatever(folder, self._end(run))
        finally:
            group.rmdir()

    def _unsteadily(self, folder: Path) -> str:
        trouble = Trouble(clock=self.draw.randrange(1, 10**6))
        self.log += f"{trouble}\n"
        ended = self._end(Run(folder, self.job.command, trouble))
        outcome = self._whatever(folder, ended)
        return "missed" if outcome == "same" and JUMPED not in ended.said else outcome

    def _whatever(self, folder: Path, ended: Ended) -> str:
        """However the job has ended, nothing is lost."""
        if ended.code is None:
            return "hung"
        return self._judge(folder, ended) if ended.code == 0 else self._again(folder)

    def _poisoned(self, folder: Path) -> str:
        """Some steps change nothing and are counted; ten in a row end the training, which then goes on."""
        row, first = self.draw.random() < 0.3, self.draw.randrange(1, 12)
        steps = range(first, first + 10) if row else self.draw.sample(range(1, 25), self.draw.randrange(1, 6))
        self.log += f"not finite: {sorted(steps)}\n"
        ended = self._end(Run(folder, self.job.command, Trouble(frozenset(steps))))
        if row:
            if ended.code != 2 or "was not finite for 10 steps" not in ended.said:
                return "wrong"
            ended = self._run(folder)
        if (outcome := self._judge(folder, ended)) not in ("same", "wrong"):
            return outcome
        finite = Run(folder, "open weights w").end(SLOWEST).code == 0
        lines = map(json.loads, (folder / self.job.makes / "metrics.jsonl").read_text().splitlines())
        counted = sum(line.get("skipped", 0) for line in lines) == len(steps)
        return "other" if finite and (row or counted) else "wrong"

    def _twice(self, folder: Path) -> str:
        runs = [Run(folder, self.job.command)]
        time.sleep(self.draw.uniform(0, self.times[self.name] / 2))
        runs.append(Run(folder, self.job.command))
        outcomes = [self._judge(folder, ended) for ended in list(map(self._end, runs))]
        failures = [outcome for outcome in outcomes if outcome not in ("same", "refused")]
        return failures[0] if failures else self._again(folder)


def size_of(place: Path) -> int:
    """The bytes that a folder's files take on a tmpfs, which has pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in below(place))


def count_of(place: Path) -> int:
    """The files and folders that a folder has, itself included."""
    return 1 + sum(1 for _ in place.rglob("*"))


def can_mount() -> bool:
    """Whether a tmpfs may be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "soak", folder]
        if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def main() -> None:
    """Prepares, injects, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="after which no further case begins")
    parser.add_argument("--report", type=Path, default=Path("soak.json"))
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next ones follow")
    parser.add_argument("--only", type=int, metavar="SEED", help="this case alone")
    parser.add_argument("--cases", type=int, default=10**9, help="at most so many")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--jobs", nargs="+", choices=tuple(JOBS), default=tuple(JOBS))
    parser.add_argument("--folder", type=Path, help="to work in; a prepared world there is taken (default: a new one)")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="soak."))).absolute()
    environment = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "OPENBLAS_NUM_THREADS": "1"}
    os.environ.update(environment)
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )  # the jobs compile much and compute little
    world = World(folder / "truth")
    world.prepare(options.jobs)
    seeds = [options.only] if options.only is not None else range(options.seed, options.seed + 10**9)
    faults = set(options.faults) - (set() if can_mount() else {*DISKS})
    faults -= set() if shutil.which("strace") else {"slow"}
    faults -= set() if os.access(MEMORY, os.W_OK) else {"memory"}
    report = Report(options.report)
    seconds, began = round(3600 * options.hours), time.monotonic()
    with progress("soak", seconds, "s") as advance:
        for seed in seeds:
            at = time.monotonic()
            if at - began > seconds or sum(report.counts.values()) >= options.cases:
                break
            case = Case(seed)
            if options.only is None and (case.fault not in faults or case.name not in options.jobs):
                continue
            with world.copy(case.name, folder) as place:
                outcome = case.happen(world, place)
            if outcome in FINE:
                shutil.rmtree(place)
            report.add(seed, case, outcome)
            advance(round(time.monotonic() - began) - round(at - began), **report.notes())
    print(f"{json.dumps(report.kinds(), indent=1)}\n{len(report.failures)} failures: {options.report}")
    sys.exit(bool(report.failures))


class Report:
    """What became of each case, written after each."""

    def __init__(self, path: Path):
        self.path, self.counts = path, Counter[tuple[str, str, str]]()
        self.failures: list[dict[str, object]] = []

    def add(self, seed: int, case: Case, outcome: str) -> None:
        self.counts[case.fault, case.name, outcome] += 1
        if outcome not in FINE:
            about = {"seed": seed, "fault": case.fault, "job": case.name, "outcome": outcome, "file": case.file}
            self.failures.append(about | {"log": case.log})
            print(f"soak: seed {seed}: {case.fault} {case.file} in {case.name}: {outcome}", file=sys.stderr)
        cases = [{"fault": key[0], "job": key[1], "outcome": key[2], "tries": n} for key, n in self.counts.items()]
        values = {"kinds": self.kinds(), "cases": cases, "failures": self.failures}
        self.path.write_text(json.dumps(values, indent=1, ensure_ascii=False))

    def kinds(self) -> dict[str, dict[str, int]]:
        """Tries, survived, lost, wrong and hung, by kind of fault."""
        kinds: dict[str, dict[str, int]] = {}
        for (fault, _, outcome), count in self.counts.items():
            kind = kinds.setdefault(fault, dict.fromkeys(("tries", "survived", "lost", "wrong", "hung"), 0))
            kind["tries"] += count
            kind[VERDICTS.get(outcome, "wrong")] += count
        return kinds

    def notes(self) -> dict[str, object]:
        return {"cases": sum(self.counts.values()), "failures": len(self.failures)}


if __name__ == "__main__":
    main()
