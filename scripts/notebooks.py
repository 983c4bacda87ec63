"""Runs notebooks, as Jupyter would, and keeps what their cells show.

python scripts/notebooks.py docs/first_story.ipynb
"""

import argparse
import ast
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Its cells of code, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(cell: dict[str, Any], names: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs a cell of code; returns what it shows, in the form of notebooks: printed text, and its last expression."""
    body = ast.parse("".join(cell["source"])).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, shown = io.StringIO(), []
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    if printed.getvalue():
        shown.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(True)})
    if value is not None:
        data = {"text/plain": [repr(value)]}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = [value._repr_html_()]
        shown.append({"output_type": "execute_result", "execution_count": None, "data": data, "metadata": {}})
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    paths = [path.resolve() for path in parser.parse_args().notebooks]
    for path in paths:
        notebook, names = json.loads(path.read_text(encoding="utf-8")), {"__name__": "__main__"}
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for number, cell in enumerate(code_cells(notebook), 1):
                cell["outputs"] = run(cell, names)
                cell["execution_count"] = number
                for output in cell["outputs"]:
                    if "execution_count" in output:
                        output["execution_count"] = number
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + os.linesep, encoding="utf-8")


if __name__ == "__main__":
    main()
