"""What tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """The folder of real and of broken files, which isn't part of the repository: without it tests skip."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    path = Path(os.environ.get("TOKVID_DEV_DATA", default)).resolve()
    if not path.is_dir():
        pytest.skip(f"needs the development data: there is no {path} (set TOKVID_DEV_DATA)")
    return path
