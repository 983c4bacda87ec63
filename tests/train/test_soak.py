"""A few faults of the soak; hours of them are `python scripts/soak.py --hours 8`."""

import json

import pytest

OPENED = ("data", "open records", "open story", "open srt", "open track", "open mask")


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults, jobs, cases",
    [(("flip", "cut", "lose", "garbled"), OPENED, 20), (("kill", "term"), ("tokenizer",), 3)],
    ids=["files", "signals"],
)
def test_a_few_faults_are_survived(said_by_script, tmp_path, faults, jobs, cases):
    report = tmp_path / "soak.json"
    places = ("--folder", str(tmp_path / "soak"), "--report", str(report))
    said = said_by_script("soak.py", "--cases", str(cases), *places, "--faults", *faults, "--jobs", *jobs)
    assert "0 failures" in said
    kinds = json.loads(report.read_text())["kinds"]
    assert sum(kind["tries"] for kind in kinds.values()) == cases
    assert all(kind["survived"] == kind["tries"] for kind in kinds.values()) and kinds.keys() <= set(faults)
