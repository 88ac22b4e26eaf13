"""Give every scan a coarse label map, by a network that never saw its subject."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from sacl.cohort.manifest import ScanPhase, read_cohort
from sacl.cohort.references import Decided
from sacl.files.documents import cell_text, write_table
from sacl.files.nifti import write_label_map
from sacl.prediction.given import GivenMaps, fingerprint_of_maps, look_through
from sacl.prediction.phases import can_estimate, phase_of_scan, record_phases
from sacl.progress import say
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import dice, volume_ml
from sacl.settings import LocateSettings
from sacl.stages.locate_networks import SEEN, Networks, trained_networks
from sacl.stages.scan import Scan, named_scans
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
        networks = None if given else trained_networks(settings, workspace, cohort)
        fold_of = networks.fold_of if networks else {}
        seen = sorted(subject for subject, fold in fold_of.items() if fold == SEEN)
        scored = [c.case_id for c in cohort.labeled if fold_of.get(c.subject_id, SEEN) != SEEN]
        estimates = can_estimate(cohort)
        work = partial(_open_locator, workspace, given, networks, scored, estimates)
        names, scan_of = [case.case_id for case in cohort.cases], named_scans(cohort, workspace)
        located = workspace.engine.results_of(
            work,
            names,
            folder,
            Located,
            "locate",
            is_there=lambda name: scan_of(name).coarse_path.is_file(),
        )
        coverage = pd.DataFrame([vars(row) for of in located.values() for row in of.coverage])
        write_coverage(folder / "coverage.csv", coverage)
        results.update(_summary(coverage, len(scored)))
        results["seen_by_every_network"] = seen
        if given:
            read = {case_id: (of.decided, of.unnamed) for case_id, of in located.items()}
            results["given"] = given.record(read)
        phases = [of.phase for of in located.values() if of.phase]
        results["phases"] = record_phases(folder, phases) if estimates else {}
    return folder


@dataclass(frozen=True)
class Coverage:
    """An organ in a coarse map: whether it is there, its volume, and its Dice if annotated."""

    case_id: str
    organ: str
    found: bool
    volume_ml: float
    dice: float


@dataclass(frozen=True)
class Located:
    """What a scan's coarse map holds, its phase, and what reading a given map decided."""

    coverage: tuple[Coverage, ...]
    phase: ScanPhase | None = None
    decided: Decided = ({}, "", "")
    unnamed: tuple[int, ...] = ()


def _open_locator(
    workspace: Workspace,
    given: GivenMaps | None,
    networks: Networks | None,
    scored: Collection[str],
    estimates: bool,
) -> Callable[[str], Located]:
    """Return what writes a scan's coarse map; `scored` are those whose reference judges theirs."""
    cohort = read_cohort(workspace.require("ingest"))
    scan_of = named_scans(cohort, workspace)
    locator = networks.locator(workspace, cohort) if networks else None

    def locate_case(name: str) -> Located:
        scan, source = scan_of(name), None
        case = scan.case
        if given:
            label_map, source = given.locate(case)
            write_label_map(scan.coarse_path, label_map)
        elif locator and not scan.coarse_path.is_file():
            label_map = locator(case)
            write_label_map(scan.coarse_path, label_map)
        else:
            label_map = scan.coarse
        rows = tuple(coverage_of(case, label_map, scan.reference if name in scored else None))
        how = cohort.phase_source, PHASE_THRESHOLD
        phase = phase_of_scan(case, scan.image, label_map, *how) if estimates else None
        if source is None:
            return Located(rows, phase)
        decided = source.contested, source.repair, source.contradiction
        return Located(rows, phase, decided, source.unnamed)

    return locate_case


def coverage_of(case: Case, label_map: LabelMap, reference: LabelMap | None) -> list[Coverage]:
    """Return one row per organ: whether the map holds it, its volume, and its Dice if annotated."""
    rows = []
    for organ in label_map.scheme.names:
        mask = label_map.mask(organ)
        judged = reference is not None and organ in case.annotated
        ml = round(volume_ml(mask, label_map.grid.voxel_ml), 3)
        score = dice(reference.mask(organ), mask) if reference and judged else math.nan
        rows.append(Coverage(case.case_id, organ, bool(mask.any()), ml, score))
    return rows


def dice_by_organ(coverage: pd.DataFrame) -> pd.Series[float]:
    """Return each organ's mean Dice over the scans in which it was judged."""
    return coverage.dropna(subset=["dice"]).groupby("organ", sort=False)["dice"].mean()


def write_coverage(path: Path, coverage: pd.DataFrame) -> None:
    """Write a row per scan and organ; names are written so that no spreadsheet runs them."""
    names = {name: coverage[name].map(cell_text) for name in ("case_id", "organ")}
    write_table(path, coverage.assign(**names))


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
