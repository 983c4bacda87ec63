"""Model quality: evaluate."""

import argparse
import json
import os
import socket
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from tokvid.cli.evaluate import EVALUATIONS, Evaluate
from tokvid.evaluate import interpolation as interpolation_module
from tokvid.evaluate import shapes as shapes_module
from tokvid.io.files import Outputs


def test_evaluate(tokvid, tiny_weights, tmp_path, monkeypatch):
    code, text, _ = tokvid(
        "evaluate",
        "reconstruction",
        "--samples",
        4,
        "--weights",
        tiny_weights,
        "--json",
        "e.json",
        "--markdown",
        "e.md",
        "--sheet",
        "e.png",
    )
    figures = json.loads((tmp_path / "e.json").read_text())
    assert code == 0 and figures["samples"] == 4 and "repeat_psnr" in text
    assert "| features | random-convolutions " in (tmp_path / "e.md").read_text() and (tmp_path / "e.png").is_file()

    def shapes(models, samples, seed, settings, rates):
        return {"size": models.size, "asked": [samples, seed, settings.guidance, settings.sampling.top_k, rates]}

    monkeypatch.setattr(shapes_module, "evaluate_shapes", shapes)  # which is tested in test_evaluate.py
    asked = []

    def interpolated(models, data, request, settings, show):
        sampling = settings.sampling
        asked.append(
            (data.source, request, sampling.rows, settings.guidance, sampling.temperature, sampling.later_temperature)
        )
        show([np.zeros((2, 16, 16, 3), np.uint8)], captions=["black"])
        return {"psnr": 20.0}

    monkeypatch.setattr(interpolation_module, "evaluate_interpolation", interpolated)
    arguments = ("--samples", 5, "--factor", 4, "--rows", 1, "--sheet", "s.png", "--weights", tiny_weights)
    assert tokvid("evaluate", "interpolation", *arguments)[0] == 0
    assert tokvid("evaluate", "interpolation", *arguments, "--temperature", 0.9, "--guidance", 2)[0] == 0
    assert tokvid("evaluate", "interpolation", *arguments, "--draws", 3)[0] == 0
    assert tokvid("evaluate", "interpolation", *arguments, "--draws", 3, "--temperature", 0.5)[0] == 0
    once, several = (interpolation_module.InterpolationSet(5, 4, 0, draws) for draws in (1, 3))
    assert asked[:2] == [("shapes", once, 1, 1.0, 0.0, None), ("shapes", once, 1, 2.0, 0.9, 0.9)]
    assert asked[2:] == [("shapes", several, 1, 1.0, 1.0, 1.0), ("shapes", several, 1, 1.0, 0.5, 0.5)]
    assert PIL.Image.open(tmp_path / "s.png").text["captions"] == "black"
    arguments = ("--samples", 4, "--guidance", 3, "--top-k", 5, "--fps", 3, 6, "--weights", tiny_weights)
    assert tokvid("evaluate", "shapes", *arguments, "--json", "e.json")[0] == 0
    assert json.loads((tmp_path / "e.json").read_text()) == {"size": [16, 16], "asked": [4, 0, 3.0, 5, [3.0, 6.0]]}


