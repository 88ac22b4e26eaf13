"""Run the stages in their order, skipping what is up to date."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sacl.errors import ConfigError, DataError
from sacl.progress import say
from sacl.run.record import RECORD, aside_of, clear, read_record, settle, state_of
from sacl.run.workspace import FOLDERS, Workspace
from sacl.settings import RunConfig

STAGES = tuple(FOLDERS)
_FREE_DISK_MB = 200


@dataclass(frozen=True)
class Finished:
    """Where a run's results are, what each stage took, the scores as JSON, and what to doubt."""

    work: str
    report: str
    duration_s: dict[str, float]
    scores: dict[str, Any] | None
    doubts: tuple[str, ...]


def workspace_of(config: RunConfig) -> Workspace:
    """Return the work directory that a configuration names."""
    return Workspace(config.work, config.name, config.seed, config.device)


def run(config: RunConfig, force: bool = False) -> Path:
    """Run all stages, skip those that are up to date, and return the report's path.

    A stage whose inputs have changed runs again; one that was done with other settings is an
    error unless `force` is set, which redoes everything.

    Raises:
        SaclError: any mistake in the settings, the data or the work directory.
    """
    importlib.import_module("sacl.networks.device").resolve_device(config.device)
    if config.phantom.scans == 0 and not config.ingest.data:
        raise ConfigError("ingest.data: no data to run on; give --data DIR or --phantom.scans N")
    stages = [s for s in STAGES if s != "phantom" or config.phantom.scans > 0]
    with workspace_of(config).locked():
        for number, stage in enumerate(stages, start=1):
            run_stage(config, stage, force=force, label=f"[{number}/{len(stages)}] ")
    return workspace_of(config).folder("report") / "report.html"


def run_stage(
    config: RunConfig,
    stage: str,
    *,
    workspace: Workspace | None = None,
    force: bool = False,
    label: str = "",
) -> Path:
    """Run one stage where it is not up to date, and return its folder.

    The work directory is the one that the configuration names, unless another is given.
    """
    workspace = workspace or workspace_of(config)
    settings, module = getattr(config, stage), stage_module(stage)
    with workspace.locked():
        _check_disk(workspace.root)
        inputs = module.inputs(settings, workspace)
        folder = workspace.folder(stage)
        settle(folder)
        if force and not (folder / RECORD).exists():
            clear(workspace, stage, settings)
        elif not force and state_of(workspace, stage, settings, inputs) == "current":
            say(f"{label}{stage}: up to date")
            return folder
        record = None if force else read_record(folder)
        changed = [name for name, of in inputs.items() if record and record.inputs.get(name) != of]
        again = f" again, since {' and '.join(changed)} changed" if changed else ""
        say(f"{label}{stage}{again} ...")
        start = time.monotonic()
        try:
            getattr(module, stage)(settings, workspace)
        except Exception:
            aside = aside_of(folder)
            kept = f"; until it succeeds, the earlier results are kept in {aside}"
            say(f"{label}{stage}: failed{kept if aside.exists() else ''}")
            raise
        say(f"{label}{stage}: done in {time.monotonic() - start:.0f} s")
    return folder


def summary(config: RunConfig) -> Finished:
    """Return where a run's results are, how long each stage took, and the scores."""
    workspace = workspace_of(config)
    records = {stage: read_record(workspace.folder(stage)) for stage in STAGES}
    scores, predicted = workspace.folder("evaluate") / "summary.json", records["predict"]
    return Finished(
        str(workspace.root),
        str(workspace.folder("report") / "report.html"),
        {stage: record.duration_s for stage, record in records.items() if record},
        json.loads(scores.read_text(encoding="utf-8")) if scores.is_file() else None,
        tuple(predicted.results.get("doubts", ())) if predicted else (),
    )


def stage_module(stage: str) -> ModuleType:
    """Return a stage's module, which is loaded when it is first needed."""
    return importlib.import_module(f"sacl.stages.{stage}")


def _check_disk(root: Path) -> None:
    free_mb = shutil.disk_usage(root).free // 1024**2
    if free_mb < _FREE_DISK_MB:
        raise DataError(
            f"work directory {root}: only {free_mb} MB of disk are free, expected"
            f" {_FREE_DISK_MB} at least; free some or take another --work"
        )
