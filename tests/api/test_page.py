"""What is written about the Python interface is true."""

import importlib.util
import re
from pathlib import Path

import tokvid

ROOT = Path(__file__).parents[2]


def test_the_page_lists_what_there_is():
    spec = importlib.util.spec_from_file_location("scripts_api", ROOT / "scripts" / "api.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
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
