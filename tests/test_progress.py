"""Progress off a terminal: a line a minute, whatever an item takes."""

import itertools

import pytest

from sacl import progress


@pytest.fixture
def slow_clock(monkeypatch):
    """Let 100 s pass at each look at the clock."""
    ticks = itertools.count(0, 100)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


def test_an_item_that_takes_minutes_is_no_division_by_zero(slow_clock, capsys):
    assert list(progress.track(iter("abc"), "scans", 3)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  scans: 1/3, about 400 s left", "  scans: 2/3, about 150 s left"]
