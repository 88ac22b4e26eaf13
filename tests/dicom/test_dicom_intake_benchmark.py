from __future__ import annotations

import importlib
from pathlib import Path

import make_odd_series  # noqa: F401  (adds its kinds)
import pytest
from dicom_kinds import Expected

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("research.benchmarks.dicom_intake")


def test_sixty_series_in_one_export_are_all_judged_rightly(benchmark):
    result = benchmark.measure(60, seed=100)
    assert result["wrong"] == []
    assert (result["series"], result["right"]) == (60, 60)
    assert all(set(given) == {code} for code, given in result["expected_then_given"].items())


def test_a_wrong_verdict_is_counted(tmp_path, benchmark):
    planned = benchmark.synthesize(tmp_path, 3, seed=1)
    planned["s0001"] = benchmark.Planned("other", [Expected("localizer")])
    wrong, confusion = benchmark.compare(planned, benchmark.take_in(tmp_path).verdicts)
    assert [row["series"] for row in wrong] == ["s0001"]
    assert sum(confusion["localizer"].values()) >= 1
