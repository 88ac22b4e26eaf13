"""Write one self-contained HTML page on a run, or on several."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sacl.cohort.manifest import read_cohort, read_image, read_reference, with_phases
from sacl.errors import DataError
from sacl.files.atomic import write_text
from sacl.files.nifti import read_label_map
from sacl.phase_words import PHASE
from sacl.report.background import Records, limits_section, run_section, subtitle
from sacl.report.embedding import Embedding
from sacl.report.figures import Curve
from sacl.report.headline import headline
from sacl.report.overlay import extremes, only_annotated
from sacl.report.page import Section, Top, render_page
from sacl.report.pictures import (
    ShownScan,
    embedding_section,
    scan_section,
    training_section,
)
from sacl.report.results import (
    comparison_section,
    failure_section,
    organ_section,
    run_colors,
)
from sacl.run.record import fingerprint, read_record, recorded
from sacl.run.workspace import FOLDERS, Workspace
from sacl.scores.pooling import in_common
from sacl.scores.summary import score_table, summarize
from sacl.scores.table import ScoreRow, read_scores
from sacl.settings import PretrainSettings, ReportSettings
from sacl.types import Cohort

_PAGE = "report.html"
_RESAMPLES = 5000
_EMBEDDED = 1500
"""Query patches shown in the map of the embedding."""


def inputs(settings: ReportSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of all finished stages that the page tells about."""
    needed = {stage: workspace.require(stage) for stage in ("ingest", "evaluate")}
    others = ("phantom", "locate", "extract", "pretrain", "finetune", "predict")
    there = {stage: workspace.folder(stage) for stage in others}
    finished = {s: f for s, f in there.items() if (f / "run.json").is_file()}
    return {stage: fingerprint(folder) for stage, folder in {**needed, **finished}.items()}


def report(settings: ReportSettings, workspace: Workspace) -> Path:
    """Write the page from what the work directory holds, and return its path.

    A part whose files are not there is left out, and the page says so.

    Raises:
        WorkspaceError: ingest or evaluate has not finished.
    """
    with recorded(workspace, "report", settings, inputs(settings, workspace)) as (folder, _):
        cohort, records = read_cohort(workspace.folder("ingest")), _records(workspace)
        cohort = with_phases(cohort, workspace.folder("locate"))
        scores = workspace.folder("evaluate")
        summary = json.loads((scores / "summary.json").read_text(encoding="utf-8"))
        rows = read_scores(scores / "scores.csv")
        text, details = headline(summary)
        top = Top(workspace.name, subtitle(cohort, records), text, details)
        labels = _scan_label_names(records)
        sections = [
            *_result_sections(workspace, cohort, summary, rows),
            _embedding_part(workspace, cohort, " x ".join(labels)),
            training_section(_curves(workspace), run_colors(summary)),
            run_section(cohort, records, labels),
            limits_section(summary, phantom="phantom" in records),
        ]
        write_text(folder / _PAGE, render_page(top, sections))
    return folder / _PAGE


def report_runs(works: Sequence[Path], out: Path) -> Path:
    """Write one page that compares the runs of several work directories, and return `out`.

    Every run is compared with the first work directory's main run, on the scans and organs that
    all of them scored.

    Raises:
        DataError: two works were scored with different tolerances, or share no scan.
        WorkspaceError: a work directory has not been evaluated.
    """
    if len({work.resolve() for work in works}) < len(works):
        raise DataError("report: a work directory is named twice; name each once")
    folders = {_name(work, works): Workspace(work).require("evaluate") for work in works}
    summaries = [json.loads((f / "summary.json").read_text("utf-8")) for f in folders.values()]
    tolerances = {summary["nsd_tolerance_mm"] for summary in summaries}
    if len(tolerances) > 1:
        raise DataError(
            f"report: NSD tolerances of {sorted(tolerances)} mm differ; evaluate all runs alike"
        )
    rows = in_common(
        {name: read_scores(f / "scores.csv") for name, f in folders.items()}, ["coarse"]
    )
    summary = {
        "nsd_tolerance_mm": tolerances.pop(),
        **summarize(rows, resamples=_RESAMPLES, seed=0),
    }
    scores, (text, details) = score_table(rows), headline(summary)
    pairs = len(scores[["case_id", "organ"]].drop_duplicates())
    note = f"{len(works)} work directories, {pairs} pairs of scan and organ that all of them scored"
    sections = [
        comparison_section(summary),
        organ_section(summary, scores),
        failure_section(summary, scores, None),
        limits_section(summary, phantom=False),
    ]
    write_text(out, render_page(Top("Runs compared", note, text, details), sections))
    return out


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


