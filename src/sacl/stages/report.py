"""report: a work directory, or several -> one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sacl.cohort.manifest import read_cohort, read_image, read_reference, with_phases
from sacl.errors import DataError
from sacl.files.atomic import require_ours, write_text
from sacl.files.nifti import read_label_map
from sacl.phase_words import PHASE
from sacl.prediction.guard import read_findings
from sacl.report.embedding import read_embedding
from sacl.report.figures import Curve, loss_curves, palette
from sacl.report.page import GENERATOR, render
from sacl.report.results import (
    POOR,
    Records,
    ScanLine,
    ShownScan,
    encoder_part,
    headline,
    limits,
    only_annotated,
    organ_boxes,
    pictures,
    run_facts,
    scan_lines,
    settings_lines,
    shown_roles,
    split_words,
)
from sacl.run.record import fingerprint, read_record, recorded
from sacl.run.workspace import FOLDERS, Workspace
from sacl.scores.summary import Summary, in_common, read_summary, summarize
from sacl.scores.table import ScoreRow, read_scores, score_table
from sacl.settings import ReportSettings
from sacl.types import Cohort

_PAGE = "report.html"
_FILES = {"encoder": "4-encoder/embedding.npz", "curves": "losses.csv"}
"""Parts of the page that are left out, aloud, where their file is not there."""


def inputs(settings: ReportSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of all finished stages that the page describes, and its title."""
    needed = {stage: workspace.require(stage) for stage in ("ingest", "evaluate")}
    others = ("phantom", "locate", "extract", "pretrain", "finetune", "predict")
    there = {stage: workspace.folder(stage) for stage in others}
    finished = {s: f for s, f in there.items() if (f / "run.json").is_file()}
    prints = {stage: fingerprint(folder) for stage, folder in {**needed, **finished}.items()}
    return {**prints, "title": workspace.name}


def report(settings: ReportSettings, workspace: Workspace) -> Path:
    """Write the page from what the work directory holds, and return its path.

    A part whose files are not there is left out, and the page says so.

    Raises:
        WorkspaceError: ingest or evaluate has not finished.
    """
    with recorded(workspace, "report", settings, inputs(settings, workspace)) as (folder, _):
        cohort = with_phases(read_cohort(workspace.folder("ingest")), workspace.folder("locate"))
        records = _records(workspace)
        scores = workspace.folder("evaluate")
        summary, rows = read_summary(scores / "summary.json"), read_scores(scores / "scores.csv")
        labels = _scan_label_names(records)
        values = _scored(summary, rows)
        main = [row for row in rows if row.run == rows[0].run]
        if main:
            values |= {"pictures": _pictures(workspace, cohort, values["scans"], main[0].run)}
        parts = {
            "encoder": _encoder(workspace, cohort, " x ".join(labels)),
            "curves": _curves(workspace),
            "coverage": _coverage(workspace),
            "doubts": read_findings(workspace.folder("predict")).doubts,
        }
        values |= parts | {
            "title": workspace.name,
            "subtitle": f"{cohort.name}: {cohort.modality.upper()}, {split_words(cohort)}",
            "facts": run_facts(cohort, records, labels),
            "settings": settings_lines(records),
            "limits": limits(summary, phantom="phantom" in records),
            "left_out": [file for part, file in _FILES.items() if parts[part] is None],
        }
        write_text(folder / _PAGE, render("results.html", **values))
    return folder / _PAGE


def report_runs(works: Sequence[Path], out: Path, force: bool = False) -> Path:
    """Write one page that compares the runs of several work directories, and return `out`.

    Every run is compared with the first work directory's main run, on the scans and organs that
    all of them scored.

    Raises:
        DataError: two works were scored with different tolerances, or share no scan; or `out` is
            a file of the user's, and `force` is off.
        WorkspaceError: a work directory has not been evaluated.
    """
    require_ours(out, GENERATOR, force)
    if len({work.resolve() for work in works}) < len(works):
        raise DataError("report: a work directory is named twice; name each once")
    folders = {_name(work, works): Workspace(work).require("evaluate") for work in works}
    tolerances = {read_summary(f / "summary.json").nsd_tolerance_mm for f in folders.values()}
    if len(tolerances) > 1:
        raise DataError(
            f"report: NSD tolerances of {sorted(tolerances)} mm differ; evaluate all runs alike"
        )
    rows = in_common(
        {name: read_scores(f / "scores.csv") for name, f in folders.items()}, ["coarse"]
    )
    summary = summarize(rows, tolerances.pop())
    pairs = len({(row.score.case_id, row.score.organ) for row in rows})
    values = _scored(summary, rows) | {
        "title": "Runs compared",
        "subtitle": f"{len(works)} work directories, {pairs} pairs of scan and organ that all of"
        " them scored",
        "limits": limits(summary, phantom=False),
    }
    write_text(out, render("results.html", **values))
    return out


