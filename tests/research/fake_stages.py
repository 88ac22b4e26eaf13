"""Stages that are done in a moment: they leave records and made-up scores, and count their runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from research import grid as grid_module
from research.__main__ import main
from research.compare import Wanted, listing
from research.grid import Cell, Grid, read_grid
from sacl.cohort.manifest import write_cohort
from sacl.errors import ConfigError, SaclError
from sacl.run import record as run_record
from sacl.run.record import fingerprint, read_record, recorded
from sacl.run.workspace import Workspace
from sacl.scores.summary import ScoreRow, write_scores
from sacl.types import Case, Cohort, LabelScheme, NativeFrame, OrganScore
from sacl.types import Grid as Voxels

READS: dict[str, tuple[str, ...]] = {
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
PROTOCOL = {
    "version": 2,
    "name": "fake",
    "base": "base.yaml",
    "labeled_subjects": [2, 4],
    "seeds": [0, 1],
    "splits": ["test"],
    "strategies": {
        "pooled": None,
        "simclr": {"pretrain.method": "simclr"},
        "scratch": {"pretrain.method": "none"},
    },
    "ablations": {"other-batch": {"finetune.batch": 8}},
    "ours": "pooled",
    "baseline": "scratch",
    "bootstrap": 200,
}
GAIN = {"pooled": 0.1, "simclr": 0.04, "none": 0.0}


class FakeStages:
    """In place of the stages' modules; `runs` counts (stage, name of the store's entry)."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, str]] = Counter()
        self.failing: set[tuple[str, str]] = set()
        """Pairs of stage and cell that fail."""
        self.data = "as it was"
        """What the scans are like."""
        self.labels_of: dict[str, dict[str, str]] = {}
        self.cell = ""
        """The cell at work: a stage that several cells share does not know it."""

    def install(self, monkeypatch: Any) -> None:
        workspace_of = grid_module.workspace_of

        def noted(cell: Cell, *more: Any) -> Workspace:
            self.cell = cell.name
            return workspace_of(cell, *more)

        monkeypatch.setattr(grid_module, "workspace_of", noted)
        monkeypatch.setattr(grid_module, "stage_module", self.module)
        monkeypatch.setattr(run_record, "versions", dict)  # takes longer than all the rest

    def module(self, stage: str) -> SimpleNamespace:
        def inputs(settings: Any, workspace: Workspace) -> dict[str, str]:
            found = {s: fingerprint(workspace.require(s)) for s in READS[stage]}
            if stage == "ingest":
                found["data"] = self.data
            if getattr(settings, "maps", None) is not None:
                names = sorted(path.name for path in settings.maps.source.iterdir())
                found["source"] = json.dumps([settings.maps.source.parent.name, *names])
            return found

        def run(settings: Any, workspace: Workspace) -> Path:
            self.runs[stage, workspace.root.name] += 1
            given = inputs(settings, workspace)
            with recorded(workspace, stage, settings, given) as (folder, results):
                if (stage, self.cell) in self.failing:
                    raise SaclError(f"{stage}: the loss\nis not finite")
                getattr(self, f"_{stage}", lambda *_: None)(settings, workspace, folder, results)
            return folder

        return SimpleNamespace(inputs=inputs, **{stage: run})

    def of(self, stage: str) -> int:
        """Return how often a stage was run."""
        return sum(count for (name, _), count in self.runs.items() if name == stage)

    def _ingest(self, settings: Any, _workspace: Workspace, folder: Path, _results: Any) -> None:
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
            native=NativeFrame(Voxels((2, 2, 2), np.eye(4))),
            window=(0.0, 1.0),
            scan_labels=self.labels_of.get(name, {"phase": "native"}),
            annotated=ORGANS if has_reference else (),
        )

    def _locate(self, _settings: Any, _workspace: Workspace, folder: Path, _results: Any) -> None:
        self._write_maps(folder / "maps", "coarse")

    def _pretrain(self, settings: Any, _workspace: Workspace, _folder: Path, out: Any) -> None:
        out["method"] = settings.method

    def _finetune(self, _settings: Any, workspace: Workspace, _folder: Path, out: Any) -> None:
        out["arm"] = read_record(workspace.require("pretrain")).results["method"]

    def _predict(self, _settings: Any, _workspace: Workspace, folder: Path, _out: Any) -> None:
        self._write_maps(folder / "maps", self.cell)

    def _write_maps(self, folder: Path, text: str) -> None:
        folder.mkdir()
        for name in (f"t{n}" for n in range(TRAINING)):
            (folder / f"{name}-a.nii.gz").write_text(text)
        for name in (f"s{n}" for n in range(SCORED)):
            (folder / f"{name}-a.nii.gz").write_text(text)

    def _evaluate(self, _settings: Any, workspace: Workspace, folder: Path, _results: Any) -> None:
        arm = read_record(workspace.require("finetune")).results["arm"]
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


def write_protocol(folder: Path, **changed: Any) -> Path:
    """Write a protocol and its base, some keys changed or (None) left out; return its path."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(f"ingest: {{data: {folder / 'data'}}}\n")
    tree = {**PROTOCOL, "work": str(folder / "work"), **changed}
    path = folder / "protocol.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in tree.items() if v is not None}, sort_keys=False)
    )
    return path


def grid_of(folder: Path, **changed: Any) -> Grid:
    """Return the grid of a protocol, some keys changed."""
    return read_grid(write_protocol(folder, **changed), {})


def run(path: Path, *more: str) -> int:
    """Compare by a protocol, and return the exit code."""
    return main(["compare", str(path), *more])


def states(path: Path) -> dict[str, str]:
    """Return the state of every cell."""
    return {e["cell"]: e["state"] for e in listing(read_grid(path, {}), Wanted())}


def results(path: Path) -> dict[str, Any]:
    """Return the results of a protocol, whose folder is `work` beside it."""
    document: dict[str, Any] = json.loads((path.parent / "work" / "results.json").read_text())
    return document
