"""Score predicted against reference label maps, with intervals and paired tests over subjects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sacl.cohort.label_names import scheme_of_folders
from sacl.cohort.manifest import read_cohort, read_reference
from sacl.errors import DataError
from sacl.files.atomic import write_text
from sacl.files.nifti import is_nifti, read_label_map, stem
from sacl.geometry import require_same_grid
from sacl.progress import say, track
from sacl.report.tables import plain_table, score_cell
from sacl.run.record import fingerprint, read_record, recorded
from sacl.run.workspace import Workspace
from sacl.scores.scoring import score_case
from sacl.scores.summary import summarize
from sacl.scores.table import ScoreRow, write_scores
from sacl.settings import EvaluateSettings
from sacl.types import Case, LabelMap, LabelScheme, Split

SCORED: tuple[Split, ...] = ("validation", "test")
RESAMPLES = 5000
"""Of the bootstrap over subjects."""
COARSE = "coarse"
"""Name under which the coarse maps are scored: the bound of what the query head starts from."""


def inputs(settings: EvaluateSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of the stages that evaluation reads."""
    stages = ("ingest", "locate", "predict")
    return {stage: fingerprint(workspace.require(stage)) for stage in stages}


def evaluate(settings: EvaluateSettings, workspace: Workspace) -> Path:
    """Score all runs on the held-out scans, write `scores.csv` and `summary.json`.

    The runs are the predictions of every arm, the pretrained one first, and the coarse maps. All
    of them are scored on the same scans: those held out that have a reference.

    Raises:
        DataError: a scan was not predicted, or its map lies on another grid.
        WorkspaceError: an earlier stage has not finished.
    """
    with recorded(workspace, "evaluate", settings, inputs(settings, workspace)) as (folder, done):
        cases = _scored_cases(workspace)
        maps = {
            **{arm: workspace.folder("predict") / arm for arm in _arms(workspace)},
            COARSE: workspace.folder("locate") / "maps",
        }
        rows = list(_score_runs(workspace, cases, maps, settings.nsd_tolerance_mm))
        rows.sort(key=lambda row: list(maps).index(row.run))
        summary = _write(folder, rows, settings, workspace.seed)
        done.update(runs=list(maps), cases=len(cases), subjects=summary["subjects"])
    return folder


def evaluate_folders(
    reference: Path, predicted: Path, out: Path, settings: EvaluateSettings
) -> Path:
    """Score any folder of label maps against another one, matched by file name; return `out`.

    Organs are named by the label table in the files, by `dataset.json` in the reference folder or
    beside it, or else `label_1`, `label_2` and so on. Each scan counts as a subject of its own.

    Raises:
        DataError: a folder has no map, a reference has no counterpart, the grids of a pair differ,
            or two files name a label differently.
    """
    pairs = _pairs(reference, predicted)
    scheme = scheme_of_folders(reference, predicted)
    rows = []
    for case_id, (path_r, path_p) in track(pairs.items(), "scoring scans", len(pairs)):
        map_r, map_p = (read_label_map(path, scheme)[0] for path in (path_r, path_p))
        require_same_grid(map_r.grid, map_p.grid, f"case {case_id}")
        scores = score_case(case_id, map_r, map_p, scheme.names, settings.nsd_tolerance_mm)
        rows += [ScoreRow("predicted", case_id, "test", score) for score in scores]
    out.mkdir(parents=True, exist_ok=True)
    _write(out, rows, settings, seed=0)
    return out


def _scored_cases(workspace: Workspace) -> list[Case]:
    cohort = read_cohort(workspace.folder("ingest"))
    cases = [case for case in cohort.cases if case.split in SCORED and case.reference is not None]
    if not cases:
        say(
            f"evaluate: no scan of the splits {', '.join(SCORED)} has a reference,"
            " nothing is scored; hold annotated subjects out at ingest to get scores"
        )
    return cases


def _arms(workspace: Workspace) -> list[str]:
    """Return the predicted arms, the main one first as fine-tuning recorded it."""
    folder = workspace.folder("predict")
    there = sorted(path.name for path in folder.iterdir() if path.is_dir())
    record = read_record(workspace.folder("finetune")) or {}
    known = [arm for arm in record.get("results", {}).get("arms", []) if arm in there]
    arms = known or sorted(there, key=lambda arm: (arm.startswith("scratch"), arm))
    if not arms:
        raise DataError(f"{folder.name}: no predictions; run `sacl predict --force`")
    return arms


def _score_runs(
    workspace: Workspace, cases: Sequence[Case], maps: Mapping[str, Path], tolerance_mm: float
) -> Iterator[ScoreRow]:
    """Yield the scores scan by scan, so that each reference is read once."""
    cohort = read_cohort(workspace.folder("ingest"))
    for case in track(cases, "scoring scans"):
        reference = read_reference(workspace.folder("ingest"), case, cohort.scheme)
        assert reference is not None
        organs = [organ for organ in cohort.scheme.names if organ in case.annotated]
        for run, folder in maps.items():
            predicted = _read_map(folder, case, cohort.scheme)
            require_same_grid(reference.grid, predicted.grid, f"case {case.case_id}, run {run}")
            for score in score_case(case.case_id, reference, predicted, organs, tolerance_mm):
                yield ScoreRow(run, case.subject_id, case.split, score)


def _read_map(folder: Path, case: Case, scheme: LabelScheme) -> LabelMap:
    path = folder / f"{case.case_id}.nii.gz"
    if not path.is_file():
        raise DataError(
            f"{folder.name}: no label map of case {case.case_id}; run `sacl predict --force`"
        )
    return read_label_map(path, scheme)[0]


def _pairs(reference: Path, predicted: Path) -> dict[str, tuple[Path, Path]]:
    found_r, found_p = _label_maps(reference), _label_maps(predicted)
    missing = [name for name in found_r if name not in found_p]
    if missing:
        raise DataError(
            f"{predicted.name}: no label map for {len(missing)} of {len(found_r)} references, the"
            f" first is {missing[0]}; name both files alike"
        )
    extra = len(found_p) - len(found_r)
    if extra:
        say(f"evaluate: {extra} predicted maps have no reference and are not scored")
    return {name: (path, found_p[name]) for name, path in found_r.items()}


def _label_maps(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {stem(path): path for path in paths if is_nifti(path)}
    if not found:
        raise DataError(f"{folder.name}: no NIfTI label map in this folder; name another one")
    return found


def _write(
    folder: Path, rows: Sequence[ScoreRow], settings: EvaluateSettings, seed: int
) -> dict[str, Any]:
    """Write both files and print the table."""
    summary = {
        "nsd_tolerance_mm": settings.nsd_tolerance_mm,
        **summarize(rows, untested=[COARSE], resamples=RESAMPLES, seed=seed),
    }
    write_scores(folder / "scores.csv", rows)
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    if rows:
        say(_table(summary))
    return summary


def _table(summary: Mapping[str, Any]) -> str:
    """Return the runs' means with intervals and the Holm-corrected p of the Dice, as text."""
    p_of = {c["against"]: c["p_holm"] for c in summary["comparisons"] if c["metric"] == "dice"}
    body = [
        [
            run,
            score_cell(figures["dice"]),
            score_cell(figures["nsd"]),
            score_cell(figures["hd95_mm"], digits=1),
            "" if p_of.get(run) is None else f"{p_of[run]:.3g}",
        ]
        for run, figures in summary["runs"].items()
    ]
    return plain_table(["run", "Dice", "NSD", "HD95 mm", "p (Holm)"], body)
