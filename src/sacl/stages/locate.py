"""Give every scan a coarse label map, by a network that never saw its subject."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from sacl.cohort.layouts.label_maps import given_fingerprint, survey_maps
from sacl.cohort.manifest import read_cohort, read_image
from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.files.nifti import read_label_map, write_label_map
from sacl.prediction.coarse import together
from sacl.prediction.given import (
    Cleaning,
    Tally,
    announce,
    locate_given,
    record_of,
    require_grids,
)
from sacl.prediction.phases import estimate_phases
from sacl.progress import say, track
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.scores.overlap import dice, volume_ml
from sacl.settings import LocateSettings, MapsSettings
from sacl.stages.locate_networks import fold_name, reference_of, train_networks
from sacl.training.coarse import KEEP_COMPONENT, MIN_VOLUME_ML
from sacl.training.folds import deal_folds
from sacl.types import Case, Cohort, LabelMap

FOLDS = 3
"""Cross-fitting folds over the labeled subjects; as many as subjects where there are fewer."""
PHASE_THRESHOLD = 0.8
"""Least probability of an estimated contrast phase; below it the phase stays `unknown`."""

Locator = Callable[[Case], LabelMap]
Summary = Callable[[], dict[str, object]]
"""What to record of the located maps, asked for after the last one."""


def inputs(settings: LocateSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads.

    Raises:
        DataError: the given label maps are not there.
    """
    found = {"ingest": fingerprint(workspace.require("ingest"))}
    if settings.maps is not None:
        source = settings.maps.source
        is_json = source.suffix == ".json" and source.is_file()
        if not source.is_dir() and not is_json:
            raise DataError(f"locate.maps.source: no folder {source}; check --from")
        found["source"] = given_fingerprint(source)
    return found


def locate(settings: LocateSettings, workspace: Workspace) -> Path:
    """Write a coarse label map per case, which organs were found, and the scans' phases.

    The labeled subjects are dealt to folds, and each fold's network is trained on the others. A
    scan of a labeled subject is located by its own fold's network, every other scan by the mean of
    all networks; so no scan is located by a network that saw a reference of its subject. With
    `settings.maps` nothing is trained: the maps are those given, cleaned in the same way.

    Raises:
        DataError: fewer than 2 subjects are labeled, or annotated for an organ; or a given map is
            missing, lies on another grid, or has labels without names.
    """
    with recorded(workspace, "locate", settings, inputs(settings, workspace)) as (folder, results):
        cohort = read_cohort(workspace.require("ingest"))
        locator, cross_fitted, summary = (
            _by_networks(settings, workspace, cohort)
            if settings.maps is None
            else _by_given_maps(settings.maps, workspace, cohort)
        )
        rows = []
        for case in track(cohort.cases, "locate"):
            label_map = _located_once(folder, case, locator, cohort, settings.maps is None)
            is_scored = case.case_id in cross_fitted
            reference = reference_of(workspace, case, cohort) if is_scored else None
            rows += coverage_of(case, label_map, reference)
        coverage = pd.DataFrame(rows)
        with replacing(folder / "coverage.csv") as temporary:
            coverage.to_csv(temporary, index=False)
        _summarize(coverage, len(cross_fitted), results)
        results.update(summary())
        results["phases"] = estimate_phases(cohort, workspace, PHASE_THRESHOLD)
    return folder


def coverage_of(
    case: Case, label_map: LabelMap, reference: LabelMap | None
) -> list[dict[str, object]]:
    """Return one row per organ: found or not, its volume, and its Dice where it is annotated."""
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


def _located_once(
    folder: Path, case: Case, locator: Locator, cohort: Cohort, resumes: bool
) -> LabelMap:
    """Return a case's map; to resume, read what an interrupted run has written."""
    path = folder / "maps" / f"{case.case_id}.nii.gz"
    if resumes and path.is_file():
        return read_label_map(path, cohort.scheme)[0]
    label_map = locator(case)
    write_label_map(path, label_map)
    return label_map


def _summarize(coverage: pd.DataFrame, cross_fitted: int, results: dict[str, object]) -> None:
    missed = int((~coverage["found"]).sum())
    results["organs"] = {"located": len(coverage), "not_found": missed}
    results["coverage"] = _by_organ(coverage)
    words = f"{missed} of {len(coverage)} organs not found"
    scored = coverage.dropna(subset=["dice"])
    if len(scored):
        by_organ = scored.groupby("organ", sort=False)["dice"].mean()
        results["cross_fitted"] = {
            "scans": cross_fitted,
            "mean_dice": round(float(by_organ.mean()), 4),
            "dice": {str(organ): round(float(value), 4) for organ, value in by_organ.items()},
        }
        words = f"Dice {by_organ.mean():.2f} on {cross_fitted} cross-fitted labeled scans; {words}"
    say(f"coarse: {words}")


def _by_organ(coverage: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return, and say, in how many scans an organ was found and the median volume in those."""
    found: dict[str, dict[str, float]] = {}
    for organ, rows in coverage.groupby("organ", sort=False):
        volumes = rows.loc[rows["found"], "volume_ml"]
        median = round(float(volumes.median()), 2) if len(volumes) else 0.0
        found[str(organ)] = {"found": len(volumes), "scans": len(rows), "median_ml": median}
    told = (f"{o} {n['found']}/{n['scans']} ({n['median_ml']:g} ml)" for o, n in found.items())
    say(f"coarse: found in scans, with the median volume: {', '.join(told)}")
    return found


def _by_given_maps(
    settings: MapsSettings, workspace: Workspace, cohort: Cohort
) -> tuple[Locator, frozenset[str], Summary]:
    ingested = workspace.folder("ingest")
    grids = {case.case_id: read_image(ingested, case).grid for case in cohort.cases}
    remedy = "add them, or go on without these scans by --locate.maps.allow_missing true"
    names = [case.case_id for case in cohort.cases]
    survey = survey_maps(settings.source, names, cohort.scheme, settings.allow_missing, remedy)
    announce(survey, cohort.scheme)
    cleaning = Cleaning(settings.repair_grid == "nearest", KEEP_COMPONENT, MIN_VOLUME_ML)
    require_grids(survey, grids, cleaning.repairs_grid)
    tally = Tally()

    def locator(case: Case) -> LabelMap:
        grid = grids[case.case_id]
        label_map, given = locate_given(case, survey, grid, cohort.scheme, cleaning)
        if given is not None:
            tally.add(case.case_id, given)
        return label_map

    return locator, frozenset(), lambda: {"given": record_of(survey, tally)}


def _by_networks(
    settings: LocateSettings, workspace: Workspace, cohort: Cohort
) -> tuple[Locator, frozenset[str], Summary]:
    fold_of = deal_folds(cohort, FOLDS)
    networks = train_networks(settings, workspace, cohort, fold_of)
    every = together(list(networks.values()))

    def locator(case: Case) -> LabelMap:
        fold = fold_of.get(case.subject_id)
        ensemble = every if fold is None else networks[fold_name(fold)]
        located = ensemble.locate(read_image(workspace.folder("ingest"), case), case.window)
        return LabelMap(located.voxels, located.grid, cohort.scheme)

    return locator, frozenset(case.case_id for case in cohort.labeled), dict
