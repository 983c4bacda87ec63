"""Writes docs/api.md: the names of `tokvid.__all__`, as their sources declare and describe them.

python scripts/api.py
"""

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

import tokvid

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
FIRST = ("load", "World", "Video", "Stream", "make_story", "Story", "Segment", "Settings", "Sampling")
MADE_BY_USERS = ("Video",)  # the other classes come from functions, or are dataclasses
WIDTH = 100  # of a signature in one line
HEAD = """# The Python interface

`import tokvid` gives the names below. They keep their meaning from version to version; no others are promised, but for
the fields of `tokvid.config`, which recipes use. A mistake in a call raises `tokvid.UserError`, whose message is one
line. `scripts/api.py` writes this page from the sources.
"""


def page() -> str:
    """The text of docs/api.md."""
    names = sorted(tokvid.__all__, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    return "\n\n".join([HEAD.rstrip(), *(part for name in names for part in _parts(name))]) + "\n"


def _parts(name: str) -> list[str]:
    module = importlib.import_module(f"tokvid.{tokvid._MODULES[name]}")
    tree = ast.parse(inspect.getsource(module))
    node: Any = next(each for each in tree.body if getattr(each, "name", None) == name)
    if isinstance(node, ast.FunctionDef):
        return [f"## {name}", _signature(f"tokvid.{name}", node), _text(node)]
    parts = [f"## {name}", _text(node)]
    if dataclasses.is_dataclass(getattr(module, name)):
        parts.append(_fields(node, getattr(module, name)))
    for method in (each for each in node.body if isinstance(each, ast.FunctionDef)):
        if method.name == "__init__" and name in MADE_BY_USERS:
            parts.append(_signature(f"tokvid.{name}", method))
        elif not method.name.startswith("_"):
            parts += [f"### {name}.{method.name}", _signature(f"{name.lower()}.{method.name}", method), _text(method)]
    return [part for part in parts if part]


def _signature(name: str, node: ast.FunctionDef) -> str:
    decorators = [ast.unparse(each) for each in node.decorator_list]
    returns = "" if node.returns is None or node.name == "__init__" else ast.unparse(node.returns).strip("'")
    if "property" in decorators or "functools.cached_property" in decorators:
        line = f"{name}: {returns}"
    else:
        parameters = _parameters(node.args)
        end = f" -> {'Video' if 'verb' in decorators else returns}" if returns else ""
        line = f"{name}({', '.join(parameters)}){end}"
        if len(line) > WIDTH:
            line = f"{name}(\n{''.join(f'    {each},{chr(10)}' for each in parameters)}){end}"
    return f"```python\n{line}\n```"


def _parameters(arguments: ast.arguments) -> list[str]:
    """Each with its type and default, without self."""

    def shown(argument: ast.arg, default: ast.expr | None) -> str:
        return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")

    missing = len(arguments.args) - len(arguments.defaults)
    every = list(map(shown, arguments.args, [None] * missing + arguments.defaults))
    every = [each for each in every if each != "self"]
    if arguments.vararg:
        every.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        every.append("*")
    every += map(shown, arguments.kwonlyargs, arguments.kw_defaults)
    return every + ([f"**{ast.unparse(arguments.kwarg)}"] if arguments.kwarg else [])


def _fields(node: ast.ClassDef, kind: Any) -> str:
    types = {each.target.id: ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign)}
    lines = []
    for field in dataclasses.fields(kind):
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        about = f": {field.metadata['help']}" if "help" in field.metadata else ""
        lines.append(f"- `{field.name}: {types[field.name]}{default}`{about}")
    return "\n".join(lines)


def _text(node: ast.AST) -> str:
    """A docstring, in which lines as `fps: frames per second` become a list."""
    lines = (ast.get_docstring(node) or "").replace("Attributes:\n", "").splitlines()
    for index, line in enumerate(lines):
        names, colon, meaning = line.strip().partition(": ")
        if colon and all(name.isidentifier() for name in names.split(", ")):
            lines[index] = f"- `{names}`: {meaning}"
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
