"""The settings of every stage: YAML keys, dotted flags, `--help` and `run.json` come from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sacl.settings.data import (
    ExtractSettings,
    IngestSettings,
    Layout,
    LocateSettings,
    PhantomSettings,
)
from sacl.settings.results import (
    CheckSettings,
    EvaluateSettings,
    PredictSettings,
    ReportSettings,
)
from sacl.settings.training import (
    AugmentSettings,
    FinetuneSettings,
    Network,
    PretrainSettings,
    Strategy,
)

__all__ = [
    "AugmentSettings",
    "CheckSettings",
    "EvaluateSettings",
    "ExtractSettings",
    "FinetuneSettings",
    "IngestSettings",
    "Layout",
    "LocateSettings",
    "Network",
    "PhantomSettings",
    "PredictSettings",
    "PretrainSettings",
    "ReportSettings",
    "RunConfig",
    "Strategy",
]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs: one block per stage."""

    name: str = "run"
    """Name of the run."""
    work: Path = Path("work")
    """Work directory; each stage has a numbered folder in it."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    check: CheckSettings = field(default_factory=CheckSettings)
    phantom: PhantomSettings = field(default_factory=PhantomSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    locate: LocateSettings = field(default_factory=LocateSettings)
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    predict: PredictSettings = field(default_factory=PredictSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