WORDS = {
    "data": ["."],
    "features": ["x.py"],
    "scheme": ["one-level"],
    "sheet": ["a.png"],
    "size": [16, 16],
    "task": ["inpaint"],
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_is_explained_and_refuses_what_it_does_not_use(name, refused):
    evaluation = EVALUATIONS[name]
    parser = argparse.ArgumentParser()
    Evaluate().arguments(parser, Outputs())
    flags = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    assert evaluation.help in Evaluate.details and evaluation.uses <= set(flags)
    every = frozenset().union(*(other.uses for other in EVALUATIONS.values()))
    for unused in sorted(every - evaluation.uses):
        line = refused("evaluate", name, flags[unused], *WORDS.get(unused, [1]))
        assert f"{flags[unused]} is not for evaluate {name}; leave it out" in line


@pytest.mark.parametrize(
    "words, said",
    [
        (["--sheet", "a.png"], "--sheet is not for evaluate shapes; leave it out, or give a --task"),
        (["--task", "colorise"], "unknown task 'colorise' (did you mean 'colourise'?)"),
        (
            ["--task", "interpolation"],
            "measures interpolation on Moving Shapes alone (MEASURES in tokvid.evaluate.tasks); tokvid evaluate interp",
        ),
        (["--task", "recall"], "nothing measures recall on Moving Shapes alone (MEASURES in tokvid.evaluate.tasks)"),
        (["--task", "inpaint", "--fps", 2, 4], "--task is measured at one rate; give one --fps, not 2"),
        (["--task", "inpaint"], "not trained for inpaint"),
        (["--task", "all", "--samples", 3], "4 or more samples"),
        (["--task", "all"], "trained for none of the tasks"),
    ],
)
def test_what_cannot_be_measured_of_tasks(refused, tiny_weights, words, said):
    assert said in refused("evaluate", "shapes", "--weights", tiny_weights, *words)


@pytest.mark.parametrize("lost", ["--json", "--markdown", "--sheet"])
def test_figures_are_told_whatever_becomes_of_their_files(tokvid, tiny_weights, tmp_path, monkeypatch, lost):
    """The disk fills up while it measures: the other files are there, and the figures on the screen."""
    files = {"--json": "e.json", "--markdown": "e.md", "--sheet": "e.png"}
    replace = os.replace

    def full(old, new):
        if str(new).endswith(files[lost]):
            raise OSError(28, "No space left on device")
        replace(old, new)

    monkeypatch.setattr(os, "replace", full)
    words = [word for pair in files.items() for word in pair]
    code, out, err = tokvid("evaluate", "reconstruction", "--samples", 4, "--weights", tiny_weights, *words)
    assert (
        code == 2
        and "psnr " in out
        and err.endswith(
            f"tokvid: cannot write {files[lost]}: No space left on device; free some space or choose another place\n"
        )
    )
    others = {name for option, name in files.items() if option != lost}
    assert {path.name for path in tmp_path.iterdir()} == others


def test_files_are_written_though_nobody_reads_the_figures(tiny_weights, tmp_path):
    """`tokvid evaluate … | head -0`"""
    words = ["evaluate", "reconstruction", "--samples", "4", "--weights", str(tiny_weights), "--json", "e.json"]
    command = [sys.executable, "-m", "tokvid", *words]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, timeout=200)
    os.close(write)
    assert done.returncode == 141 and b"Traceback" not in done.stderr
    assert json.loads((tmp_path / "e.json").read_text())["samples"] == 4


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(tokvid, tiny_weights, tmp_path):
    """Two batches, one each; the first process alone prints and writes. With other settings, one is refused."""
    words = ["evaluate", "reconstruction", "--weights", str(tiny_weights), "--samples", "40"]
    code, alone, _ = tokvid(*words, "--json", "alone.json", "--sheet", "alone.png")
    assert code == 0

    def both(*more):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        job = [sys.executable, "-m", "tokvid", *words, "--coordinator", address, "--processes", "2", "--process"]
        jobs = [
            subprocess.Popen(
                [*job, str(number), *each], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for number, each in enumerate(more)
        ]
        said = [job.communicate(timeout=240) for job in jobs]
        return [(job.returncode, *each) for job, each in zip(jobs, said, strict=True)]

    written = ["--json", "two.json", "--sheet", "two.png"]
    (code, out, _), (other_code, other_out, other_said) = both(written, written)
    assert (code, other_code) == (0, 0) and out.endswith(alone) and "psnr" not in other_out, (out, other_said)
    for name in ("json", "png"):
        assert (tmp_path / f"two.{name}").read_bytes() == (tmp_path / f"alone.{name}").read_bytes()
    assert {path.stem for path in tmp_path.iterdir()} == {"alone", "two"}
    ended = both([], ["--seed", "1"])
    assert any("process 1 of 2 was started with other settings or data" in said for _, _, said in ended), ended
    assert all(code for code, *_ in ended)
