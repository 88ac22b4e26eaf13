"""Stages that take no time, for all tests of comparisons."""

import pytest
from fake_stages import FakeStages

from research import page as page_module


@pytest.fixture
def stages(monkeypatch) -> FakeStages:
    """Stages that take no time, and a page without charts."""
    fake = FakeStages()
    fake.install(monkeypatch)
    for chart in ("learning_curves", "forest_plot", "ablation_bars"):
        monkeypatch.setattr(page_module, chart, lambda *_: "<svg></svg>")
    return fake