def _settings(records: Records, stage: str) -> Mapping[str, Any]:
    return records[stage]["settings"][stage] if stage in records else {}


def _scan_label_names(records: Records) -> tuple[str, ...]:
    """Return the names of the scan-wise labels that made the semantic classes."""
    recorded_label = _settings(records, "pretrain").get("scan_label", PHASE)
    label = recorded_label if isinstance(recorded_label, str) else tuple(recorded_label)
    return PretrainSettings(scan_label=label).scan_label_names


def _part(title: str, needed: Sequence[Path], build: Callable[[], Section]) -> Section:
    """Return a section, or where a file it needs is not there a note that says so."""
    missing = [f"{path.parent.name}/{path.name}" for path in needed if not path.exists()]
    if missing:
        return Section(title, note=f"Left out: {', '.join(missing)} is not in the work directory.")
    return build()


def _result_sections(
    workspace: Workspace, cohort: Cohort, summary: Mapping[str, Any], rows: Sequence[ScoreRow]
) -> list[Section]:
    if not rows:
        return []
    scores, path = score_table(rows), workspace.folder("locate") / "coverage.csv"
    coverage = None
    if path.is_file():
        coverage = pd.read_csv(path, dtype={"case_id": str, "found": str})
        coverage["found"] = coverage["found"].str.lower().isin(["true", "1"])
    return [
        comparison_section(summary),
        _scan_part(workspace, cohort, rows),
        organ_section(summary, scores),
        failure_section(summary, scores, coverage),
    ]


def _scan_part(workspace: Workspace, cohort: Cohort, rows: Sequence[ScoreRow]) -> Section:
    run = rows[0].run
    title, folder = "Best, median and worst scan", workspace.folder("predict") / run
    scans = _shown_scans(workspace, cohort, rows)
    return _part(title, [folder], lambda: scan_section(run, scans)) if scans else Section(title)


def _shown_scans(workspace: Workspace, cohort: Cohort, rows: Sequence[ScoreRow]) -> list[ShownScan]:
    """Read the first run's best, median and worst scan by mean Dice over organs."""
    scores = score_table(rows)
    run, home = rows[0].run, workspace.folder("ingest")
    dice = scores[scores["run"] == run].groupby("case_id")["dice"].mean()
    cases = {case.case_id: case for case in cohort.cases}
    shown = []
    for role, case_id in extremes({str(c): float(d) for c, d in dice.items()}).items():
        reference = read_reference(home, cases[case_id], cohort.scheme)
        path = workspace.folder("predict") / run / f"{case_id}.nii.gz"
        if reference is not None and path.is_file():
            predicted = read_label_map(path, cohort.scheme)[0]
            shown.append(
                ShownScan(
                    role=role,
                    case_id=case_id,
                    dice=float(dice[case_id]),
                    image=read_image(home, cases[case_id]),
                    window=cases[case_id].window,
                    reference=reference,
                    predicted=only_annotated(predicted, cases[case_id].annotated),
                )
            )
    return shown


def _curves(workspace: Workspace) -> dict[str, list[Curve]]:
    """Read the losses of all networks that were trained, one panel per stage."""
    arms = sorted(workspace.folder("finetune").glob("*/losses.csv"))
    panels = {
        "coarse networks": _read_losses(workspace.folder("locate") / "losses.csv", "network"),
        "pretraining": _read_losses(workspace.folder("pretrain") / "losses.csv", "pretraining"),
        "fine-tuning": [curve for path in arms for curve in _read_losses(path, path.parent.name)],
    }
    return {title: curves for title, curves in panels.items() if curves}


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


def _embedding_part(workspace: Workspace, cohort: Cohort, label: str) -> Section:
    path = workspace.folder("pretrain") / "embedding.npz"
    return _part(
        "What the encoder learned",
        [path],
        lambda: embedding_section(
            read_embedding(path),
            cohort.scheme.names,
            label,
            _EMBEDDED,
            workspace.seed,
        ),
    )


def read_embedding(path: Path) -> Embedding:
    """Return the embedding that pretraining wrote, `embedding.npz`."""
    with np.load(path, allow_pickle=False) as arrays:
        return Embedding(**{field.name: arrays[field.name] for field in fields(Embedding)})
