"""A check's results: a record (JSON), a table with a row per scan (CSV), a page, a few lines."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sacl.check.cohort_checks import CohortFacts, adult_range_ml
from sacl.check.facts import ScanFacts
from sacl.check.findings import LEVELS, Finding, Level, count_by_level, grouped
from sacl.report.figures import dot_rows
from sacl.report.page import DASH, plain_table, plural, render, significant
from sacl.scores.table import cell_text
from sacl.types import SPLITS, UNKNOWN, Split

MARK = '"program": "sacl check"'
"""What the JSON has near its start."""
_FIRST_COLUMNS = ("case_id", "subject_id", "split", "labeled")
TABLE_MARK = ",".join(_FIRST_COLUMNS)
"""What the table starts with."""
_SHOWN = 3
_DRAWN_ORGANS = 40
_TABLED_ORGANS = 30
_TIMES = "\N{MULTIPLICATION SIGN}"
_MARKS = {"annotated": "●", "absent": "○", "not annotated": "·"}
_COLORS = {"error": "#d55e00", "warning": "#e69f00", "note": "#9aa5b3"}
_PERCENTILES = {
    "lowest": "low",
    "percentile 0.5": "p005",
    "median": "median",
    "percentile 99.5": "p995",
    "highest": "high",
}


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
    cohort: CohortFacts, findings: Sequence[Finding], origin: str = "", notes: Sequence[str] = ()
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
        kinds=count_by_level(findings),
        findings=tuple(f for group in grouped(findings).values() for f in group),
    )


def scan_table(cohort: CohortFacts, findings: Sequence[Finding]) -> str:
    """Return a CSV with a row per scan; an organ's column holds its volume in mL, or its state."""
    codes: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        codes[finding.case_id].append(finding.code)
    rows = [
        {**_row(scan, cohort), "findings": " ".join(dict.fromkeys(codes[scan.case_id]))}
        for scan in cohort.scans
    ]
    text = io.StringIO()
    columns = list(dict.fromkeys((*_FIRST_COLUMNS, *(column for row in rows for column in row))))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def terminal_text(record: CheckRecord) -> str:
    """Return what the command line says: a table of the splits, and the findings by kind."""
    head = ("split", "subjects", "scans", "labeled", "unlabeled")
    rows = [
        (split, *(str(n) for n in (c.subjects, c.scans, c.labeled, c.unlabeled)))
        for split, c in record.splits.items()
        if c.scans
    ]
    organs = plural(len(record.organs), "organ")
    lines = [f"{record.name}: {record.modality.upper()}, {organs}", "", plain_table(head, rows), ""]
    for group in grouped(record.findings).values():
        rule = group[0].rule
        lines.append(f"{rule.level}: {rule.title}" + f" ({len(group)})" * (len(group) > 1))
        lines += [f"    {finding.line}" for finding in group[:_SHOWN]]
        lines += [f"    and {len(group) - _SHOWN} more"] * (len(group) > _SHOWN)
        lines += [f"    {rule.remedy}"] * (rule.level != "note")
    counts = ", ".join(plural(record.kinds[level], level) for level in LEVELS)
    return "\n".join([*lines, *[""] * bool(record.findings), f"kinds of findings: {counts}"])


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
    """Return in how many scans an organ is annotated, absent, or not annotated."""
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
    if scan.geometry is not None:
        geometry = scan.geometry
        row |= dict(zip(("nx", "ny", "nz"), geometry.shape, strict=True))
        spacing = (round(s, 4) for s in geometry.spacing_mm)
        row |= dict(zip(("x_mm", "y_mm", "z_mm"), spacing, strict=True))
        row |= {"orientation": geometry.orientation, "tilt_deg": round(geometry.tilt_deg, 2)}
    if scan.image is not None:
        image = scan.image
        names = ("low", "p005", "median", "p995", "high")
        row |= {name: f"{getattr(image, name):g}" for name in names}
        row["voxels"] = image.digest
    for organ in cohort.organs:
        facts = scan.reference.present.get(organ) if scan.reference else None
        row[f"{organ} mL"] = f"{facts.volume_ml:.4g}" if facts else scan.state_of(organ)
    return row


# -- the page --------------------------------------------------------------------------------------


