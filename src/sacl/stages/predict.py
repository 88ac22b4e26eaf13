"""predict: scans + segmenter -> label maps on the scans' own grids, judged by the coarse maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sacl.cohort.manifest import read_cohort
from sacl.files.nifti import read_label_map, write_label_map
from sacl.networks.device import time_passes
from sacl.patches.region import dense_boxes
from sacl.prediction import guard
from sacl.prediction.volume import MapRecipe, load_predictor, predict_volume, write_recipe
from sacl.progress import say, track
from sacl.run.record import fingerprint, read_record, recorded, segmenter_of
from sacl.run.workspace import Workspace
from sacl.settings import PredictSettings
from sacl.stages.reserve import recipe_that_fits
from sacl.stages.scan import Scan, named_scans
from sacl.types import Cohort

_SAID = 8


def inputs(settings: PredictSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    stages = ("ingest", "locate", "finetune")
    return {stage: fingerprint(workspace.require(stage)) for stage in stages}


def predict(settings: PredictSettings, workspace: Workspace) -> Path:
    """Write a label map per scan, on the grid of the scan's own file, and return the folder.

    What the maps lose against the coarse maps is said and recorded; an organ that vanishes in most
    scans, or is clearly better in the coarse maps, is taken from those.

    Raises:
        DataError: some scans could not be predicted; the others are.
    """
    with recorded(workspace, "predict", settings, inputs(settings, workspace)) as (folder, results):
        cohort = read_cohort(workspace.require("ingest"))
        arm = segmenter_of(workspace)
        recipe = recipe_that_fits(settings, arm, workspace, cohort)
        done = workspace.engine.results_of(
            partial(_open_predictor, arm, recipe, workspace),
            [case.case_id for case in cohort.cases],
            folder,
            Changes,
            "predict",
            is_there=lambda name: _map_of(arm, name, workspace).is_file(),
        )
        changes = [change for of_scan in done.values() for change in of_scan.organs]
        findings = _judged(changes, workspace, cohort)
        if findings.from_coarse:
            _take_from_coarse(arm, findings.from_coarse, workspace, cohort)
        write_recipe(folder, replace(recipe, from_coarse=findings.from_coarse))
        results["copies"] = recipe.copies
        results["scans"] = {arm: len(cohort.cases)}
        results["doubts"] = [doubt.text for doubt in findings.doubts]
        results["from_coarse"] = list(findings.from_coarse)
    return folder


@dataclass(frozen=True)
class Changes:
    """What a scan's final map changed against its coarse map, organ by organ."""

    organs: tuple[guard.Change, ...]


def _open_predictor(arm: str, recipe: MapRecipe, workspace: Workspace) -> Callable[[str], Changes]:
    """Load the segmenter, and return what predicts a scan and compares it with its coarse map."""
    cohort = read_cohort(workspace.require("ingest"))
    scan_of = named_scans(cohort, workspace)
    predictor = load_predictor(workspace.require("finetune") / arm, workspace.device, recipe)
    spec = predictor.spec
    time_passes(predictor.network, predictor.device, len(cohort.cases))
    located = read_record(workspace.require("locate"))
    given = located is not None and "given" in located.results

    def predict_case(name: str) -> Changes:
        scan = scan_of(name)
        case = scan.case
        coarse = scan.coarse if predictor.needs_coarse else None
        final = predict_volume(predictor, scan.image, case.window, coarse)
        boxes = dense_boxes(spec.placement, final.grid, scan.coarse) if spec.head == "dense" else ()
        reference = scan.reference if case.split != "test" and case.reference else None
        unseen = True if case.split == "validation" else None if given else False
        changes = guard.changes_of(case, scan.coarse, final, boxes, reference, unseen)
        write_label_map(_map_of(arm, name, workspace), final, case.native)
        return Changes(tuple(changes))

    return predict_case


def _judged(
    changes: Sequence[guard.Change], workspace: Workspace, cohort: Cohort
) -> guard.Findings:
    """Say, write and return what is to be doubted of the maps."""
    test = {case.case_id for case in cohort.of_split("test")}
    lost = guard.organs_to_take_from_coarse(row for row in changes if row.case_id not in test)
    findings = guard.find_doubts(changes, lost)
    if lost:
        of = f"{len(lost)} of {len(cohort.scheme.names)} organs"
        say(
            f"predict: {of} are taken from the coarse maps; in the final maps they are lost or"
            f" worse: {', '.join(lost)}"
        )
    doubts = [doubt for doubt in findings.doubts if doubt.organ not in lost]
    for doubt in doubts[:_SAID]:
        say(f"predict: in doubt: {doubt.text}")
    if len(doubts) > _SAID:
        say(f"predict: {len(doubts) - _SAID} more doubts; see {guard.FINDINGS_FILE}")
    guard.write_findings(workspace.folder("predict"), findings)
    return findings


def _take_from_coarse(
    arm: str, organs: Sequence[str], workspace: Workspace, cohort: Cohort
) -> None:
    """Put some organs of the coarse maps into the maps; twice is as good as once."""
    for case in track(cohort.cases, f"take {', '.join(organs)} from the coarse maps"):
        path, coarse = _map_of(arm, case.case_id, workspace), Scan(case, cohort, workspace).coarse
        final = read_label_map(path, cohort.scheme)[0]
        write_label_map(path, guard.with_organs_of(final, coarse, organs), case.native)


def _map_of(arm: str, name: str, workspace: Workspace) -> Path:
    return workspace.folder("predict") / arm / f"{name}.nii.gz"
