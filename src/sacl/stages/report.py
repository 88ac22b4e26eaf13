"""report: a work directory -> one self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sacl.cohort.manifest import read_cohort, read_image, read_reference, with_phases
from sacl.files.atomic import write_text
from sacl.files.nifti import read_label_map
from sacl.plan.document import read_plan
from sacl.prediction.guard import read_findings
from sacl.report import figures, results
from sacl.report.page import number, render
from sacl.run.record import RECORD, fingerprint, read_record, recorded
from sacl.run.workspace import FOLDERS, Workspace
from sacl.scores.summary import read_scores, read_summary
from sacl.settings import ReportSettings
from sacl.types import Cohort

_PAGE = "report.html"


def inputs(settings: ReportSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of all finished stages that the page describes, and its title."""
    needed = {stage: workspace.require(stage) for stage in ("ingest", "evaluate")}
    there = {stage: workspace.folder(stage) for stage in FOLDERS if stage != "report"}
    finished = {stage: f for stage, f in there.items() if (f / RECORD).is_file()}
    prints = {stage: fingerprint(folder) for stage, folder in {**needed, **finished}.items()}
    return {**prints, "title": workspace.name}


def report(settings: ReportSettings, workspace: Workspace) -> Path:
    """Write the page from what the work directory holds, and return its path.

    A part whose files are not there is left out, and the page says so.
    """
    with recorded(workspace, "report", settings, inputs(settings, workspace)) as (folder, _):
        cohort = with_phases(read_cohort(workspace.folder("ingest")), workspace.folder("locate"))
        stages = [stage for stage in FOLDERS if stage != "report"]
        there = {stage: read_record(workspace.folder(stage)) for stage in stages}
        records = {stage: record for stage, record in there.items() if record}
        scored = workspace.folder("evaluate")
        scores = results.scores_part(read_scores(scored / "scores.csv"))
        label = results.label_of_classes(records)
        page = render(
            "run.html",
            title=workspace.name,
            cohort=cohort,
            subjects=results.split_words(cohort),
            summary=read_summary(scored / "summary.json"),
            scores=scores,
            pictures=_pictures(workspace, cohort, scores) if scores else None,
            doubts=read_findings(workspace.folder("predict")).doubts,
            curves=_curves(workspace),
            chosen=_chosen(workspace, records),
            coverage=results.read_coverage(workspace.folder("locate") / "coverage.csv"),
            records=records,
            label=label,
            label_counts=Counter(case.scan_label(label) for case in cohort.cases),
        )
        write_text(folder / _PAGE, page)
    return folder / _PAGE


def _chosen(workspace: Workspace, records: results.Records) -> dict[str, str]:
    """Return what the run's plan chose, as the stages were run, and why."""
    plan = read_plan(workspace.root)
    if plan is None:
        return {}
    remarks = [choice.because for choice in plan.choices if not choice.setting]
    chosen = {"Cohort": "; ".join([plan.headline, *remarks])}
    settings = {stage: record.settings.get(stage) for stage, record in records.items()}
    for choice in filter(lambda choice: choice.setting, plan.choices):
        used: Any = settings
        for part in choice.setting.split("."):
            used = used.get(part) if isinstance(used, Mapping) else None
        if choice.value in (used, None) and used is not None:
            value = "" if choice.value is None else used
            chosen[f"{choice.setting} {value}"] = choice.because
        elif used is not None:
            why = f"yours; the plan had {choice.value}, since {choice.because}"
            chosen[f"{choice.setting} {used}"] = why
    return chosen


def _pictures(
    workspace: Workspace, cohort: Cohort, scores: results.ScoresPart
) -> figures.Pictures | None:
    """Read the main run's worst, median and best scans, and return their pictures."""
    home, cases = workspace.folder("ingest"), {case.case_id: case for case in cohort.cases}
    shown = []
    for role, line in results.shown_roles(scores.scans).items():
        case = cases[line.case_id]
        reference = read_reference(home, case, cohort.scheme)
        path = workspace.folder("predict") / scores.main / f"{case.case_id}.nii.gz"
        if reference is not None and path.is_file():
            predicted = figures.only_annotated(
                read_label_map(path, cohort.scheme)[0], case.annotated
            )
            caption = f"{case.case_id}, mean Dice {number(line.dice)}"
            image = read_image(home, case)
            scan = figures.ShownScan(
                role.capitalize(), caption, image, case.window, reference, predicted
            )
            shown.append(scan)
    return figures.pictures(shown) if shown else None


def _curves(workspace: Workspace) -> Markup | None:
    """Draw the losses of all networks that were trained, one panel per stage."""
    arms = sorted(workspace.folder("finetune").glob("*/losses.csv"))
    coarse, encoder = (workspace.folder(s) / "losses.csv" for s in ("locate", "pretrain"))
    panels = {
        "coarse networks": results.read_losses(coarse, "locate", "network"),
        "pretraining": results.read_losses(encoder, "pretrain", "pretraining"),
        "fine-tuning": [
            c for arm in arms for c in results.read_losses(arm, "finetune", arm.parent.name)
        ],
    }
    panels = {title: curves for title, curves in panels.items() if curves}
    return figures.loss_curves(panels) if panels else None
