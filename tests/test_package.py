"""What is installed is complete without the checkout: the wheel has the shipped weights and stories in it."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tokvid.io.worlds import SHIPPED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling, of the group dev")
    return Path(next(builders.WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The interpreter of a new environment that has the wheel, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    # What tokvid needs is taken from this environment; .pth files in there, so editable installs, are not read.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "needed.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return python


def run(command, folder):
    """In `folder`, as a user would: (exit code, what was printed)."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    return done.returncode, done.stdout + done.stderr


def test_the_checkout_finds_what_it_ships():
    assert ROOT / "data" == SHIPPED and (SHIPPED / "demo" / "story.yaml").is_file()


def test_the_wheel_has_all_that_is_shipped(wheel):
    """Every file of data/, every module, the studio's page, and the marker that makes type checkers read our types."""
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"tokvid/{path.relative_to(ROOT)}" for path in (ROOT / "data").rglob("*") if path.is_file()}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "tokvid").rglob("*.py")}
    assert {"tokvid/data/text.model", "tokvid/data/demo/story.yaml"} < shipped
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "tokvid" / "studio" / "page").iterdir()}
    wanted = shipped | modules | page | {"tokvid/py.typed"}
    assert wanted <= names, sorted(wanted - names)
    rest = {name for name in names - wanted if ".dist-info/" not in name}
    assert not rest, sorted(rest)
    assert wheel.stat().st_size < 60e6


def test_an_installed_copy_finds_its_weights(installed, tmp_path):
    code, out = run([installed.parent / "tokvid", "export", "tokenizer", "--out", "a.safetensors"], tmp_path)
    assert code == 2 and "no weights in tokenizer" in out
    program = """
from tokvid.cli.main import main
from tokvid.io.worlds import SHIPPED
print(SHIPPED)
main(["inspect", str(SHIPPED)])
"""
    code, out = run([installed, "-c", program], tmp_path)
    assert code == 0 and str(installed.parents[1]) in out.splitlines()[0], out
    assert "tokenizer/" in out and "transformer/" in out and str(ROOT) not in out


@pytest.mark.slow
def test_an_installed_copy_tells_the_story(installed, tmp_path):
    code, out = run([installed.parent / "tokvid", "demo"], tmp_path)
    assert code == 0, out
    names = ["report.json", "sheet.png", "story.gif", "story.mp4"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == names
