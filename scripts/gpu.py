"""Benchmarks an NVIDIA GPU, then trains a recipe on it. scripts/gpu.sh sets up the environment and starts it.

Stages, each in its own process: the tests marked `gpu`; a training step of configs/base_350m.py with cuDNN attention;
decoding with the same model; a training step of configs/base.py's tokenizer; that tokenizer streaming; and, for a given
recipe, its training: tokenizer, token cache, transformer. A second call skips stages whose result is in the output
folder. A call respects its time limit: SIGTERM stops training, which saves, as does SIGTERM to this program. The
numbers are printed last and written to gpu.json in the output folder.
"""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

from tokvid import __version__
from tokvid.cli.main import held
from tokvid.errors import UserError
from tokvid.io.files import read_json, write_json
from tokvid.train.recipe import open_recipe

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
BENCH = (sys.executable, str(ROOT / "scripts" / "bench.py"))
TOKVID = (sys.executable, "-m", "tokvid")
GRACE = 60  # seconds that a process has to save after SIGTERM
LEAST = 20  # seconds; with less no measurement is begun
MACHINE = ("matrix multiplication", "memory")  # the rows that bench.py begins with
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")
ONE_GPU = {"CUDA_VISIBLE_DEVICES": "0"}  # is measured, unless the environment names another
TINY_TRAINING = [
    "--tokens.videos=8",
    *(
        f"--train_{model}.{field}"
        for model in ("tokenizer", "transformer")
        for field in ("steps=2", "sample_every=0", "log_every=1")
    ),
]


class Stopped(Exception):
    """SIGTERM or Ctrl-C."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command, and what is added to it: the first choice that fits in memory is taken."""

    name: str
    command: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...] = ((),)

    @property
    def told(self) -> str:
        """The command as people type it."""
        return " ".join(["python", *self.command[1:]]).replace(f"{ROOT}/", "")


