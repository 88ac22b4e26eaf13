"""Run one cell, stage by stage, or tell how far it is."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sacl.comparison.cells import SHARED, Cell
from sacl.comparison.lock import is_held, locked
from sacl.errors import SaclError, WorkspaceError
from sacl.files.atomic import write_text
from sacl.progress import say
from sacl.run.pipeline import run_stage, stage_module
from sacl.run.record import RECORD, read_record, state_of
from sacl.run.workspace import FOLDERS

FAILED = "failed.json"
StageState = Literal["absent", "current", "stale", "changed"]
CellState = Literal["done", "failed", "running", "outdated", "begun", "waiting"]


@dataclass
class Confirmed:
    """Stages that were found up to date in this process, so that no data is listed twice."""

    folders: set[Path] = field(default_factory=set)


def stage_state(cell: Cell, stage: str, confirmed: Confirmed) -> StageState:
    """Tell whether a stage of a cell has to run; `changed` where it was done with other settings.

    A shared ingest whose data is not at hand is taken as it is.
    """
    workspace, settings = cell.workspace(stage), getattr(cell.config, stage)
    if workspace.folder(stage) in confirmed.folders:
        return "current"
    if not (workspace.folder(stage) / RECORD).is_file():
        return "absent"
    if stage == "ingest" and not has_data(cell):
        record = read_record(workspace.folder(stage)) or {}
        names = record["settings"]["ingest"]["data"]
        data = tuple(map(Path, names)) if isinstance(names, list) else Path(str(names))
        settings = replace(settings, data=data)
        inputs: Mapping[str, str] = record["inputs"]
    else:
        try:
            inputs = stage_module(stage).inputs(settings, workspace)
        except (SaclError, FileNotFoundError):
            return "stale"  # something it was made of is gone
    try:
        state: StageState = state_of(workspace, stage, settings, inputs)
    except WorkspaceError:
        return "changed"
    if state == "current" and stage in SHARED:
        confirmed.folders.add(workspace.folder(stage))
    return state


def has_data(cell: Cell) -> bool:
    """Tell whether the cohort's scans can be read, or are generated."""
    sources = cell.config.ingest.sources
    return all(path.exists() for path in sources) if sources else cell.config.phantom.scans > 0


def cell_state(cell: Cell, confirmed: Confirmed) -> CellState:
    """Tell how far a cell is."""
    if is_held(lock_of(cell)):
        return "running"
    states = [stage_state(cell, stage, confirmed) for stage in cell.stages]
    if all(state == "current" for state in states):
        return "done"
    if (cell.root / FAILED).is_file():
        return "failed"
    if states[-1] != "absent":
        return "outdated"
    return "begun" if cell.root.is_dir() else "waiting"


def failure_of(cell: Cell) -> str:
    """Return why a cell failed when it last ran, empty where it did not."""
    path = cell.root / FAILED
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["cause"])
    except (OSError, ValueError, KeyError):
        return ""


def lock_of(cell: Cell) -> Path:
    """Return the lock file that whoever runs the cell holds."""
    return cell.root.parent / f".{cell.name}.lock"


def run_cell(cell: Cell, confirmed: Confirmed, *, force: bool = False) -> bool:
    """Run what is not up to date of a cell; return False where another process is at it.

    Raises:
        SaclError: the cell failed; the cause is kept in its folder too.
    """
    with locked(lock_of(cell), cell.name, wait=False) as mine:
        if not mine:
            return False
        try:
            if cell.after is not None:
                _predicted(cell.after, confirmed)
            for stage in cell.stages:
                own = cell.places[stage].root == cell.root
                bring_up_to_date(cell, stage, confirmed, force=force and own)
        except Exception as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, SaclError):
                cause = f"{type(error).__name__}: {cause}"
            write_failure(cell, cause)
            raise SaclError(cause) from error
        (cell.root / FAILED).unlink(missing_ok=True)
    return True


def _predicted(cell: Cell, confirmed: Confirmed) -> None:
    """Run what is not up to date of a cell up to its predictions, which another one begins with."""
    for stage in cell.stages[: cell.stages.index("predict") + 1]:
        bring_up_to_date(cell, stage, confirmed)


def write_failure(cell: Cell, cause: str) -> None:
    """Keep why a cell failed."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_text(cell.root / FAILED, json.dumps({"cause": cause, "date": now}, indent=1) + "\n")


def bring_up_to_date(
    cell: Cell, stage: str, confirmed: Confirmed, *, force: bool = False, redo: bool = False
) -> None:
    """Run a stage of a cell where it is not up to date, and nobody else at the same time.

    A cell's own stage that was done with other settings is done anew; of a shared one this is an
    error, since all cells would be lost, unless `redo` is set.

    Raises:
        SaclError: the stage failed, or a shared one is of another configuration.
    """
    workspace = cell.workspace(stage)
    folder = workspace.folder(stage)
    if folder in confirmed.folders:
        return
    lock = folder.with_name(f".{folder.name}.lock")
    with locked(lock, f"{stage} of {workspace.root.name}"):
        state = stage_state(cell, stage, confirmed)
        if state == "current" and not force:
            return
        anew = force or (state == "changed" and (redo or stage not in SHARED))
        if anew:
            say(f"{workspace.root.name}: {FOLDERS[stage]} is done anew")
        label = f"{workspace.root.name}: "
        run_stage(cell.config, stage, workspace=workspace, force=anew, label=label)
    if stage in SHARED:
        confirmed.folders.add(folder)


def seconds_and_steps(cell: Cell) -> dict[str, Any]:
    """Return how long each stage of a finished cell took, and its training steps."""
    records = {s: read_record(cell.workspace(s).folder(s)) or {} for s in cell.stages}
    own = {s: r for s, r in records.items() if s not in SHARED}
    strategy = cell.config.pretrain.strategy
    return {
        "seconds": {stage: record.get("duration_s") for stage, record in own.items()},
        "steps": {
            "pretrain": 0 if strategy == "none" else cell.config.pretrain.steps,
            "finetune": cell.config.finetune.steps + cell.config.finetune.teacher_steps,
        },
        "encoder_from": cell.places["pretrain"].root.name,
        "device": cell.config.device,
    }
