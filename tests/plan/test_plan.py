"""`tokvid plan` from end to end, compiled for real. For TPUs it needs libtpu, as `pip install 'tokvid[tpu]'` brings."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tokvid.config import LayoutConfig, Recipe, TrainConfig, TransformerConfig
from tokvid.io import libtpu
from tokvid.plan import report
from tokvid.train.transformer_step import TransformerTraining
from tokvid.train.windows import batch_kinds

ROOT = Path(__file__).parents[2]
TINY = (
    *("configs/tiny.py", "--topology", "v5p:2x2x1", "--only", "training"),
    *("--train_transformer.mesh", "1", "4", "1", "1", "--train_transformer.optimizer", "adamw"),
)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu to compile with: pip install 'tokvid[tpu]'"
)


def planned(*arguments):
    """In a process of its own, whose JAX has no devices yet."""
    done = subprocess.run(
        [sys.executable, "-m", "tokvid", "plan", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    return done.returncode, done.stdout, done.stderr


def test_days_are_those_of_the_mixture_and_shares_those_of_the_longest_batches(monkeypatch):
    recipe = Recipe(
        transformer=TransformerConfig(latent_frames=4, grid=(2, 2)),
        layouts=LayoutConfig(tasks={"text_to_video": 0.75, "interpolation": 0.25}),
        train_transformer=TrainConfig(steps=1000, batch=8),
    )
    given = {}

    def judge(program, target, mesh, flops):
        given["flops"] = flops
        return {"seconds": {"at least": 2.0}, "memory": {"total": 0, "of": 1}}

    monkeypatch.setattr(report, "training_program", lambda recipe, mesh: SimpleNamespace(text=""))
    monkeypatch.setattr(report, "judge", judge)
    found = report._training(recipe, None, None, lambda name, text: None)
    training = TransformerTraining(recipe)
    short, long = sorted(map(training.flops_of, batch_kinds(recipe.layouts, recipe.transformer)))
    assert given["flops"] == 8 * long > 8 * short
    seconds = 2.0 * (0.75 * short + 0.25 * long) / long
    assert found["days"] == pytest.approx(1000 * seconds / 86400)
    assert found["videos a day"] == pytest.approx(8 * 86400 / seconds)


@needs_libtpu
def test_the_smallest_recipe_is_compiled_for_a_tpu(tmp_path):
    code, said, errors = planned(*TINY, "--json", str(tmp_path / "plan.json"), "--hlo", str(tmp_path))
    assert code == 0 and said.endswith("fits\n"), errors
    found = json.loads((tmp_path / "plan.json").read_text())
    training = found["training"]
    assert found["fits"] and found["chips"] == 4 and found["mesh"]["fsdp"] == 4
    memory = training["memory"]
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)  # two moments, split alike
    assert training["flops"]["of the model"] < 4.5 * training["flops"]["executed by each device"]
    assert training["collectives"] and 0 < training["mfu"]["if nothing overlapped"] < training["mfu"]["allowed"] < 1
    assert "TPU" not in training["largest collectives"][0]["source"]
    assert "is_scheduled=true" in (tmp_path / "training.hlo").read_text()[:2000]


@needs_libtpu
def test_several_slices_exchange_over_the_network_and_decoding_by_rows_runs_seldom(tmp_path):
    slices = ("configs/tiny.py", "--topology", "v5e:2x2", "--slices", "2", "--json", str(tmp_path / "plan.json"))
    split = ("--train_transformer.mesh", "2", "4", "1", "1", "--train_transformer.optimizer", "adamw")
    code, said, errors = planned(*slices, *split, "--rows", "1")
    assert code == 0 and "on 2 slices of v5e:2x2: 8 chips" in said and "between slices" in said, errors
    found = json.loads((tmp_path / "plan.json").read_text())
    parameters = found["training"]["memory"]["parameters"]  # float32: their gradients are what slices exchange
    sent = found["training"]["collectives"]["all-reduce between slices"]["bytes"]
    assert parameters <= sent < 4 * parameters and found["training"]["seconds"]["network"] > 0
    assert found["decoding"]["tokens at once"] > 1 and not found["decoding"]["collectives"]


@needs_libtpu
def test_what_does_not_fit_ends_with_1_and_the_reason():
    code, said, errors = planned(*TINY, "--train_transformer.batch", "4000000")
    assert code == 1 and "does not fit: training: " in said and "HBM" in said, errors


@needs_libtpu
def test_what_no_pod_has_is_one_line():
    code, _, errors = planned("configs/tiny.py", "--topology", "v5p:3x3x3")
    assert code == 2 and "v5p:3x3x3" in errors and "Traceback" not in errors
    code, _, errors = planned("configs/tiny.py", "--topology", "v5e:2x2", "--mesh", "3", "1", "1", "1")
    assert code == 2 and "(3, 1, 1, 1)" in errors and "4 device" in errors
    code, _, errors = planned("configs/tiny.py", "--topology", "v5e:2x2", "--train_transformer.batch", "6")
    assert code == 2 and "batch 6" in errors and "4 devices" in errors


@needs_libtpu
def test_other_commands_say_nothing_of_a_tpu_that_is_not_there():
    done = subprocess.run([sys.executable, "-m", "tokvid", "doctor"], capture_output=True, text=True, check=False)
    assert "device" in done.stdout and not done.stderr


def test_libtpu_is_quiet_only_where_there_is_no_tpu(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr(libtpu, "DEVICES", (str(tmp_path / "accel[0-9]*"),))
    for files, wanted in (([tmp_path / "accel3"], {"A": "1"}), ([], {"A": "1", **libtpu.ABSENT})):
        monkeypatch.setattr(os, "environ", {"A": "1"})
        for file in files:
            file.touch()
        libtpu.quiet_without_tpu()
        assert os.environ == wanted
        for file in files:
            file.unlink()


def test_without_libtpu_one_line_says_how_to_get_it():
    if importlib.util.find_spec("libtpu") is not None:
        pytest.skip("libtpu is installed")
    code, _, errors = planned(*TINY)
    assert code == 2 and "pip install 'tokvid[tpu]'" in errors and len(errors.splitlines()) == 1


@pytest.mark.slow
def test_gpus_need_nothing_to_be_planned_for(tmp_path):
    gpus = ("configs/tiny.py", "--topology", "h100:2", "--mesh", "1", "2", "1", "1", "--only", "training")
    code, said, errors = planned(*gpus, "--json", str(tmp_path / "plan.json"))
    assert code == 0 and "virtual CPUs" in said and said.endswith("fits\n"), errors
    training = json.loads((tmp_path / "plan.json").read_text())["training"]
    assert training["memory"]["of"] == 80e9 and training["flops"]["executed by each device"] > 0
    assert training["collectives"]["all-gather"]["bytes"] > 0
