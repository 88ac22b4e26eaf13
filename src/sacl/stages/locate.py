"""Give every scan a coarse label map, by a network that never saw its subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sacl.cohort.manifest import read_cohort
from sacl.files.documents import cell_text, write_table
from sacl.files.nifti import write_label_map
from sacl.prediction.given import fingerprint_of_maps, look_through
from sacl.prediction.phases import estimate_phases
from sacl.progress import say, track
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import dice, volume_ml
from sacl.settings import LocateSettings
from sacl.stages.locate_networks import FOLDS, SEEN, Locator, deal_folds, network_locator
from sacl.stages.scan import Scan
from sacl.types import Case, LabelMap

PHASE_THRESHOLD = 0.8
"""Least probability of an estimated contrast phase; below it the phase stays `unknown`."""


def inputs(settings: LocateSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    fingerprints = {"ingest": fingerprint(workspace.require("ingest"))}
    if settings.maps is not None:
        fingerprints["source"] = fingerprint_of_maps(settings.maps.source)
    return fingerprints


def locate(settings: LocateSettings, workspace: Workspace) -> Path:
    """Write a coarse label map per case, which organs it holds, and the scans' phases.

    The labeled subjects are dealt to folds, and each fold's network is trained on the others. A
    scan of a labeled subject is located by its own fold's network, every other scan by the mean of
    all networks; so no scan is located by a network that saw a reference of its subject, but where
    nobody else shows its organs (`seen_by_every_network` in the record, without scores). With
    `settings.maps` nothing is trained: the maps are those given, cleaned in the same way.
    """
    with recorded(workspace, "locate", settings, inputs(settings, workspace)) as (folder, results):
        cohort = read_cohort(workspace.require("ingest"))
        given = None
        if (maps := settings.maps) is not None:
            grids = {c.case_id: Scan(c, cohort, workspace).image.grid for c in cohort.cases}
            how = maps.repair_grid == "nearest", maps.allow_missing
            given = look_through(maps.source, cohort.scheme, grids, *how)
        locator = given.locate if given else network_locator(settings, workspace, cohort)
        fold_of = {} if given else deal_folds(cohort, FOLDS)
        seen = sorted(subject for subject, fold in fold_of.items() if fold == SEEN)
        scored = [c.case_id for c in cohort.labeled if fold_of.get(c.subject_id, SEEN) != SEEN]
        rows = []
        for case in track(cohort.cases, "locate"):
            scan = Scan(case, cohort, workspace)
            label_map = _located_once(scan, locator, resumes=given is None)
            rows += coverage_of(case, label_map, scan.reference if case.case_id in scored else None)
        coverage = pd.DataFrame(rows)
        write_coverage(folder / "coverage.csv", coverage)
        results.update(_summary(coverage, len(scored)))
        results["seen_by_every_network"] = seen
        if given:
            results["given"] = given.record()
        ingested = workspace.folder("ingest")
        results["phases"] = estimate_phases(cohort, ingested, folder, PHASE_THRESHOLD)
    return folder


def coverage_of(
    case: Case, label_map: LabelMap, reference: LabelMap | None
) -> list[dict[str, object]]:
    """Return one row per organ: whether the map holds it, its volume, and its Dice if annotated."""
    rows = []
    for organ in label_map.scheme.names:
        mask = label_map.mask(organ)
        judged = reference is not None and organ in case.annotated
        rows.append(
            {
                "case_id": case.case_id,
                "organ": organ,
                "found": bool(mask.any()),
                "volume_ml": round(volume_ml(mask, label_map.grid.voxel_ml), 3),
                "dice": dice(reference.mask(organ), mask) if reference and judged else np.nan,
            }
        )
    return rows


def dice_by_organ(coverage: pd.DataFrame) -> pd.Series[float]:
    """Return each organ's mean Dice over the scans in which it was judged."""
    return coverage.dropna(subset=["dice"]).groupby("organ", sort=False)["dice"].mean()


def write_coverage(path: Path, coverage: pd.DataFrame) -> None:
    """Write a row per scan and organ; names are written so that no spreadsheet runs them."""
    names = {name: coverage[name].map(cell_text) for name in ("case_id", "organ")}
    write_table(path, coverage.assign(**names))


def _located_once(scan: Scan, locator: Locator, resumes: bool) -> LabelMap:
    """Return a case's map; to resume, read what an interrupted run has written."""
    if resumes and scan.coarse_path.is_file():
        return scan.coarse
    label_map = locator(scan.case)
    write_label_map(scan.coarse_path, label_map)
    return label_map


def _summary(coverage: pd.DataFrame, scans: int) -> dict[str, object]:
    """Return, and say, what the maps hold and how well they agree with the references."""
    missed = int((~coverage["found"]).sum())
    words = f"{missed} of {len(coverage)} organs missing"
    by_organ = {}
    for organ, rows in coverage.groupby("organ", sort=False):
        held_ml = rows.loc[rows["found"], "volume_ml"]
        median_ml = round(float(held_ml.median()), 2) if len(held_ml) else 0.0
        by_organ[str(organ)] = {"found": len(held_ml), "scans": len(rows), "median_ml": median_ml}
    summary: dict[str, object] = {
        "organs": {"located": len(coverage), "not_found": missed},
        "coverage": by_organ,
    }
    scores = dice_by_organ(coverage)
    if len(scores):
        mean = float(scores.mean())
        of_organs = {str(organ): round(float(value), 4) for organ, value in scores.items()}
        summary["cross_fitted"] = {"scans": scans, "mean_dice": round(mean, 4), "dice": of_organs}
        words = f"Dice {mean:.2f} on {scans} cross-fitted labeled scans; {words}"
    parts = (
        f"{organ} in {n['scans'] - n['found']} of {n['scans']} scans"
        for organ, n in by_organ.items()
        if n["found"] < n["scans"]
    )
    words += f" ({', '.join(parts)}; see coverage.csv)" if missed else ""
    say(f"locate: {words}")
    return summary