TESTS = Stage("tests", (sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")))


def measurements(tiny: bool) -> list[Stage]:
    """All stages but training."""
    transformer, tokenizer = (CONFIGS / ("tiny.py" if tiny else name) for name in ("base_350m.py", "base.py"))
    step: tuple[str, ...] = ("--step", "transformer", "--config", str(transformer))
    step_choices = tokenizer_choices = ((),)
    if tiny:
        step = (*step, "--quick")
    else:
        step = (*step, "--transformer.dtype", "bfloat16", "--transformer.attention", "cudnn")
        # From fast to frugal.
        step_choices = tuple(
            ("--transformer.remat", remat, "--train_transformer.batch", batch)
            for remat, batch in (("none", "32"), ("dots", "32"), ("full", "32"), ("full", "8"))
        )
        tokenizer_choices = tuple(("--train_tokenizer.batch", batch) for batch in ("64", "32", "16", "8"))
    quick = ("--quick",) if tiny else ()
    return [
        Stage("transformer_step", (*BENCH, *step), step_choices),
        Stage("decoding", (*BENCH, "--decoding", "--quick", "--rounds", "8", "--config", str(transformer))),
        Stage("tokenizer_step", (*BENCH, "--step", "tokenizer", "--config", str(tokenizer), *quick), tokenizer_choices),
        Stage("streaming", (*BENCH, "--streaming", "--config", str(tokenizer), *quick)),
    ]


def training(recipe: str, workdir: Path, changes: list[str]) -> list[Stage]:
    """The recipe's whole chain."""
    rest = (recipe, "--workdir", str(workdir), *changes)
    return [
        Stage("train_tokenizer", (*TOKVID, "train", "tokenizer", *rest)),
        Stage("tokenize", (*TOKVID, "tokenize", *rest)),
        Stage("train_transformer", (*TOKVID, "train", "transformer", *rest)),
    ]


class Call:
    """One call of this program: runs stages until its time is over, and keeps their results in `out`."""

    def __init__(self, out: Path, seconds: float, tiny: bool):
        self.out, self.tiny, self.end = out, tiny, time.monotonic() + seconds
        self.failed: dict[str, str] = {}
        self.environment = {"JAX_COMPILATION_CACHE_DIR": str(out / "programs"), **os.environ}
        if tiny:
            self.environment["JAX_PLATFORMS"] = "cpu"
        else:  # without XLA_FLAGS the tests would choose some that compile faster
            self.environment = {"XLA_FLAGS": "", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", **self.environment}

    def left(self) -> float:
        return self.end - time.monotonic()

    def result(self, stage: Stage) -> dict[str, Any] | None:
        """What the same command left in this call or in an earlier one."""
        path = self.out / f"{stage.name}.json"
        result = read_json(path, "a stage's result") if path.is_file() else {}
        return result if result.get("command") == stage.told else None

    def done(self, stage: Stage, result: dict[str, Any]) -> None:
        write_json(self.out / f"{stage.name}.json", {"command": stage.told, **result})

    def run(self, stage: Stage, more: tuple[str, ...], seconds: float, devices: dict[str, str]) -> int | None:
        """Its exit status, or None where it was stopped. What it says goes into a log."""
        log = self.out / f"{stage.name}.log"
        print(f"── {stage.name} (at most {seconds:.0f} s; {log})", file=sys.stderr, flush=True)
        process = None
        try:
            with log.open("wb") as file, held():  # or a signal that comes now would leave it untold
                process = subprocess.Popen(
                    (*stage.command, *more),
                    env={**devices, **self.environment},
                    stdout=file,
                    stderr=file,
                    start_new_session=True,  # so that Ctrl-C comes here alone, and is passed on once
                )
            return process.wait(seconds)
        except (subprocess.TimeoutExpired, Stopped) as why:
            if process is not None:
                end(process)
            if isinstance(why, Stopped):
                raise
            return None

    def fail(self, stage: Stage, status: int | None) -> None:
        log = (self.out / f"{stage.name}.log").read_text(encoding="utf-8", errors="replace")
        last = ([line.strip() for line in log.splitlines() if line.strip()] or ["it said nothing"])[-1]
        if any(mark in log for mark in OUT_OF_MEMORY):
            last = f"out of memory: {last}"
        self.failed[stage.name] = "out of time" if status is None else last[:300]

    def measure(self, stage: Stage) -> None:
        """Runs the first of a stage's choices that fits in memory; its result is what the command wrote."""
        new = self.out / f"{stage.name}.new.json"
        for choice in stage.choices:
            if self.left() < LEAST:
                return
            status = self.run(stage, (*choice, "--json", str(new)), self.left(), ONE_GPU)
            if status == 0:
                self.failed.pop(stage.name, None)
                self.done(stage, {"choice": " ".join(choice), **read_json(new, "what bench.py wrote")})
                new.unlink()
                return
            self.fail(stage, status)
            if not self.failed[stage.name].startswith("out of memory"):
                return

    def test(self) -> None:
        """The tests marked `gpu`. Where some fail, there is no result, and the next call runs them again."""
        report = self.out / "tests.xml"
        status = self.run(TESTS, (f"--junitxml={report}",), self.left(), ONE_GPU)
        if status != 0:
            self.fail(TESTS, status)
            return
        suite = next(xml.parse(report).getroot().iter("testsuite"))
        found = {name: int(suite.get(name, 0)) for name in ("tests", "skipped")}
        if found["tests"] == found["skipped"] and not self.tiny:
            sys.exit(f"gpu: JAX finds no GPU here; see {report}")
        self.done(TESTS, found)

    def train(self, stages: list[Stage], seconds: float) -> None:
        """Stage after stage, for so long; the last one saves and stops. On all GPUs."""
        end = time.monotonic() + min(seconds, self.left() - GRACE)
        for stage in stages:
            if self.result(stage) is not None:
                continue
            if (left := end - time.monotonic()) <= 0:
                return
            status = self.run(stage, (), left, {})
            if status is None:
                return
            if status:
                self.fail(stage, status)
                return
            self.done(stage, {})


def end(process: subprocess.Popen[bytes]) -> None:
    """Lets it save."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_metrics(workdir: Path, model: str) -> dict[str, Any] | None:
    """Of a training, the last line of its log."""
    path = workdir / model / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return json.loads(lines[-1]) if lines else None


def summary(report: dict[str, Any]) -> str:
    """The numbers, for people."""
    found, machine = [], False
    for name, result in report["stages"].items():
        if name == "tests":
            found.append(f"{name:17} {result['tests'] - result['skipped']} passed, {result['skipped']} skipped")
        rows = result.get("rows", [])
        if rows and not machine:
            machine = True
            found.append(f"{'device':17} {result['device']}; peaks {result['peaks']['source']}")
        elif rows:
            rows = [row for row in rows if row["name"] not in MACHINE]  # once is enough
        for row in rows:
            flops = "MFU" if "costs" in row else "of peak FLOP/s"
            shares = [
                f"{row[f'share_of_{kind}']:.1%} {what}"
                for kind, what in (("flops", flops), ("bytes", "of memory bandwidth"))
                if f"share_of_{kind}" in row
            ]
            said = f"{row['seconds']:.4g} s, {row['per_second']:,.4g} {row['unit']}"
            found.append(f"{name:17} {row['name']:40} {', '.join([said, *shares])}")
            found += [f"{'':17}   {cost['share']:6.1%} {cost['operation']}" for cost in row.get("costs", ())]
    for model, metrics in report["training"].items():
        some = ("step", "loss", "clips_per_second", "mfu")
        said = ", ".join(f"{key} {metrics[key]:.4g}" for key in some if key in metrics)
        found.append(f"{'train_' + model:17} {said}")
    found += [f"{name:17} not done: {why}" for name, why in report["failed"].items()]
    return "\n".join(found)


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The options, and what to change of the recipe. A recipe that can't be trained ends the program now, not later."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="what to train; without one nothing is")
    parser.add_argument("--minutes", type=float, default=5, help="of training in this call, at most (default 5)")
    parser.add_argument("--call-minutes", type=float, default=9.5, help="of this call, setting up included")
    parser.add_argument("--out", type=Path, help="default runs/gpu, with --tiny runs/gpu-tiny")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, at the smallest size")
    parser.add_argument("--spent", type=float, default=0, help=argparse.SUPPRESS)  # seconds, by gpu.sh
    parser.epilog = "Any field of the recipe can be changed: --train_tokenizer.steps 2000, …"
    options, changes = parser.parse_known_args()
    if options.tiny and not options.recipe:
        options.recipe, changes = str(CONFIGS / "tiny.py"), [*TINY_TRAINING, *changes]
    if changes and not options.recipe:
        parser.error(f"{changes[0]} would change a recipe, and none is named")
    try:
        if options.recipe:
            open_recipe(Path(options.recipe), changes)
    except UserError as error:
        parser.error(str(error))
    return options, changes


def stop(number: int, frame: Any) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # once is enough: what runs is told, and saves
    raise Stopped


def main() -> None:
    options, changes = arguments()
    out = (options.out or ROOT / "runs" / ("gpu-tiny" if options.tiny else "gpu")).resolve()
    workdir = out / Path(options.recipe or "").stem
    out.mkdir(parents=True, exist_ok=True)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)
    call = Call(out, 60 * options.call_minutes - options.spent - GRACE / 2, options.tiny)
    measured = measurements(options.tiny)
    trained = training(options.recipe, workdir, changes) if options.recipe else []
    stages = [TESTS, *measured, *trained]
    try:
        if call.result(TESTS) is None:
            call.test()
        for stage in measured:
            if call.result(stage) is None:
                call.measure(stage)
        call.train(trained, 60 * options.minutes)
    except Stopped:
        print("stopped; the same command goes on", file=sys.stderr)
    results = {stage.name: call.result(stage) for stage in stages}
    metrics = {model: last_metrics(workdir, model) for model in ("tokenizer", "transformer")}
    report = {
        "tokvid": __version__,
        "tiny": options.tiny,
        "stages": {name: result for name, result in results.items() if result is not None},
        "training": {model: found for model, found in metrics.items() if found},
        "failed": call.failed,
        "to_do": [name for name, result in results.items() if result is None],
    }
    write_json(out / "gpu.json", report)
    if report["to_do"]:
        print(f"to do: {', '.join(report['to_do'])}; the same command goes on")
    print(f"{out / 'gpu.json'}\n{summary(report)}")
    sys.exit(1 if call.failed else 0)


if __name__ == "__main__":
    main()
