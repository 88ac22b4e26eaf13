"""Run the stages in their order, skipping what is up to date."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from sacl.errors import ConfigError, DataError
from sacl.progress import duration, say
from sacl.run import clock
from sacl.run.clock import Budget, seconds_of
from sacl.run.engine import HERE, Engine
from sacl.run.record import (
    RECORD,
    Record,
    aside_of,
    clear,
    read_record,
    restore,
    settle,
    state_of,
    without_place,
)
from sacl.run.workspace import FOLDERS, Workspace
from sacl.settings import RunConfig

STAGES = tuple(FOLDERS)
_FREE_DISK_MB = 200
_WEIGHTS = {"locate": 30.0, "pretrain": 10.0, "finetune": 60.0}
"""How the time of a run is shared out among the trainings (`time`)."""
_OF_VOLUMES = {"locate": 15.0}
"""The same where the segmenter works on volumes, which sees its scans whole: coarse maps say how
good maps will be at least, and where unlabeled scans are looked at."""
_MOST_FOR_MAPS, _MOST_OF_VOLUMES = 0.2, 0.05
"""Share of the time left that locating by all coarse networks may take, likewise."""


def workspace_of(config: RunConfig, engine: Engine = HERE) -> Workspace:
    """Return the work directory that a configuration names."""
    return Workspace(config.work, config.name, config.seed, config.device, engine=engine)


def workspace_at(root: Path) -> Workspace:
    """Return the work directory of a run, which has to be ingested, with its name and its seed."""
    record = read_record(Workspace(root).require("ingest"))
    assert record is not None, "just required"
    return Workspace(root, str(record.run), int(record.settings.get("seed", 0)))


def run(
    config: RunConfig, force: bool = False, since: float | None = None, engine: Engine = HERE
) -> Path:
    """Run all stages, skip those that are up to date, and return the report's path.

    A stage whose inputs have changed runs again; one that was done with other settings is an
    error unless `force` is set, which redoes everything. The time of a run that was planned counts
    `since` that began (on `clock.now`), and what it has ingested is not ingested again.
    """
    if config.phantom.scans == 0 and not config.ingest.data:
        raise ConfigError("ingest.data: no data to run on; give --data DIR or --phantom.scans N")
    stages = stages_of(config)
    workspace = workspace_of(config, engine)
    budgets = budgets_of(config, stages, since)
    importlib.import_module("sacl.networks.device").resolve_device(config.device)
    asked = (config.finetune.samples, "finetune.batch", config.finetune.least_samples)
    importlib.import_module("sacl.ranks").require_samples(*asked)
    with workspace.locked():
        if budgets:
            say(_shared_out(budgets, workspace, force))
        for number, stage in enumerate(stages, start=1):
            within = replace(workspace, budget=budgets.get(stage))
            label = f"[{number}/{len(stages)}] "
            redo = force and not (since is not None and stage == "ingest")
            run_stage(config, stage, workspace=within, force=redo, label=label)
    for of_run in list(budgets.values())[-1:]:
        taken_s = of_run.asked_s - of_run.left_s
        say(f"time: {duration(taken_s)} of {duration(of_run.asked_s)} were taken")
    return workspace.folder("report") / "report.html"


def stages_of(config: RunConfig) -> list[str]:
    """Return the stages of a run: nothing is cut for a segmenter on volumes."""
    volume = config.finetune.volume
    left_out = {
        "phantom": not config.phantom.scans,
        "extract": volume is not None,
        "pretrain": volume is not None and not volume.pretrained,
    }
    return [stage for stage in STAGES if not left_out.get(stage)]


def budgets_of(
    config: RunConfig, stages: Sequence[str], since: float | None = None
) -> dict[str, Budget]:
    """Return what each stage of a command may take, `since` then or from now on, if time counts."""
    if config.time is None:
        return {}
    asked_s = seconds_of(config.time)
    trains = {"locate": config.locate.maps is None, "pretrain": config.pretrain.method != "none"}
    on_volumes = config.finetune.volume is not None
    weight_of = _WEIGHTS | (_OF_VOLUMES if on_volumes else {})
    weights = {stage: weight_of.get(stage, 0.0) * trains.get(stage, True) for stage in stages}
    ends = (clock.now() if since is None else since) + asked_s
    whole, in_turn = sum(weights.values()), list(weights.values())
    return {
        stage: Budget(
            asked_s=asked_s,
            ends=ends,
            weight=weights[stage],
            later=sum(in_turn[number + 1 :]),
            whole=whole,
            copies=config.predict.copies if "predict" in stages else None,
            most_for_maps=_MOST_OF_VOLUMES if on_volumes else _MOST_FOR_MAPS,
        )
        for number, stage in enumerate(stages)
    }


def _shared_out(budgets: Mapping[str, Budget], workspace: Workspace, force: bool) -> str:
    """Return in a line what each training may take."""
    to_train = {
        stage: budget
        for stage, budget in budgets.items()
        if budget.weight and (force or not (workspace.folder(stage) / RECORD).exists())
    }
    first = next(iter(budgets.values()))
    weights = sum(budget.weight for budget in to_train.values())
    to_share_s = first.left_s - first.unmeasured_s
    parts = [
        f"{stage} about {duration(to_share_s * budget.weight / weights)}"
        for stage, budget in to_train.items()
    ]
    listed = ", ".join([*parts, f"all else {duration(first.unmeasured_s)}" if parts else "enough"])
    return f"time: {duration(first.asked_s)} at most: {listed}; unused time goes to what follows"


def run_stage(
    config: RunConfig,
    stage: str,
    *,
    workspace: Workspace | None = None,
    force: bool = False,
    label: str = "",
    by: Any = None,
) -> Path:
    """Run one stage, unless it is up to date, in the configuration's work directory or another.

    `by` does its work in place of the stage's module, if given: it has the same two functions.
    """
    workspace = workspace or workspace_of(config)
    if workspace.budget is None:
        workspace = replace(workspace, budget=budgets_of(config, (stage,)).get(stage))
    settings, module = getattr(config, stage), by or stage_module(stage)
    with workspace.locked():
        _check_disk(workspace.root)
        inputs = module.inputs(settings, workspace)
        folder = workspace.folder(stage)
        with workspace.prepared():
            settle(folder)
            if not force:
                restore(workspace, stage, settings, inputs)
        if force and not (folder / RECORD).exists():
            clear(workspace, stage, settings)
        elif not force and state_of(workspace, stage, settings, inputs) == "current":
            say(f"{label}{stage}: up to date")
            return folder
        record = None if force else read_record(folder)
        say(f"{label}{stage}{_again(record, inputs) if record else ''} ...")
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


def _again(record: Record, inputs: Mapping[str, str]) -> str:
    now = without_place(inputs)
    changed = [name for name, of in now.items() if record.inputs.get(name) != of]
    return f" again, since {' and '.join(changed)} changed" if changed else ""


def summary(config: RunConfig) -> dict[str, Any]:
    """Return as JSON where a run's results are, what each stage took, scores, and doubts."""
    workspace = workspace_of(config)
    records = {stage: read_record(workspace.folder(stage)) for stage in STAGES}
    scores = workspace.folder("evaluate") / "summary.json"
    judged = [record for record in (records["evaluate"], records["predict"]) if record]
    return {
        "work": str(workspace.root),
        "report": str(workspace.folder("report") / "report.html"),
        "duration_s": {stage: record.duration_s for stage, record in records.items() if record},
        "scores": json.loads(scores.read_bytes()) if scores.is_file() else None,
        "doubts": [text for record in judged for text in record.results.get("doubts", ())],
    }


def stage_module(stage: str) -> ModuleType:
    """Return a stage's module, which is loaded when it is first needed."""
    return importlib.import_module(f"sacl.stages.{stage}")


def _check_disk(root: Path) -> None:
    free_mb = shutil.disk_usage(root).free // 1024**2
    if free_mb < _FREE_DISK_MB:
        raise DataError(
            f"work directory {root}: only {free_mb} MB of disk space are free, expected"
            f" at least {_FREE_DISK_MB}; free some, or take another --work"
        )