def _scored(summary: Summary, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Return what every page of results shows of the scores; the first run is the main one."""
    sentence, details = headline(summary)
    values: dict[str, Any] = {"headline": sentence, "details": details, "summary": summary}
    if rows:
        scores = score_table(rows)
        main = scores[scores["run"] == rows[0].run]
        values |= {
            "main": rows[0].run,
            "boxes": organ_boxes(scores),
            "run_colors": palette(list(summary.runs)),
            "scans": scan_lines(main),
            "poor": int((main["dice"] < POOR).sum()),
        }
    return values


def _name(work: Path, works: Sequence[Path]) -> str:
    """Return the work directory's name, with its parent's where two are named alike."""
    alike = sum(other.name == work.name for other in works) > 1
    return f"{work.parent.name}/{work.name}" if alike else work.name


def _records(workspace: Workspace) -> Records:
    """Return the records of the finished stages, in the order in which they ran."""
    records = {
        stage: read_record(workspace.folder(stage)) for stage in FOLDERS if stage != "report"
    }
    return {stage: record for stage, record in records.items() if record is not None}


def _scan_label_names(records: Records) -> tuple[str, ...]:
    """Return the names of the scan-wise labels that made the semantic classes."""
    settings = records["pretrain"].settings["pretrain"] if "pretrain" in records else {}
    name = settings.get("scan_label") or PHASE
    return (name,) if isinstance(name, str) else tuple(name)


def _pictures(workspace: Workspace, cohort: Cohort, lines: Sequence[ScanLine], run: str) -> Any:
    """Read the run's worst, median and best scans, and return their pictures."""
    home, cases = workspace.folder("ingest"), {case.case_id: case for case in cohort.cases}
    shown = []
    for role, line in shown_roles(lines).items():
        case = cases[line.case_id]
        reference = read_reference(home, case, cohort.scheme)
        path = workspace.folder("predict") / run / f"{case.case_id}.nii.gz"
        if reference is not None and path.is_file():
            predicted = only_annotated(read_label_map(path, cohort.scheme)[0], case.annotated)
            image = read_image(home, case)
            shown.append(ShownScan(role, line, image, case.window, reference, predicted))
    return pictures(shown) if shown else None


def _encoder(workspace: Workspace, cohort: Cohort, label: str) -> Any:
    path = workspace.folder("pretrain") / "embedding.npz"
    if not path.is_file():
        return None
    return encoder_part(read_embedding(path), cohort.scheme.names, label, workspace.seed)


def _curves(workspace: Workspace) -> Any:
    """Draw the losses of all networks that were trained, one panel per stage."""
    arms = sorted(workspace.folder("finetune").glob("*/losses.csv"))
    panels = {
        "coarse networks": _read_losses(workspace.folder("locate") / "losses.csv", "network"),
        "pretraining": _read_losses(workspace.folder("pretrain") / "losses.csv", "pretraining"),
        "fine-tuning": [curve for path in arms for curve in _read_losses(path, path.parent.name)],
    }
    panels = {title: curves for title, curves in panels.items() if curves}
    return loss_curves(panels) if panels else None


def _read_losses(path: Path, name: str) -> list[Curve]:
    """Read curves from a table of steps and losses, one per value of the column `network`."""
    if not path.is_file():
        return []
    table = pd.read_csv(path)
    if "network" in table:
        parts = [(f"{name} {key}", part) for key, part in table.groupby("network", sort=False)]
    else:
        parts = [(name, table)]
    return [Curve(n, part["step"].to_numpy(), part["loss"].to_numpy(float)) for n, part in parts]


def _coverage(workspace: Workspace) -> list[dict[str, Any]]:
    """Read in how many scans the coarse maps show each organ, how large it is, and its Dice."""
    path = workspace.folder("locate") / "coverage.csv"
    if not path.is_file():
        return []
    table = pd.read_csv(path, dtype={"case_id": str, "found": str})
    table["shown"] = table["found"].str.lower().isin(["true", "1"])
    return [
        {
            "organ": str(organ),
            "scans": len(part),
            "shown": int(part["shown"].sum()),
            "volume_ml": float(part.loc[part["shown"], "volume_ml"].median()),
            "dice": float(part["dice"].mean()),
        }
        for organ, part in table.groupby("organ", sort=False)
    ]
