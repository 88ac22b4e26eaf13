"""evaluate: predicted and reference label maps -> scores, with intervals over subjects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sacl.cohort.dataset import first_of
from sacl.cohort.label_names import left_unpaired, pair_maps, scheme_of_folders
from sacl.cohort.manifest import read_cohort, read_reference
from sacl.errors import DataError
from sacl.files.atomic import require_ours
from sacl.files.nifti import read_label_map
from sacl.progress import say, track
from sacl.report.page import render
from sacl.run.record import RECORD, fingerprint, read_record, recorded
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import score_case
from sacl.scores.summary import (
    COLUMNS,
    ScoreRow,
    Summary,
    summarize,
    write_score_summary,
    write_scores,
)
from sacl.settings import EvaluateSettings
from sacl.types import Case, LabelMap, LabelScheme

COARSE = "coarse"
"""Name under which the coarse maps are scored: the bound of what the query head starts from."""
_SCORES, _SUMMARY = "scores.csv", "summary.json"


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
                "evaluate: no scan of the splits validation and test has a reference, nothing"
                " is scored; hold annotated subjects out at ingest to get scores"
            )
        predicted = read_record(workspace.require("predict"))
        runs = tuple(predicted.results["scans"]) if predicted else ()
        maps = {run: workspace.folder("predict") / run for run in runs}
        if _has_coarse(workspace):
            maps[COARSE] = workspace.folder("locate") / "maps"
        rows = list(_score_runs(workspace, cases, maps, settings.nsd_tolerance_mm))
        rows.sort(key=lambda row: list(maps).index(row.run))
        summary = _write(folder, rows, settings.nsd_tolerance_mm, workspace.seed, runs[1:])
        done.update(runs=list(maps), cases=len(cases), subjects=dict(summary.subjects))
    return folder


def evaluate_folders(
    reference: Path,
    predicted: Path,
    out: Path,
    settings: EvaluateSettings,
    *,
    allow_missing: bool = False,
    force: bool = False,
) -> Path:
    """Score any folder of label maps against another one, matched by file name; return `out`.

    `c7_0000.nii.gz` and `c7.nii` are the same case. Organs are named by the label table in the
    files, by `dataset.json` in the reference folder or beside it, or else `label_1`, `label_2` and
    so on; two names of a label are refused. Each scan counts as a subject of its own. A map without
    a counterpart is refused, or said with `allow_missing`, which scores the pairs there are. Files
    of the user's are overwritten with `force` alone.
    """
    for name, mark in ((_SCORES, ",".join(COLUMNS)), (_SUMMARY, '"nsd_tolerance_mm"')):
        require_ours(out / name, mark, force)
    pairs = pair_maps(reference, predicted, allow_missing)
    for note in left_unpaired(reference, predicted, pairs) if allow_missing else ():
        say(f"evaluate: {note}")
    scheme = scheme_of_folders(reference, predicted)
    rows: list[ScoreRow] = []
    doubts: dict[str, str] = {}
    for case_id, paths in track(pairs.items(), "scoring scans", len(pairs)):
        map_r, map_p = (_read_map(path, scheme, doubts) for path in paths)
        scores = score_case(case_id, map_r, map_p, scheme.names, settings.nsd_tolerance_mm)
        rows += [ScoreRow("predicted", case_id, "test", score) for score in scores]
    _say_doubts(doubts)
    _write(out, rows, settings.nsd_tolerance_mm, seed=0)
    return out


def _score_runs(
    workspace: Workspace, cases: Sequence[Case], maps: Mapping[str, Path], tolerance_mm: float
) -> Iterator[ScoreRow]:
    """Yield the scores scan by scan, so that each reference is read once."""
    scheme = read_cohort(workspace.folder("ingest")).scheme
    doubts: dict[str, str] = {}
    for case in track(cases, "scoring scans"):
        reference = read_reference(workspace.folder("ingest"), case, scheme)
        assert reference is not None, "only cases with a reference are scored"
        organs = [organ for organ in scheme.names if organ in case.annotated]
        for run, folder in maps.items():
            path = folder / f"{case.case_id}.nii.gz"
            if not path.is_file():
                raise DataError(
                    f"{folder.name}: no label map of case {case.case_id}; run `sacl predict"
                    " CONFIG.yaml --force`"
                )
            predicted = _read_map(path, scheme, doubts)
            for score in score_case(case.case_id, reference, predicted, organs, tolerance_mm, run):
                yield ScoreRow(run, case.subject_id, case.split, score)
    _say_doubts(doubts)


def _read_map(path: Path, scheme: LabelScheme, doubts: dict[str, str]) -> LabelMap:
    """Return a label map, and keep among the doubts how its header contradicts itself."""
    label_map, frame = read_label_map(path, scheme)
    if frame.contradiction:
        doubts[f"{path.parent.name}/{path.name}"] = frame.contradiction
    return label_map


def _say_doubts(doubts: Mapping[str, str]) -> None:
    if doubts:
        say(f"evaluate: {first_of(list(doubts.items()), 'maps')}")


def _write(
    folder: Path,
    rows: Sequence[ScoreRow],
    tolerance_mm: float,
    seed: int,
    rivals: Sequence[str] = (),
) -> Summary:
    """Write both files and print the table."""
    summary = summarize(rows, tolerance_mm, seed=seed, rivals=rivals)
    write_scores(folder / _SCORES, rows)
    write_score_summary(folder / _SUMMARY, summary)
    if rows:
        say(render("scores.txt", summary=summary))
    return summary
