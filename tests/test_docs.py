"""The documentation as a site, built strictly: no dead link, no dead anchor."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.docs
def test_the_site_has_every_page_and_no_dead_link(tmp_path):
    pytest.importorskip("material", reason="needs mkdocs-material, of the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "CHANGELOG", "CONTRIBUTING"}
    assert pages <= {path.stem for path in (tmp_path / "site").glob("*.html")}
    page = (tmp_path / "site" / "index.html").read_text()
    assert 'href="design.html"' in page and (tmp_path / "site" / "data/demo/story.gif").is_file()
    assert "fonts.googleapis" not in page
