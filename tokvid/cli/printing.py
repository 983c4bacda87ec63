"""Figures for people: as a table on the screen or in Markdown, and printed whatever becomes of their files."""

import re
from collections.abc import Callable
from typing import Any

from tokvid.errors import UserError, plain


def say(text: str) -> None:
    """Prints now, so that an error is raised here."""
    print(text, flush=True)


def several(number: int, what: str) -> str:
    """1, "frame" → "1 frame"; 2, "frame" → "2 frames"."""
    return f"{number} {what}{'s' * (number != 1)}"


def in_any_case(*steps: Callable[[], object]) -> None:
    """All of them, then the first error: what took minutes to measure isn't lost to a full disk or a closed pipe."""
    errors = []
    for step in steps:
        try:
            step()
        except (UserError, OSError) as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else plain(str(value))


def _rows(values: dict[str, Any]) -> dict[str, Any]:
    """`values`, but those of seconds (`psnr_1s`, `psnr_2s`) side by side in a row of one name."""
    rows: dict[str, Any] = {}
    for name, value in values.items():
        if second := re.fullmatch(r"(.+)_(\d+)s", name):
            row = f"{second[1]} by second"
            rows[row] = f"{rows[row]}  {_shown(value)}" if row in rows else _shown(value)
        else:
            rows[name] = value
    return rows


def table(values: dict[str, Any], indent: str = "") -> str:
    """Nested values, a line each."""
    lines, rows = [], _rows(values)
    width = max([24, *(len(name) for name, value in rows.items() if not isinstance(value, dict))])
    for name, value in rows.items():
        if isinstance(value, dict):
            lines += [f"{indent}{plain(name)}", table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{plain(name):{width}} {_shown(value)}")
    return "\n".join(lines)


def markdown(values: dict[str, Any], prefix: str = "") -> str:
    """Nested values as a table, a row each."""
    rows = [] if prefix else ["| figure | value |", "|---|---|"]
    for name, value in _rows(values).items():
        if isinstance(value, dict):
            rows.append(markdown(value, f"{prefix}{name}: ").rstrip())
        else:
            rows.append(f"| {prefix}{name} | {_shown(value)} |")
    return "\n".join(rows) + "\n"
