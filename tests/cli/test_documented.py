"""Every command in the documentation can be typed: its options exist, its recipe opens and fits its weights."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokvid import weights
from tokvid.cli import main as cli
from tokvid.cli import options as cli_options
from tokvid.train.recipe import load_recipe, open_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("data/**/*.md"))]
RECIPES = sorted(ROOT.glob("configs/*.py"))
ENDS = ("&", "&&", "|", ";", ">", "done")  # of a command, to a shell


def blocks(path: Path) -> list[str]:
    """What a page or the docstring of a recipe shows as shell commands."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [ast.get_docstring(ast.parse(text)) or ""]
    fenced = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [*fenced, *re.findall(r"(?:^    \S.*\n)+", text, re.MULTILINE)]


def commands(path: Path) -> list[list[str]]:
    """The words of each `tokvid` command, with the variables of its block; without those that leave something out."""
    found, values = [], {"i": "0", "number": "5"}
    for block in blocks(path):
        values |= re.findall(r'\b([A-Z]+)="([^"]*)"', block)
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for name, value in values.items():
                line = line.replace(f"${name}", value.replace("\n", " "))
            line = line.strip()
            if not line.startswith("tokvid ") or "…" in line or "[" in line or "--help" in line:
                continue
            words = shlex.split(line, comments=True)
            found.append(words[1 : next((at for at, word in enumerate(words) if word in ENDS), None)])
    return found


def test_commands_are_found():
    assert len(commands(ROOT / "README.md")) > 30
    assert sum(len(commands(path)) for path in [*PAGES, *RECIPES]) > 120


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_can_be_typed(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(cli_options, "head_of", lambda path: b"")  # the user's own videos
    for words in commands(path):
        said = shlex.join(words)
        try:
            options, rest = cli.parser().parse_known_args(words)
        except SystemExit:
            pytest.fail(f"tokvid {said}: {capsys.readouterr().err}")
        command = next(each for each in cli.COMMANDS if each.name == options.command)
        assert command.sets_fields or not rest, f"tokvid {said}: {rest}"
        if not str(getattr(options, "config", "")).startswith("configs/"):
            continue
        recipe = load_recipe(options.config, rest)
        start, lora = recipe.train_transformer.start, recipe.train_transformer.start_lora
        if start.startswith("runs/") or lora.startswith("runs/") or recipe.tokens.t5:
            continue  # weights that the commands before it train, or the user's
        recipe = open_recipe(options.config, rest)
        if start:
            about = weights.describe(weights.find(start) / "transformer", "transformer")
            fits = (tuple(about["size"]), tuple(about["config"]["grid"]))
            assert (recipe.data.size, recipe.transformer.grid) == fits, f"tokvid {said}"


def hunks() -> Iterator[tuple[str, str]]:
    """The diffs of docs/extending.md: a file, and the lines of it that are shown."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for diff in re.findall(r"^```diff\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for name, lines in re.findall(r"^# (\S+)\n(.*?)(?=^# |\Z)", diff, re.MULTILINE | re.DOTALL):
            for part in lines.split("\n\n"):
                shown = [line[1:] for line in part.splitlines() if line[:1] in (" ", "-")]
                yield name, "\n".join(shown)


def test_the_diffs_of_extending_apply():
    """What they show of a file stands there, as it is shown."""
    found = [(name, lines) for name, lines in hunks() if lines]
    assert len(found) > 8
    for name, lines in found:
        assert lines in (ROOT / name).read_text(encoding="utf-8"), f"{name}:\n{lines}"
