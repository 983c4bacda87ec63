"""`scripts/gpu.sh` on a CPU, and where something goes wrong; that the scripts that measure run; what they compute."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def script(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


gpu = script("gpu")


@pytest.fixture
def call(tmp_path):
    """`call(seconds)`: a call whose results lie in the same folder as those of the calls before it."""
    return lambda seconds=60: gpu.Call(tmp_path, seconds, tiny=True)


def stage(source, *choices, name="stage"):
    return gpu.Stage(name, (sys.executable, "-c", source), choices or ((),))


WRITES = "import sys; open(sys.argv[-1], 'w').write('{\"rows\": []}')"
TOO_LARGE = "import sys; 'large' in sys.argv and sys.exit('RESOURCE_EXHAUSTED: Out of memory'); " + WRITES


def test_the_first_choice_that_fits_is_measured(call):
    several = stage(TOO_LARGE, ("large", "1"), ("large", "2"), ("small",), ("smaller",))
    now = call()
    now.measure(several)
    assert now.result(several)["choice"] == "small" and not now.failed


def test_none_fits_and_the_report_says_so(call):
    now, several = call(), stage(TOO_LARGE, ("large", "1"), ("large", "2"))
    now.measure(several)
    assert now.result(several) is None and "out of memory" in now.failed["stage"]


def test_another_error_is_reported_and_not_tried_again(call, tmp_path):
    tries = tmp_path / "tries"
    failing = stage(f"open({str(tries)!r}, 'a').write('1'); raise ValueError('no such thing')", (), ())
    now = call()
    now.measure(failing)
    assert now.failed == {"stage": "ValueError: no such thing"} and tries.read_text() == "1"


def test_a_result_is_that_of_the_same_command(call):
    call().measure(stage(WRITES))
    assert call().result(stage(WRITES)) is not None
    assert call().result(stage(WRITES + "; 1")) is None


@pytest.fixture
def signals():
    """The program's handlers, while a test runs."""
    before = {number: signal.signal(number, gpu.stop) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("slow", [0, 1])
def test_sigterm_reaches_training_which_saves_and_the_next_call_goes_on(call, tmp_path, signals, monkeypatch, slow):
    """The second stage stops the program as soon as it can be stopped itself, also while the program still starts it;
    the next time it is done."""
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: (start(*given, **named), time.sleep(slow))[0])
    saved = tmp_path / "saved"
    waits = f"""
import os, pathlib, signal, sys, time
saved = pathlib.Path({str(saved)!r})
if not saved.exists():
    signal.signal(signal.SIGTERM, lambda *_: (saved.write_text("1"), sys.exit(0)))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(200)
"""
    stages = [stage("", name="one"), stage(waits, name="two")]
    now = call(600)
    with pytest.raises(gpu.Stopped):
        now.train(stages, 300)
    assert saved.read_text() == "1" and not now.failed
    assert [now.result(each) is not None for each in stages] == [True, False]
    again = call(600)
    again.train([*stages, stage("raise OSError('full')", name="three")], 300)
    assert again.result(stages[1]) is not None and again.failed == {"three": "OSError: full"}


def test_training_whose_time_is_over_is_stopped_and_not_done(call):
    now, waits = call(600), stage("import time; time.sleep(200)")
    now.train([waits, stage("", name="next")], 1)
    assert now.result(waits) is None and not now.failed and not (now.out / "next.log").exists()


@pytest.mark.parametrize(
    "given, wrong",
    [
        (["configs/nowhere.py"], "nowhere.py"),
        (["configs/tiny.py", "--train_tokenizer.stepps", "3"], "stepps"),
        (["--train_tokenizer.steps=3"], "none is named"),
        (["--tinny"], "tinny"),
    ],
)
def test_a_recipe_that_cant_be_trained_is_refused_before_anything_is_measured(given, wrong, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "gpu.py", "--out", tmp_path / "out", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and wrong in done.stderr and not (tmp_path / "out").exists()


def event(name, start, duration, **stats):
    return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=stats.items())


def trace(**planes):
    """`trace(plane={line: events})`."""
    return SimpleNamespace(
        planes=[
            SimpleNamespace(
                name=name, lines=[SimpleNamespace(name=line, events=events) for line, events in lines.items()]
            )
            for name, lines in planes.items()
        ]
    )


