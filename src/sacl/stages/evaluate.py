"""evaluate: predicted and reference label maps -> scores, with intervals over subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sacl.cohort.dataset import first_of
from sacl.cohort.manifest import read_cohort, read_reference
from sacl.errors import DataError
from sacl.files.arrays import label_map_of
from sacl.files.itk import labels_in
from sacl.prediction.guard import behind_coarse
from sacl.progress import say
from sacl.report.page import render
from sacl.run.record import RECORD, fingerprint, read_record, recorded
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import score_case
from sacl.scores.summary import (
    COARSE,
    ScoreRow,
    Summary,
    summarize,
    write_score_summary,
    write_scores,
)
from sacl.settings import EvaluateSettings
from sacl.types import LabelMap, LabelScheme

SCORES, SUMMARY = "scores.csv", "summary.json"


def inputs(settings: EvaluateSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of the stages that evaluation reads."""
    stages = ("ingest", *["locate"] * _has_coarse(workspace), "predict")
    return {stage: fingerprint(workspace.require(stage)) for stage in stages}


def _has_coarse(workspace: Workspace) -> bool:
    """Tell whether there are coarse maps; an external test has none."""
    return (workspace.folder("locate") / RECORD).is_file()


def evaluate(settings: EvaluateSettings, workspace: Workspace) -> Path:
    """Score all runs on the held-out scans, write `scores.csv` and `summary.json`.

    The runs are those that predicted, the main one first, and the coarse maps. All of them are
    scored on the same scans: those of validation and test that have a reference. The main run is
    compared with every other one, paired over subjects; not with the coarse maps.
    """
    with recorded(workspace, "evaluate", settings, inputs(settings, workspace)) as (folder, done):
        cohort = read_cohort(workspace.folder("ingest"))
        cases = cohort.held_out
        if not cases:
            say(
                "evaluate: no validation or test scan has a reference, so nothing is scored;"
                " hold labeled subjects out at ingest to get scores"
            )
        predicted = read_record(workspace.require("predict"))
        runs = tuple(predicted.results["scans"]) if predicted else ()
        maps = {run: workspace.folder("predict") / run for run in runs}
        if _has_coarse(workspace):
            maps[COARSE] = workspace.folder("locate") / "maps"
        tolerance_mm = settings.nsd_tolerance_mm
        work = partial(_open_runs, workspace.folder("ingest"), maps, tolerance_mm)
        names = [case.case_id for case in cases]
        rows = rows_of(workspace.engine.results_of(work, names, folder, Scored, "evaluate"))
        rows.sort(key=lambda row: list(maps).index(row.run))
        summary = write_all(folder, rows, tolerance_mm, workspace.seed, runs[1:])
        done.update(runs=list(maps), cases=len(cases), subjects=dict(summary.subjects))
        done["doubts"] = [doubt.text for doubt in behind_coarse(summary, names)]
        for text in done["doubts"]:
            say(f"evaluate: in doubt: {text}")
    return folder


@dataclass(frozen=True)
class Scored:
    """A scan's scores, in how its maps' headers contradict themselves, and a hash of its files."""

    rows: tuple[ScoreRow, ...]
    doubts: Mapping[str, str]
    key: str = ""


def _open_runs(
    home: Path, maps: Mapping[str, Path], tolerance_mm: float
) -> Callable[[str], Scored]:
    """Return what scores a scan in all runs, so that its reference is read once."""
    cohort = read_cohort(home)
    cases = {case.case_id: case for case in cohort.held_out}

    def score(name: str) -> Scored:
        case, doubts, rows = cases[name], dict[str, str](), list[ScoreRow]()
        reference = read_reference(home, case, cohort.scheme)
        assert reference is not None, "only cases with a reference are scored"
        organs = [organ for organ in cohort.scheme.names if organ in case.annotated]
        for run, folder in maps.items():
            path = folder / f"{name}.nii.gz"
            if not path.is_file():
                raise DataError(
                    f"{folder.name}: no label map of case {name}; run `sacl predict"
                    " CONFIG.yaml --force`"
                )
            predicted = read_map(path, cohort.scheme, doubts)
            scores = score_case(name, reference, predicted, organs, tolerance_mm, run)
            rows += [ScoreRow(run, case.subject_id, case.split, score) for score in scores]
        return Scored(tuple(rows), doubts)

    return score


def rows_of(scored: Mapping[str, Scored]) -> list[ScoreRow]:
    """Return the scores of all scans, and say which headers are in doubt."""
    doubts = [doubt for of in scored.values() for doubt in of.doubts.items()]
    if doubts:
        say(f"evaluate: {first_of(doubts, 'maps')}")
    return [row for of in scored.values() for row in of.rows]


def read_map(path: Path, scheme: LabelScheme, doubts: dict[str, str]) -> LabelMap:
    """Return a label map of any format; among the doubts is how its header contradicts itself."""
    voxels, grid, frame = labels_in(path)
    if frame.contradiction:
        doubts[f"{path.parent.name}/{path.name}"] = frame.contradiction
    return label_map_of(voxels, grid, scheme, path.name)


def write_all(
    folder: Path, rows: Sequence[ScoreRow], tolerance_mm: float, seed: int, rivals: Sequence[str]
) -> Summary:
    """Write both files and print the table."""
    summary = summarize(rows, tolerance_mm, seed=seed, rivals=rivals)
    write_scores(folder / SCORES, rows)
    write_score_summary(folder / SUMMARY, summary)
    if rows:
        say(render("scores.txt", summary=summary))
    return summary
