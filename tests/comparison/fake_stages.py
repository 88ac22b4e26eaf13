"""Stages that are done in a moment: they leave records and made-up scores, and count their runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sacl.cli import main
from sacl.cohort.manifest import write_cohort
from sacl.comparison import running
from sacl.comparison.compare import Wanted, list_cells, read_comparison
from sacl.errors import ConfigError, SaclError
from sacl.run import pipeline
from sacl.run import record as run_record
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.scores.table import ScoreRow, write_scores
from sacl.types import Case, Cohort, Grid, LabelScheme, NativeFrame, OrganScore

READS = {
    "ingest": (),
    "locate": ("ingest",),
    "extract": ("ingest", "locate"),
    "pretrain": ("extract",),
    "finetune": ("ingest", "extract", "pretrain"),
    "predict": ("ingest", "locate", "finetune"),
    "evaluate": ("ingest", "locate", "predict"),
}
ORGANS = ("liver", "spleen")
TRAINING, SCORED = 6, 5
PROTOCOL = """
version: 1
name: fake
base: base.yaml
work: {work}
labeled_subjects: [2, 4]
seeds: [0, 1]
splits: [test]
strategies: [semantic, simclr, scratch]
ablations:
  other-batch: {{finetune.batch: 8}}
bootstrap: 200
"""
GAIN = {"semantic": 0.1, "simclr": 0.04, "none": 0.0}


class FakeStages:
    """In place of the stages' modules; `runs` counts (stage, work directory's name)."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, str]] = Counter()
        self.failing: set[tuple[str, str]] = set()
        self.labels: dict[str, str] = {"phase": "native"}
        self.labels_of: dict[str, dict[str, str]] = {}

    def install(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(pipeline, "stage_module", self.module)
        monkeypatch.setattr(running, "stage_module", self.module)
        monkeypatch.setattr(run_record, "versions", dict)  # takes longer than all the rest

    def module(self, stage: str) -> SimpleNamespace:
        def inputs(_settings: Any, workspace: Workspace) -> dict[str, str]:
            return {s: fingerprint(workspace.require(s)) for s in READS[stage]}

        def run(settings: Any, workspace: Workspace) -> Path:
            root = workspace.folder(stage).parent.name
            self.runs[stage, root] += 1
            with recorded(workspace, stage, settings, inputs(settings, workspace)) as (folder, out):
                if (stage, root) in self.failing:
                    raise SaclError(f"{stage}: the loss\nis not finite")
                getattr(self, f"_{stage}", lambda *_: None)(settings, workspace, folder, out)
            return folder

        return SimpleNamespace(inputs=inputs, **{stage: run})

    def of(self, stage: str) -> int:
        return sum(count for (name, _), count in self.runs.items() if name == stage)

    def _ingest(self, settings: Any, _workspace: Workspace, folder: Path, _out: Any) -> None:
        count = TRAINING if settings.labeled_subjects is None else settings.labeled_subjects
        if count > TRAINING:
            raise ConfigError(f"ingest.labeled_subjects: {count} asked for, only {TRAINING}")
        cases = [self._case(f"t{n}", "train", n < count) for n in range(TRAINING)]
        cases += [self._case(f"s{n}", "test", True) for n in range(SCORED)]
        write_cohort(folder, Cohort("fake", LabelScheme("fake", ORGANS), tuple(cases)))

    def _case(self, name: str, split: Any, has_reference: bool) -> Case:
        return Case(
            case_id=f"{name}-a",
            subject_id=name,
            image=f"images/{name}.nii",
            reference=f"references/{name}.nii.gz" if has_reference else None,
            split=split,
            native=NativeFrame(Grid((2, 2, 2), np.eye(4))),
            window=(0.0, 1.0),
            scan_labels=self.labels_of.get(name, self.labels),
            annotated=ORGANS if has_reference else (),
        )

    def _pretrain(self, settings: Any, _workspace: Workspace, _folder: Path, out: Any) -> None:
        out["strategy"] = settings.strategy

    def _finetune(self, settings: Any, workspace: Workspace, _folder: Path, out: Any) -> None:
        record = running.read_record(workspace.require("pretrain"))
        out["arms"] = [record["results"]["strategy"]]

    def _evaluate(self, _settings: Any, workspace: Workspace, folder: Path, _out: Any) -> None:
        arm = running.read_record(workspace.require("finetune"))["results"]["arms"][0]
        generator = np.random.default_rng([workspace.seed, len(arm)])
        rows = [
            ScoreRow(
                run,
                f"s{n}",
                "test",
                OrganScore(f"s{n}-a", organ, dice, 5.0, dice, 10.0, 10.0),
            )
            for run in (arm, "coarse")
            for n in range(SCORED)
            for organ in ORGANS
            for dice in [0.6 + GAIN.get(run, -0.2) + 0.02 * n + 0.01 * generator.random()]
        ]
        write_scores(folder / "scores.csv", rows)


def write_protocol(folder: Path, **changed: str) -> Path:
    """Write a protocol and its base, some lines changed, and return the protocol's path."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(f"ingest: {{data: {folder / 'data'}}}\n")
    text = PROTOCOL.format(work=folder / "work")
    lines = [
        line for line in text.strip().splitlines() if line.split(":")[0].strip() not in changed
    ]
    lines += [f"{key}: {value}" for key, value in changed.items() if value != "-"]
    if "ablations" in changed:
        lines = [line for line in lines if not line.startswith("  ")]
    path = folder / "protocol.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(path: Path, *more: str) -> int:
    """Compare by a protocol, and return the exit code."""
    return main(["compare", str(path), *more])


def states(path: Path) -> dict[str, str]:
    """Return the state of every cell."""
    return {e["cell"]: e["state"] for e in list_cells(read_comparison(path), Wanted())}


def results(path: Path) -> dict[str, Any]:
    """Return the results of a protocol, whose folder is `work` beside it."""
    found: dict[str, Any] = json.loads((path.parent / "work" / "results.json").read_text())
    return found
