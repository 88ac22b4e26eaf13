"""A check's results: a record (JSON), a table with a row per scan (CSV), a page, a few lines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from sacl.check.cohort_checks import CohortFacts, adult_range_ml
from sacl.check.facts import ScanFacts
from sacl.check.findings import Finding, Level, count_by_level, grouped
from sacl.files.documents import cell_text
from sacl.report.page import render
from sacl.report.pictures import data_uri
from sacl.types import SPLITS, UNKNOWN, Split

MARK = '"program": "sacl check"'
"""What the JSON has near its start."""
TABLE_MARK = "case_id,subject_id,split,labeled"
"""What the table starts with."""


@dataclass(frozen=True)
class SplitCounts:
    """Subjects and scans of a split; labeled are those whose reference a run would use."""

    subjects: int
    scans: int
    labeled: int
    unlabeled: int


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """What a check says of a cohort: where it comes from, how much there is, what is the matter.

    `scan_labels` counts scans by label, value and split, `annotation` by organ and state; `kinds`
    are the kinds of findings by level.
    """

    name: str
    modality: str
    origin: str
    organs: tuple[str, ...]
    scans: int
    subjects: int
    splits: Mapping[Split, SplitCounts]
    scan_labels: Mapping[str, Mapping[str, Mapping[Split, int]]]
    annotation: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]
    kinds: Mapping[Level, int]
    findings: tuple[Finding, ...]
    plan: tuple[str, ...] = ()

    @property
    def groups(self) -> list[list[Finding]]:
        """The findings by kind, the graver kinds first."""
        return list(grouped(self.findings).values())

    def as_text(self) -> str:
        """Return what the command line says: a table of the splits, and the findings by kind."""
        return render("check.txt", record=self)

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON types, each finding with its level, title and remedy."""
        findings = [
            {
                "level": finding.level,
                "code": finding.code,
                "title": finding.rule.title,
                "case_id": finding.case_id or None,
                "message": finding.message,
                "remedy": finding.rule.remedy,
            }
            for finding in self.findings
        ]
        return {"program": "sacl check", **asdict(self), "findings": findings}


def check_record(
    cohort: CohortFacts,
    findings: Sequence[Finding],
    origin: str = "",
    notes: Sequence[str] = (),
    plan: Sequence[str] = (),
) -> CheckRecord:
    """Return the record of a check; the graver findings come first."""
    return CheckRecord(
        name=cohort.name,
        modality=cohort.modality,
        origin=origin,
        organs=cohort.organs,
        scans=len(cohort.scans),
        subjects=len({scan.subject_id for scan in cohort.scans}),
        splits={split: _split_counts(cohort, split) for split in SPLITS},
        scan_labels={name: _label_counts(cohort, name) for name in cohort.scan_label_names()},
        annotation={organ: _states(cohort, organ) for organ in cohort.organs},
        notes=tuple(notes),
        plan=tuple(plan),
        kinds=count_by_level(findings),
        findings=tuple(f for group in grouped(findings).values() for f in group),
    )


def scan_table(cohort: CohortFacts, findings: Sequence[Finding]) -> str:
    """Return a CSV with a row per scan; an organ's column holds its volume in mL, or its state."""
    codes = _codes(findings)
    rows = [_row(s, cohort) | {"findings": " ".join(codes[s.case_id])} for s in cohort.scans]
    return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")


def _split_counts(cohort: CohortFacts, split: Split) -> SplitCounts:
    scans = [scan for scan in cohort.scans if scan.split == split]
    labeled = sum(scan.labeled for scan in scans)
    subjects = len({scan.subject_id for scan in scans})
    return SplitCounts(subjects, len(scans), labeled, len(scans) - labeled)


def _label_counts(cohort: CohortFacts, name: str) -> dict[str, dict[Split, int]]:
    """Return how many scans have each value of a scan-wise label, by split; unknown last."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for scan in cohort.scans:
        values[scan.scan_labels.get(name, UNKNOWN)][scan.split] += 1
    ordered = sorted(values, key=lambda value: (value == UNKNOWN, value))
    return {value: {s: values[value][s] for s in SPLITS} for value in ordered}


def _states(cohort: CohortFacts, organ: str) -> dict[str, int]:
    states = Counter(scan.state_of(organ) for scan in cohort.scans)
    return {state: states[state] for state in ("annotated", "absent", "not annotated")}


def _row(scan: ScanFacts, cohort: CohortFacts) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case_id": cell_text(scan.case_id),
        "subject_id": cell_text(scan.subject_id),
        "split": scan.split,
        "labeled": "yes" if scan.labeled else "no",
    }
    for name in cohort.scan_label_names():
        row[cell_text(name)] = cell_text(scan.scan_labels.get(name, UNKNOWN))
    if geometry := scan.geometry:
        row["nx"], row["ny"], row["nz"] = geometry.shape
        row["x_mm"], row["y_mm"], row["z_mm"] = (round(mm, 4) for mm in geometry.spacing_mm)
        row |= {"orientation": geometry.orientation, "tilt_deg": round(geometry.tilt_deg, 2)}
    if image := scan.image:
        names = ("low", "p005", "median", "p995", "high")
        row |= {name: f"{getattr(image, name):g}" for name in names}
        row["voxels"] = image.digest
    for organ in cohort.organs:
        facts = scan.reference.present.get(organ) if scan.reference else None
        row[f"{organ} mL"] = f"{facts.volume_ml:.4g}" if facts else scan.state_of(organ)
    return row


def _codes(findings: Iterable[Finding]) -> dict[str, dict[str, None]]:
    """Return the codes of the findings on each case, each code once."""
    codes: dict[str, dict[str, None]] = defaultdict(dict)
    for finding in findings:
        codes[finding.case_id][finding.code] = None
    return codes


def check_page(cohort: CohortFacts, record: CheckRecord, beside: str = "check") -> str:
    """Return the page; its findings and counts are those of the record.

    It links to the table and the record, which are `beside` it with `.csv` and `.json`.
    """
    present = [scan.reference.present for scan in cohort.scans if scan.reference]
    codes = _codes(finding for finding in record.findings if finding.level != "note")
    volumes = {o: [held[o].volume_ml for held in present if o in held] for o in cohort.organs}
    return render(
        "check.html",
        record=record,
        cohort=cohort,
        codes=codes,
        scans=sorted(cohort.scans, key=lambda scan: scan.case_id not in codes),
        volumes=volumes if present else {},
        adults={organ: adult_range_ml(organ) for organ in cohort.organs},
        pictures={s.case_id: data_uri(s.picture) for s in cohort.scans if s.picture},
        beside=beside,
    )
