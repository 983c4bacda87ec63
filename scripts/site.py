"""Hooks of mkdocs.yml: the README becomes the first page, and files that pages link to join the site.

Pages link to each other as files of the repository, so that they can be read there, too.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md")  # pages outside of docs/ for the navigation
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")  # the target of [text](target), without an anchor
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Adds README.md, and all files that the pages link to."""
    pages = [ROOT / "README.md", *(ROOT / name for name in BESIDE), *sorted((ROOT / "docs").glob("*.md"))]
    while pages:
        page = pages.pop()
        for path in [page, *_linked(page)]:
            where = _site(path)
            if path.is_file() and files.get_file_from_path(where) is None:
                files.append(File.generated(config, where, abs_src_path=str(path)))
                pages += [path] * (path.suffix == ".md" and path != page)
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Turns links between files of the repository into links between those of the site."""
    source = Path(page.file.abs_src_path)

    def replaced(match: re.Match[str]) -> str:
        target = _target(source, match[1])
        return posixpath.relpath(_site(target), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(replaced, markdown)


def _linked(page: Path) -> Iterator[Path]:
    for match in LINK.finditer(CODE.sub("", page.read_text(encoding="utf-8"))):
        yield _target(page, match[1])


def _target(page: Path, link: str) -> Path:
    return Path(os.path.normpath(page.parent / link))


def _site(path: Path) -> str:
    """The path of a file of the repository in the site."""
    if path == ROOT / "README.md":
        return "index.md"
    inside = path.relative_to(ROOT).as_posix()
    return inside.removeprefix("docs/")
