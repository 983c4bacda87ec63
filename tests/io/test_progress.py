"""The bar of long work."""

import io

import pytest
from rich.console import Console

from tokvid.io import progress as module
from tokvid.io.progress import counted, progress


@pytest.mark.parametrize("width", [80, 200])
def test_a_narrow_terminal_loses_notes_before_numbers(monkeypatch, width):
    screen = io.StringIO()
    monkeypatch.setattr(
        module, "Console", lambda **_: Console(file=screen, force_terminal=True, width=width, color_system=None)
    )
    with progress("transformer", 6000, "steps", done=1200) as advance:
        for _ in range(3):
            advance(1, loss=1.0661, accuracy=0.752, clips_per_second=539.2)
    said = screen.getvalue()
    assert "transformer" in said and "1203/6000" in said and "s left" in said
    assert "loss 1.066" in said and ("clips_per_second 539.2" in said) == (width == 200)


@pytest.mark.parametrize("work, said", [(1, "0.5 steps/s · 1000 s left"), (20_000, "10,000 steps/s · 0 s left")])
def test_rates_are_plain_numbers(monkeypatch, work, said):
    times = iter([5.0, 7.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    pace = module.Pace()
    assert pace.at(10, 20_010, "steps") == ""  # the first advance includes compiling
    assert pace.at(10 + work, 10 + max(work, 501), "steps") == said


def test_what_is_counted_comes_through_and_is_told(capsys):
    assert list(counted(iter("abc"), "reading a.mp4", 3, "frames")) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("reading a.mp4: 3/3")
    assert list(counted(iter("abc"), "reading a.mp4", 2, "frames", quiet=True)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
