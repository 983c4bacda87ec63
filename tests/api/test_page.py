"""What is written about the Python interface is true."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

import tokvid
from tokvid.shapes.reading import read_attributes

ROOT = Path(__file__).parents[2]


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_page_lists_what_there_is():
    script = load_script("api")
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python scripts/api.py"


def test_the_readme_works_as_printed(tiny_weights, tmp_path, monkeypatch):
    """With weights that take a second."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import tokvid\n.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    load = tokvid.load
    monkeypatch.setattr(tokvid, "load", lambda name: load(tiny_weights, quiet=True))
    names: dict = {}
    exec(code, names)
    assert names["video"].frames.shape == (48, 16, 16, 3) and (tmp_path / "story.mp4").is_file()


@pytest.mark.slow
def test_the_readme_s_first_story_has_its_object():
    """By the weights and settings that a newcomer has. A low top_p would leave some videos of this prompt empty."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    prompt = re.findall(r'tokvid story --prompt "(.+?)"', readme)[0]
    for seed in range(8):
        reading = read_attributes(tokvid.load("shapes", quiet=True).generate(prompt, seconds=1, seed=seed).frames, 8)
        assert reading is not None and f"{reading.size} {reading.color} {reading.shape}" in prompt


def test_the_notebook_runs(tiny_weights, tmp_path, monkeypatch):
    """As written, but for weights that take a second, and know what the shipped ones do."""
    monkeypatch.chdir(tmp_path)
    layouts = json.loads((ROOT / "data" / "transformer" / "config.json").read_text())["layouts"]
    shutil.copytree(tiny_weights, "tiny")
    config = Path("tiny", "transformer", "config.json")
    about = {name: value for name, value in json.loads(config.read_text()).items() if name != "sha256"}
    config.write_text(json.dumps(about | {"layouts": layouts, "format": 1}))  # the format without a seal
    load = tokvid.load
    monkeypatch.setattr(tokvid, "load", lambda name: load("tiny", quiet=True))
    script, names, shown = load_script("notebooks"), {}, []
    notebook = json.loads((ROOT / "docs" / "first_story.ipynb").read_text(encoding="utf-8"))
    for cell in script.code_cells(notebook):
        shown += script.run(cell, names)
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 2


@pytest.mark.slow  # half a minute: it trains both models
def test_the_notebook_of_own_clips_runs(tmp_path, monkeypatch):
    """As written, but for the number of steps."""
    monkeypatch.chdir(tmp_path)
    script, names, shown = load_script("notebooks"), {}, []
    text = (ROOT / "docs" / "own_clips.ipynb").read_text(encoding="utf-8")
    assert text.count("STEPS = 300") == 1
    for cell in script.code_cells(json.loads(text.replace("STEPS = 300", "STEPS = 4"))):
        shown += script.run(cell, names)
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 4


def test_no_name_is_also_a_package():
    """Importing tokvid.train, say, would replace a function of that name."""
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "tokvid").iterdir()}
    assert not rooms & set(tokvid.__all__)
