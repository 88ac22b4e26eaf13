"""report: a work directory -> one HTML page, and beside it one per scan to scroll through."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sacl.cohort.manifest import read_cohort, read_image, read_reference, with_phases
from sacl.files.atomic import replacing, write_text
from sacl.files.nifti import read_label_map
from sacl.plan.document import RunPlan, read_plan
from sacl.prediction.guard import behind_coarse, read_findings
from sacl.progress import track
from sacl.report import results
from sacl.report.page import render
from sacl.report.pictures import ShownScan, data_uri, only_annotated, reels, strip, telling_slices
from sacl.run.record import RECORD, fingerprint, read_record, recorded
from sacl.run.workspace import FOLDERS, Workspace
from sacl.scores.summary import ScoreRow, read_scores, read_summary
from sacl.settings import ReportSettings
from sacl.types import Case, Cohort, OrganScore

_PAGE = "report.html"
_SCANS = "scans"


@dataclass(frozen=True)
class _Run:
    """What all pages are about: a cohort, its folder and that of its label maps, with their link.

    `label` is the scan-wise label that made the semantic classes.
    """

    title: str
    label: str
    cohort: Cohort
    home: Path
    folder: Path
    maps: str

    @property
    def colors(self) -> dict[str, str]:
        return results.organ_colors(self.cohort.scheme)

    def case(self, case_id: str) -> Case:
        return next(case for case in self.cohort.cases if case.case_id == case_id)

    def path(self, case_id: str) -> Path:
        return self.folder / f"{case_id}.nii.gz"


def inputs(settings: ReportSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of all finished stages that the page describes, and its title."""
    needed = {stage: workspace.require(stage) for stage in ("ingest", "evaluate")}
    there = {stage: workspace.folder(stage) for stage in FOLDERS if stage != "report"}
    finished = {stage: f for stage, f in there.items() if (f / RECORD).is_file()}
    prints = {stage: fingerprint(folder) for stage, folder in {**needed, **finished}.items()}
    return {**prints, "title": workspace.name}


def report(settings: ReportSettings, workspace: Workspace) -> Path:
    """Write the pages from what the work directory holds, and return the path of the first one.

    It holds all its figures and the pictures of the scans in doubt, so that it can be sent alone;
    the pages and the pictures of all scans lie in `scans` beside it. A part whose files are not
    there is left out, and the page says so.
    """
    with recorded(workspace, "report", settings, inputs(settings, workspace)) as (folder, _):
        cohort = with_phases(read_cohort(workspace.folder("ingest")), workspace.folder("locate"))
        stages = [stage for stage in FOLDERS if stage != "report"]
        there = {stage: read_record(workspace.folder(stage)) for stage in stages}
        records = {stage: record for stage, record in there.items() if record}
        scored = workspace.folder("evaluate")
        rows = read_scores(scored / "scores.csv")
        # the run that was scored first, or would have been
        runs = [row.run for row in rows[:1]] or records["evaluate"].results.get("runs", [])
        maps = workspace.folder("predict").joinpath(*runs[:1])
        label = results.label_of_classes(records)
        home, link = workspace.folder("ingest"), _link(maps, folder)
        run = _Run(workspace.name, label, cohort, home, maps, link)
        scores = results.scores_part(rows, list(_unscored(run, rows)))
        summary, plan = read_summary(scored / "summary.json"), read_plan(workspace.root)
        behind = behind_coarse(summary, sorted({row.score.case_id for row in rows}))
        page = render(
            "run.html",
            run=run,
            subjects=results.split_words(cohort),
            summary=summary,
            scores=scores,
            pictured=_write_scans(run, scores, folder / _SCANS) if scores else [],
            tables=_link(scored, folder),
            doubts=(*behind, *read_findings(workspace.folder("predict")).doubts),
            curves=results.curves(workspace),
            chosen=_chosen(plan, records) if plan else {},
            facts=plan.facts if plan else None,
            coverage=results.read_coverage(workspace.folder("locate") / "coverage.csv"),
            records=records,
            label_counts=Counter(case.scan_label(label) for case in cohort.cases),
        )
        write_text(folder / _PAGE, page)
    return folder / _PAGE


def _link(path: Path, start: Path) -> str:
    """Return a path as a link from a folder's pages."""
    return Path(os.path.relpath(path, start)).as_posix()


def _unscored(run: _Run, rows: Sequence[ScoreRow]) -> Iterator[ScoreRow]:
    """Yield the volumes of all organs that were not scored, in every label map that is there."""
    scored = {(row.score.case_id, row.score.organ) for row in rows if row.run == run.folder.name}
    names, nothing = run.cohort.scheme.names, math.nan
    for case in track(run.cohort.cases, "measure label maps"):
        organs = [organ for organ in names if (case.case_id, organ) not in scored]
        if organs and run.path(case.case_id).is_file():
            label_map = read_label_map(run.path(case.case_id), run.cohort.scheme)[0]
            slices = label_map.voxels.T
            counts = [np.bincount(one.ravel("K"), minlength=len(names) + 1) for one in slices]
            voxels = np.sum(counts, axis=0)
            for organ in organs:
                ml = float(voxels[label_map.scheme.label_of(organ)]) * label_map.grid.voxel_ml
                score = OrganScore(case.case_id, organ, *(nothing,) * 4, predicted_ml=ml)
                yield ScoreRow(run.folder.name, case.subject_id, case.split, score)


def _write_scans(
    run: _Run, scores: results.ScoresPart, folder: Path
) -> list[tuple[str, results.ScanLine, str]]:
    """Write a page and a strip of three planes per scan; return roles with their scans and strips.

    What is returned is to be shown on the first page.
    """
    lines = [line for line in scores.scans if run.path(line.case_id).is_file()]
    names = [None, *(line.case_id for line in lines), None]
    roles = results.shown_roles(lines)
    uris: dict[str, str] = {}
    for n, line in enumerate(track(lines, "draw scans")):
        case = run.case(line.case_id)
        scan, at = _shown(run, case, line)
        content = strip(scan, at)
        if line in roles.values():
            uris[line.case_id] = data_uri(content)
        with replacing(folder / f"{line.case_id}.webp") as temporary:
            temporary.write_bytes(content)
        values = {"line": line, "case": case, "before": names[n], "after": names[n + 2]}
        page = render("scan.html", run=run, **values, reels=reels(scan, at))
        write_text(folder / f"{line.case_id}.html", page)
    return [(role, line, uris[line.case_id]) for role, line in roles.items()]


def _shown(run: _Run, case: Case, line: results.ScanLine) -> tuple[ShownScan, tuple[int, int, int]]:
    """Read a scan, and choose its slices: where most is wrong, else where most is in doubt."""
    image, scheme = read_image(run.home, case), run.cohort.scheme
    predicted = read_label_map(run.path(case.case_id), scheme)[0]
    reference = read_reference(run.home, case, scheme)
    doubtful = [scheme.label_of(organ.organ) for organ in line.doubtful]
    where = np.isin(predicted.voxels, doubtful)
    if reference is not None:
        where = reference.voxels != only_annotated(predicted, case.annotated).voxels
    at = telling_slices(where if where.any() else predicted.voxels > 0)
    drawn = None if reference is None else reference.voxels
    return ShownScan(image.voxels, image.grid.spacing_mm, case.window, predicted.voxels, drawn), at


def _chosen(plan: RunPlan, records: results.Records) -> dict[str, str]:
    """Return what the run's plan chose, as the stages were run, and why."""
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
