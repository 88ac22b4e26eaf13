"""check: any cohort -> a page, a table and a list of what is wrong, before any training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sacl.check.cohort_checks import CohortFacts, check_cohort, likely_modality
from sacl.check.facts import ScanFacts, all_organs, measure_case
from sacl.check.findings import Finding
from sacl.check.page import MARK, TABLE_MARK, CheckRecord, check_page, check_record, scan_table
from sacl.check.source import INGESTED, dataset_of, foresee, foresee_split
from sacl.cohort.convert import plan_cohort
from sacl.cohort.dataset import Dataset
from sacl.cohort.splits import SplitRules
from sacl.errors import SaclError
from sacl.files.atomic import require_ours, write_text
from sacl.progress import track
from sacl.report.page import GENERATOR
from sacl.settings import IngestSettings, RunConfig


def check(
    config: RunConfig, out: Path, force: bool = False, given: Mapping[str, Any] | None = None
) -> CheckRecord:
    """Look at every scan of a cohort once, and write `out` with a `.csv` and a `.json` beside it.

    Nothing is trained and nothing converted. Scans are read one at a time; one that cannot be read
    is a finding, and the check goes on. The data may be a work directory too, or its `1-cohort`;
    what cannot even be listed is refused. Splits are those that a run with these settings would
    have; `given` are the user's choices where it would plan all others. `force` overwrites files
    that are not of a check.
    """
    table, document = out.with_suffix(".csv"), out.with_suffix(".json")
    for path, mark in ((out, GENERATOR), (table, TABLE_MARK), (document, MARK)):
        require_ours(path, mark, force)
    dataset, origin = dataset_of(config.ingest, config.work)
    ingest, held = foresee_split(dataset, config, given)
    scans = tuple(measure_case(case, dataset) for case in track(dataset.cases, "check"))
    scans, findings = _as_ingested(scans, dataset, ingest, config.seed)
    asked = config.ingest.modality
    known = dataset.modality if asked == "auto" else asked
    cohort = CohortFacts(dataset.name, all_organs(dataset), scans, known or likely_modality(scans))
    findings += check_cohort(cohort)
    if config.ingest.repair_grid != "none":
        repaired = {"label-grid": "resampled-reference"}
        findings = [replace(f, code=repaired.get(f.code, f.code)) for f in findings]
    plan = foresee(cohort, config, held, given or {})
    record = check_record(cohort, findings, origin, dataset.notes, plan)
    write_text(table, scan_table(cohort, findings))
    write_text(document, json.dumps(record.as_json(), indent=1, allow_nan=False) + "\n")
    write_text(out, check_page(cohort, record, out.stem))
    return record


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
