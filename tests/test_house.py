"""The house keeps its order: which room may import which (docs/design.md, section 2), read from the imports."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tokvid"

HELPERS = {"errors", "types", "tasks", "config", "flops", "io"}
# Left may not import right, and rooms side by side may not import each other (the helpers may).
ORDER = [
    HELPERS,
    {"distributed"},
    {"sharding"},
    {"nn"},
    {"tokenizer", "transformer"},
    {"weights"},
    {"portable"},
    {"text"},
    {"train", "sampling"},
    {"evaluate"},
    {"plan"},
    {"api"},
    {"studio"},
    {"cli"},
    {"__main__"},
]
# These stand beside the order, without JAX: `train` and what is right of it may import them.
ASIDE = {
    "input_pipeline": {*HELPERS, "shapes", "metrics"},
    "metrics": {"types", "errors"},
    "shapes": {"types", "errors", "metrics"},
}
EXTRA = {"tokenizer": {"metrics"}, "text": {"input_pipeline"}}
ROOT = {"", "__version__"}  # what stands in tokvid/__init__.py is anyone's
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
WITHOUT_JAX = HELPERS | set(ASIDE)
WITH_JAX = {"tokvid.io.compiled", "tokvid.metrics.i3d"}  # the first keeps JAX's own programs


def allowed(room):
    """The rooms that `room` may import, itself included."""
    if room in ASIDE:
        return ASIDE[room] | ROOT | {room}
    if room in ROOT:
        return ROOT | {"api", "sampling", *HELPERS}  # which `tokvid.load` and the others are found in, when asked for
    place = next(i for i, rooms in enumerate(ORDER) if room in rooms)
    left = set().union(*ORDER[:place]) | ROOT | {room}
    beside = set(ASIDE) if place >= ORDER.index({"train", "sampling"}) else EXTRA.get(room, set())
    return left | (HELPERS if room in HELPERS else set()) | beside


def imports(module, source):
    """The absolute names that a module imports anywhere, in functions and for type checking too, with their lines."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            name = ".".join([*start, *([node.module] if node.module else [])])
            # `from tokvid import weights` imports a room; `from tokvid.nn import x` something in one.
            yield from ((f"{name}.{alias.name}" if name == "tokvid" else name, node.lineno) for alias in node.names)


def room_of(name):
    """tokvid.nn.blocks → nn; tokvid.config → config; tokvid → the package itself."""
    return [*name.split("."), ""][1]


def violations(module, source):
    """What `module` ("tokvid.nn.blocks") imports and may not, a line each."""
    room = room_of(module)
    try:
        may = allowed(room)
    except StopIteration:
        return [f"{module}: the room {room!r} has no place in the order; give it one in tests/test_house.py"]
    found = []
    for name, line in imports(module, source):
        other = name.split(".")[0]
        if other == "tokvid" and room_of(name) not in may:
            found.append(f"{module}:{line}: {room} may not import {room_of(name)} ({name})")
        if other in JAX and room in WITHOUT_JAX and module not in WITH_JAX:
            found.append(f"{module}:{line}: {room} may not import {name}: it works without JAX")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
MOST_AT_THE_TOP = 8  # files beside the rooms, without __init__ and __main__
MOST_LINES, MOST_PARAMETERS = 60, 7  # of a function


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) == 2 else parts)


def test_no_two_files_import_each_other():
    """Not even in functions, nor by way of others, nor by the name that a registry has of a module."""
    graph: dict[str, set[str]] = {module_of(path): set() for path in FILES}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = [node.value]
            graph[module_of(path)] |= {name for name in names if name in graph and name != "tokvid"}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_can_be_read_at_a_glance(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MOST_LINES and count <= MOST_PARAMETERS, f"{node.name}: {length} lines, {count} parameters"


def test_few_files_stand_beside_the_rooms():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(files) <= MOST_AT_THE_TOP, sorted(files)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_imports_what_stands_right_of_it(path):
    module = module_of(path)
    found = violations(module, path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "module, source, wrong",
    [
        ("tokvid.nn.blocks", "from tokvid.nn.attention import attend\nimport tokvid.config, jax", 0),
        ("tokvid.nn.blocks", "from tokvid import weights", 1),
        ("tokvid.config", "from tokvid.errors import UserError", 0),
        ("tokvid.config", "import jax.numpy as jnp", 1),
        ("tokvid.tokenizer.cvivit", "from tokvid.transformer.layout import Text", 1),
        ("tokvid.train.loop", "def f():\n    from tokvid.sampling import decode", 1),
        ("tokvid.train.loop", "from tokvid import __version__, weights\nfrom tokvid.io.media import x", 0),
        ("tokvid.train.loop", "from ..sampling.decode import step", 1),
        ("tokvid.train.loop", "from . import state\nfrom .state import Training", 0),
        ("tokvid.train.loop", "import tokvid.cli", 1),
        ("tokvid.weights", "from tokvid.input_pipeline.text import TextModel", 1),
        ("tokvid.input_pipeline.text", "import jax\nfrom flax import nnx\nfrom tokvid import weights", 3),
        ("tokvid.metrics.video", "from tokvid.config import Recipe", 1),
        ("tokvid.cli", "def f():\n    from tokvid.train.loop import train\n    from tokvid.sampling import story", 0),
        ("tokvid.cellar", "", 1),
    ],
)
def test_the_rule_itself(module, source, wrong):
    assert len(violations(module, source)) == wrong


def test_every_room_of_the_order_is_there_to_be_checked():
    rooms = {room_of(module_of(path)) for path in FILES}
    assert set().union(*ORDER, ASIDE) <= rooms


def _text_without_encoding(call: ast.Call) -> bool:
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("read_text", "write_text")
    if not isinstance(call.func, ast.Name) or call.func.id != "open":
        return False
    modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return not any(isinstance(mode, ast.Constant) and "b" in mode.value for mode in modes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_files_are_read_in_utf8_whatever_the_locale(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if _text_without_encoding(call)]


def test_the_drawn_house_names_every_module():
    """docs/design.md, section 2: each module in the paragraph of its room."""
    drawn = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8").partition("\ntokvid/\n")[2]
    rooms = dict(re.findall(r"^  (\w+)/ +(.*?)(?=^  \w|^```)", drawn.partition("```")[0] + "```", re.M | re.S))
    at_the_top = re.findall(r"^  (\w+\.py)", drawn, re.MULTILINE)
    for path in FILES:
        room, _, name = str(path.relative_to(PACKAGE)).rpartition("/")
        if not name.startswith("__"):
            assert re.search(rf"\b{name}", rooms[room]) if room else name in at_the_top, path