def test_of_a_gpu_the_kernels_count_and_of_a_cpu_the_operations():
    bench = script("bench")
    host = {"python": [event("call", 0, 99)], "worker": [event("while.3", 0, 9, hlo_op="while.3")]}
    kernels = [
        event("nvjet_gemm", 0, 5, hlo_op="custom-call.7"),
        event("void kernel", 5, 1, hlo_op="loop_fusion_2"),
        event("memcpy", 6, 2),
    ]
    device = {"/device:GPU:0": {"Stream #13(Compute)": kernels, "Steps": [event("1", 0, 99)]}}
    found = list(bench.traced_lines(trace(**{"/host:CPU": host}, **device)))
    assert found == [[(0, 5, "nvjet_gemm"), (5, 1, "loop_fusion_2"), (6, 2, "memcpy")]]
    assert list(bench.traced_lines(trace(**{"/host:CPU": host}))) == [[], [(0, 9, "while.3")]]
    nested = [(0, 10, "while"), (1, 4, "dot"), (5, 5, "call"), (6, 1, "add"), (12, 2, "copy")]
    assert sorted(bench.own_times(nested)) == [("add", 1), ("call", 4), ("copy", 2), ("dot", 4), ("while", 1)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_of_it_at_the_smallest_size(tmp_path):
    """In an environment that is ready: nothing is installed. The second call has nothing left to do."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with (ROOT / "pyproject.toml").open("rb") as file:
        total = subprocess.run("cksum", stdin=file, capture_output=True, text=True, check=True).stdout
    (tmp_path / "venv" / "tokvid-dev").write_text(f"{ROOT}  {total}")

    def run():
        environment = {"TOKVID_VENV": str(tmp_path / "venv"), "TOKVID_EXTRAS": "", "PYTHON": ""}
        command = [ROOT / "scripts" / "gpu.sh", "--tiny", "--out", tmp_path, "--minutes", "20", "--call-minutes", "25"]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done, json.loads((tmp_path / "gpu.json").read_text())

    done, report = run()
    assert not report["failed"] and not report["to_do"]
    names = [row["name"] for stage in report["stages"].values() for row in stage.get("rows", ())]
    for wanted in ("training, transformer", "decoding 4 rows in 8 rounds, batch 8", "tokenizer, decode 1 streams"):
        assert wanted in names and wanted in done.stdout
    steps = [row for row in report["stages"]["transformer_step"]["rows"] if "costs" in row]
    assert len(steps[0]["costs"]) == 3 and steps[0]["share_of_flops"] > 0
    assert [report["training"][model]["step"] for model in ("tokenizer", "transformer")] == [2, 2]
    again, second = run()
    assert "──" not in again.stderr and second == report


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "command, said",
    [
        ("long_stories.py --seconds 20", "one-level, 20 s: frames 160"),
        ("compare/reencoding.py --seconds 20", "re-encoding, 20 s: frames 160"),
        ("flat_cost.py --seconds 20", "memory"),
        ("flat_memory.py --frames 200 400", "400 frames: "),
        ("ladder.py --samples 4", "token by token"),
        ("many.py --clips 2 --seconds 1 --rounds 1", '"batch": 8'),
        ("guesses.py --seconds 1 --rounds 1", '"slots": 4'),
        ("bench.py --quick --config configs/shapes64.py", "decoding"),
        ("overhead.py --steps 3 --rounds 1", "checkpoint"),
        ("compare/timeless.py numbered inspect shapes", "transformer"),
    ],
)
def test_scripts_that_measure_still_run(command, said):
    """With the shipped weights, which are those that their headers name."""
    command = [sys.executable, *f"scripts/{command}".split()]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr


def test_a_law_of_scaling_is_found_again_and_predicts_a_larger_size():
    scaling = script("scaling")
    law = np.array([0.8, 60.0, 0.35, 150.0, 0.45])
    sizes = [
        [scaling.Point(n, d, 6 * n * d, 0.0) for d in np.geomspace(2e3, most, 10)]
        for n, most in ((1e6, 3e4), (3e6, 2e4), (5e6, 1e4), (1.2e7, 4e3))
    ]
    noise = np.random.default_rng(0)
    known = [
        point._replace(loss=scaling.predicted(law, point) * noise.normal(1, 2e-3))
        for size in sizes[:-1]
        for point in size
    ]
    found = scaling.fit(known)
    for point in sizes[-1]:
        assert scaling.predicted(found, point) == pytest.approx(scaling.predicted(law, point), rel=0.01)


def test_each_of_three_stages_starts_from_the_one_before(tmp_path, monkeypatch):
    """And has its own clips; the controls differ from the stages in one thing each, and train as long."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    stages, ran = script("three_stages"), []
    monkeypatch.setattr(stages, "run", lambda *command: ran.append([str(word) for word in command]))
    clips, tokens, workdir = (tmp_path / name for name in ("clips", "made", "out"))
    for folder in (clips, tokens / "tokenizer", tokens / "tokens", workdir / "best_clips"):
        folder.mkdir(parents=True)
    (tokens / "text.model").touch()
    lines = [json.dumps({"file": f"{number}.mp4", "caption": "a robot"}) + "\n" for number in range(10)]
    (clips / "captions.jsonl").write_text("".join(lines))
    (workdir / "best_clips" / "captions.jsonl").write_text("".join(lines[:4]))
    for number in range(10):
        (clips / f"{number}.mp4").touch()
    options = SimpleNamespace(
        config="recipe.py", clips=clips, tokens=tokens, workdir=workdir, held_out=2, keep="", steps=(7, 5, 3), more=[]
    )
    recipe = stages.load_recipe(ROOT / "configs" / "robots.py", [])
    dataset = stages.best_clips(options, recipe)
    assert sorted(path.name for path in (workdir / "training_clips").glob("*.mp4")) == [f"{i}.mp4" for i in range(8)]
    assert ran.pop()[-5:] == ["--size", "80", "80", "--fps", "8.0"]
    said = {}
    for stage in stages.STAGES:
        folder = stages.train(options, recipe, stage, dataset)
        said[stage.name] = ran.pop()[5:]
        assert (folder / "tokens").exists() != stage.best and (folder / "tokenizer").is_dir()
    tokenized = ran.pop()
    assert not ran and tokenized[0] == "tokenize" and f"--tokens.videos={recipe.tokens.videos // 2}" in tokenized
    start, steps = (f"--train_transformer.start={workdir}/", "--train_transformer.steps=")
    assert said["pictures"] == [f"{steps}7", "--layouts.lengths=1", "--layouts.tasks.interpolation=0"]
    assert said["clips"] == [f"{steps}5", f"{start}pictures"] and said["no_pictures"] == [f"{steps}12"]
    assert said["clips_to_the_end"] == [f"{steps}3", f"{start}clips"] == said["best"][:2]
    assert f"--data.path={dataset}" in said["best"]
