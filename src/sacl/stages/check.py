"""check: any cohort -> a page, a table and a list of what is the matter, before any training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacl.check.case_facts import all_organs, measure_case
from sacl.check.cohort_checks import CohortFacts, check_cohort, likely_modality
from sacl.check.findings import Finding
from sacl.check.page import check_page
from sacl.check.record import cohort_record, scan_table
from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.layouts.dicom import DicomExport
from sacl.cohort.layouts.recognize import find
from sacl.cohort.manifest import MANIFEST, read_cohort
from sacl.cohort.merging import merge
from sacl.cohort.splits import with_fold
from sacl.cohort.tables import with_table
from sacl.dicom.pseudonyms import KEY
from sacl.dicom.verdict import SeriesRule
from sacl.errors import ConfigError
from sacl.files.atomic import write_text
from sacl.files.nifti import read_volume
from sacl.progress import track
from sacl.run.workspace import FOLDERS
from sacl.settings import RunConfig
from sacl.types import Case, Cohort, NativeFrame, Volume

_SCAN_LABELS = "scan_labels.csv"


@dataclass(frozen=True, eq=False)
class Checked:
    """A finished check: the cohort's facts, all findings, and the record that was written."""

    cohort: CohortFacts
    findings: tuple[Finding, ...]
    record: Mapping[str, Any]


def check(config: RunConfig, out: Path) -> Checked:
    """Look at every scan of a cohort once, and write `out` with a `.csv` and a `.json` beside it.

    Nothing is trained and nothing converted. Scans are read one at a time; one that cannot be read
    is a finding, and the check goes on.

    Args:
        config: `ingest` says where the data lie (a folder or table of any layout, a work directory
            or its `1-cohort`).
        out: The HTML file.

    Raises:
        ConfigError: there is no data to look at.
        DataError: the data cannot even be listed, or nothing can be written.
    """
    found, origin = _found(config)
    scans = tuple(measure_case(case, found) for case in track(found.cases, "check"))
    asked = config.ingest.modality
    known = found.modality if asked == "auto" else asked
    cohort = CohortFacts(found.name, all_organs(found), scans, known or likely_modality(scans))
    findings = _repaired(check_cohort(cohort), config)
    record = {
        **cohort_record(cohort, findings),
        "origin": origin,
        "notes": list(found.notes),
    }
    write_text(out.with_suffix(".csv"), scan_table(cohort, findings))
    write_text(out.with_suffix(".json"), json.dumps(record, indent=1, allow_nan=False) + "\n")
    write_text(out, check_page(cohort, findings, record))
    return Checked(cohort, tuple(findings), record)


def _found(config: RunConfig) -> tuple[Dataset, str]:
    """List the cases of all sources, and tell in a few words what they are read as."""
    sources = config.ingest.data
    if not sources:
        made = sorted((config.work / FOLDERS["phantom"]).glob("*/dataset.json"))
        if not made:
            raise ConfigError("check: no data to look at; give a folder, or run `sacl phantom`")
        sources = (made[0].parent,)
    founds = [_listed(source, config) for source in sources]
    found = merge([found for found, _ in founds])
    if config.ingest.scan_labels is not None:
        found = with_table(found, config.ingest.scan_labels)
    return found, "; ".join(dict.fromkeys(origin for _, origin in founds))


def _listed(source: Path, config: RunConfig) -> tuple[Dataset, str]:
    for folder in (source, source / FOLDERS["ingest"]):
        if (folder / MANIFEST).is_file():
            return _from_manifest(folder, read_cohort(folder)), "canonical volumes of a run"
    ingest, key = config.ingest, config.work / KEY
    rule = SeriesRule(ingest.modality, ingest.series)
    # Nothing is written but the page: only a key that a run has made gives its pseudonyms.
    export = DicomExport(rule, key if key.is_file() else None)
    found, reason = find(source, ingest.layout, export)
    found = with_fold(found, source, ingest.fold)
    beside = source / _SCAN_LABELS
    if (ingest.scan_labels is None or len(ingest.data) > 1) and beside.is_file():
        found = with_table(found, beside)
    return found, f"read as {found.layout}, by {reason}"


def _from_manifest(folder: Path, cohort: Cohort) -> Dataset:
    """Return an ingested cohort as any other dataset, each scan with the frame of its own file."""

    def case_of(entry: Case) -> SourceCase:
        path = folder / entry.image

        def load() -> tuple[Volume, NativeFrame]:
            return read_volume(path)[0], entry.native

        return SourceCase(
            case_id=entry.case_id,
            image=path,
            reference=folder / entry.reference if entry.reference else None,
            split=entry.split,
            subject_id=entry.subject_id,
            scan_labels=entry.scan_labels,
            origin=MANIFEST,
            annotated=entry.annotated,
            load=load,
        )

    organs = dict(enumerate(cohort.scheme.names, start=1))
    cases = tuple(case_of(entry) for entry in cohort.cases)
    return Dataset("cohort.json", cohort.name, organs, cases, modality=cohort.modality)


def _repaired(findings: Sequence[Finding], config: RunConfig) -> list[Finding]:
    """Return the findings, with another grid as a note where the settings have it repaired."""
    if config.ingest.repair_grid == "none":
        return list(findings)
    return [
        dataclasses.replace(f, code="resampled-reference") if f.code == "label-grid" else f
        for f in findings
    ]