def check_page(cohort: CohortFacts, record: CheckRecord) -> str:
    """Return the page; its findings and counts are those of the record."""
    volumes = _volumes(cohort)
    seen = {organ: values for organ, values in volumes.items() if values}
    tabled = cohort.organs if len(cohort.organs) <= _TABLED_ORGANS else ()
    grids = [scan.geometry for scan in cohort.scans if scan.geometry]
    return render(
        "check.html",
        title=f"Check of {record.name}",
        subtitle=f"{record.modality.upper()}, {plural(len(record.organs), 'organ')} ·"
        f" {record.origin}",
        headline=_headline(record),
        details=[
            f"{plural(record.scans, 'scan')} of {plural(record.subjects, 'subject')},"
            f" {sum(counts.labeled for counts in record.splits.values())} with a reference"
        ],
        record=record,
        groups=list(grouped(record.findings).values()),
        colors=_COLORS,
        splits=SPLITS,
        organs=_organ_rows(cohort, record, volumes),
        volumes=dot_rows(seen, "volume of every annotated scan, mL")
        if 0 < len(seen) <= _DRAWN_ORGANS
        else None,
        geometry=_geometry_rows(cohort),
        grids=len(grids),
        orientations=Counter(grid.orientation for grid in grids).most_common(),
        intensities=_intensity_rows(cohort),
        tabled=tabled,
        scans=_scan_rows(cohort, record, tabled),
    )


def _headline(record: CheckRecord) -> str:
    errors, warnings = record.kinds["error"], record.kinds["warning"]
    words = [plural(errors, "kind of error", "kinds of error")] * bool(errors)
    words += [plural(warnings, "kind of warning", "kinds of warning")] * bool(warnings)
    if not words:
        return "No fault in this cohort."
    remedy = "Correct the data before a run." if errors else "Look at them before a run."
    return f"{' and '.join(words)} in this cohort. {remedy}"


def _volumes(cohort: CohortFacts) -> dict[str, list[float]]:
    """Return every organ's volumes in mL over the scans that have it."""
    return {
        organ: [
            scan.reference.present[organ].volume_ml
            for scan in cohort.scans
            if scan.reference and organ in scan.reference.present
        ]
        for organ in cohort.organs
    }


def _organ_rows(
    cohort: CohortFacts, record: CheckRecord, volumes: dict[str, list[float]]
) -> list[tuple[str, ...]]:
    """Return how often each organ is annotated, how large it is, and what adults have."""
    if not any(scan.reference for scan in cohort.scans):
        return []
    rows = []
    for organ in cohort.organs:
        expected = adult_range_ml(organ)
        adults = f"{expected[0]:.0f}{DASH}{expected[1]:.0f}" if expected else DASH
        counts = map(str, record.annotation[organ].values())
        rows.append((organ, *counts, _spread(volumes[organ]), adults))
    return rows


def _geometry_rows(cohort: CohortFacts) -> list[tuple[str, ...]]:
    """Return median and range of size, spacing and field of view along x, y and z."""
    grids = [scan.geometry for scan in cohort.scans if scan.geometry]
    values: dict[str, list[tuple[float, float, float]]] = {
        "voxels": [grid.shape for grid in grids],
        "spacing, mm": [grid.spacing_mm for grid in grids],
        "field of view, mm": [grid.field_of_view_mm for grid in grids],
    }
    rows = values.items() if grids else ()
    return [(name, *(_spread(size[axis] for size in of) for axis in range(3))) for name, of in rows]


def _intensity_rows(cohort: CohortFacts) -> list[tuple[str, ...]]:
    """Return the spread of the scans' own statistics: smallest, median, largest."""
    images = [scan.image for scan in cohort.scans if scan.image]
    rows: list[tuple[str, ...]] = []
    for title, field in _PERCENTILES.items() if images else ():
        values = [float(getattr(image, field)) for image in images]
        ends = (min(values), float(np.median(values)), max(values))
        rows.append((title, *map(significant, ends)))
    return rows


def _scan_rows(
    cohort: CohortFacts, record: CheckRecord, organs: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return every scan: what it is, what is annotated in it, and the findings on it."""
    codes: dict[str, list[str]] = defaultdict(list)
    for finding in record.findings:
        if finding.level != "note":
            codes[finding.case_id].append(finding.code)
    rows = []
    for scan in cohort.scans:
        grid = scan.geometry
        size = f" {_TIMES} ".join(str(n) for n in grid.shape) if grid else DASH
        spacing = f" {_TIMES} ".join(f"{s:.3g}" for s in grid.spacing_mm) if grid else DASH
        marks = (_MARKS[scan.state_of(organ)] for organ in organs)
        faults = ", ".join(dict.fromkeys(codes[scan.case_id]))
        rows.append((scan.case_id, scan.split, size, spacing, *marks, faults))
    return rows


def _spread(values: Iterable[float]) -> str:
    """Return the median with the smallest and the largest value."""
    sorted_values = sorted(values)
    if not sorted_values:
        return DASH
    low, high = sorted_values[0], sorted_values[-1]
    middle = significant(float(np.median(sorted_values)))
    return middle if low == high else f"{middle} ({significant(low)}{DASH}{significant(high)})"
