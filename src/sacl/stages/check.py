"""check: any cohort -> a page, a table and a list of what is the matter, before any training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from sacl.check.cohort_checks import CohortFacts, check_cohort, likely_modality
from sacl.check.facts import ScanFacts, all_organs, measure_case
from sacl.check.findings import Finding
from sacl.check.page import (
    MARK,
    TABLE_MARK,
    CheckRecord,
    check_page,
    check_record,
    scan_table,
)
from sacl.check.source import INGESTED, dataset_of
from sacl.cohort.convert import plan_cohort
from sacl.cohort.dataset import Dataset
from sacl.cohort.splits import SplitRules
from sacl.errors import DataError, SaclError
from sacl.files.atomic import require_ours, write_text
from sacl.plan.document import USUAL_TIME, make_plan
from sacl.plan.facts import MeasuredScan, task_facts
from sacl.plan.holdout import hold_out_of
from sacl.plan.machine import measure_machine
from sacl.plan.rules import Choice, Situation, kinds_of
from sacl.progress import track
from sacl.report.page import GENERATOR
from sacl.run.clock import seconds_of
from sacl.settings import IngestSettings, RunConfig


def check(
    config: RunConfig, out: Path, force: bool = False, given: Mapping[str, Any] | None = None
) -> CheckRecord:
    """Look at every scan of a cohort once, and write `out` with a `.csv` and a `.json` beside it.

    Nothing is trained and nothing converted. Scans are read one at a time; one that cannot be read
    is a finding, and the check goes on. Splits are those that a run with these settings would have.

    Args:
        config: `ingest` says where the data lie (a folder or table of any layout, a work directory
            or its `1-cohort`).
        out: The HTML file.
        force: Overwrite files of these names that are not of a check.
        given: The user's choices, where a run would plan all others; None where it would not.

    Raises:
        ConfigError: there is no data to look at.
        DataError: the data cannot even be listed, or nothing can be written.
    """
    table, document = out.with_suffix(".csv"), out.with_suffix(".json")
    for path, mark in ((out, GENERATOR), (table, TABLE_MARK), (document, MARK)):
        require_ours(path, mark, force)
    dataset, origin = dataset_of(config.ingest, config.work)
    ingest, held = _held_out(dataset, config, given)
    scans = tuple(measure_case(case, dataset) for case in track(dataset.cases, "check"))
    scans, findings = _as_ingested(scans, dataset, ingest, config.seed)
    asked = config.ingest.modality
    known = dataset.modality if asked == "auto" else asked
    cohort = CohortFacts(dataset.name, all_organs(dataset), scans, known or likely_modality(scans))
    findings += check_cohort(cohort)
    if config.ingest.repair_grid != "none":
        repaired = {"label-grid": "resampled-reference"}
        findings = [replace(f, code=repaired.get(f.code, f.code)) for f in findings]
    plan = _plan(cohort, config, held, given or {})
    record = check_record(cohort, findings, origin, dataset.notes, plan)
    write_text(table, scan_table(cohort, findings))
    write_text(document, json.dumps(record.as_json(), indent=1, allow_nan=False) + "\n")
    write_text(out, check_page(cohort, record))
    return record


def _held_out(
    dataset: Dataset, config: RunConfig, given: Mapping[str, Any] | None
) -> tuple[IngestSettings, Choice | str]:
    """Return the settings of ingest as a run would have them, and who is held out.

    It is a text where nothing is planned: empty, or what stops the plan.
    """
    ingest = config.ingest
    if given is None or dataset.layout == INGESTED:
        return ingest, ""
    try:
        held = hold_out_of(dataset, ingest, config.seed)
    except DataError as error:
        return ingest, f"nothing: {error}"
    if held.setting in given:
        return ingest, held
    return msgspec.structs.replace(ingest, validation_subjects=held.value), held


def _plan(
    cohort: CohortFacts, config: RunConfig, held: Choice | str, given: Mapping[str, Any]
) -> list[str]:
    """Return what a run would do, in lines."""
    measured = [scan for scan in cohort.scans if scan.geometry is not None]
    if isinstance(held, str) or not measured:
        return [held] if isinstance(held, str) and held else []
    facts = task_facts(cohort.name, cohort.modality, cohort.organs, list(map(_measured, measured)))
    machine = measure_machine(config.device)
    time = config.time or USUAL_TIME
    situation = Situation(facts, machine, seconds_of(time), given)
    kinds = kinds_of(facts) if not situation.gives("locate") else ()
    trial = f"between coarse networks on {' and '.join(kinds)} a trial decides, if time allows"
    return [*make_plan(time, "", held, situation).lines(), *[trial] * (len(kinds) > 1)]


def _measured(scan: ScanFacts) -> MeasuredScan:
    geometry, reference = scan.geometry, scan.reference if scan.labeled else None
    assert geometry is not None, "scans without one are left out"
    return MeasuredScan(
        subject_id=scan.subject_id,
        split=scan.split,
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        scan_labels=scan.scan_labels,
        labeled=scan.labeled,
        annotated=reference.annotated if reference else (),
        organs={o: f.extent for o, f in reference.present.items()} if reference else None,
    )


def _as_ingested(
    scans: Sequence[ScanFacts], dataset: Dataset, ingest: IngestSettings, seed: int
) -> tuple[tuple[ScanFacts, ...], list[Finding]]:
    """Return the scans with the splits and labels that ingest gives them, and what stops it.

    Settings that were given and the cohort does not allow are an error; defaults are a warning.
    """
    if dataset.layout == INGESTED:
        return tuple(scans), []
    rules = SplitRules.of(ingest)
    try:
        plan = plan_cohort(dataset, ingest.organs, rules, seed)
    except SaclError as error:
        code = "cannot-ingest" if ingest.organs or rules != SplitRules() else "needs-settings"
        return tuple(scans), [Finding(code, "", " ".join(str(error).split()))]
    used = {case.case_id: case for case in plan.dataset.cases if plan.shows(case)}
    split_of = {case.case_id: case.split for case in plan.dataset.cases}
    scans = tuple(
        replace(scan, split=split_of[scan.case_id], labeled=scan.case_id in used) for scan in scans
    )
    scored = any(case.split != "train" for case in used.values())
    nothing = Finding("nothing-to-score", "", "no validation or test scan has a reference")
    return scans, [] if scored else [nothing]
