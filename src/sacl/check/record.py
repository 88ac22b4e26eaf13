"""A check's results as data: a table with a row per scan, a record as JSON, a few lines of text."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sacl.check.cohort_checks import CohortFacts
from sacl.check.findings import LEVELS, Finding, count_by_level, grouped
from sacl.check.scan_facts import ScanFacts
from sacl.report.tables import plain_table
from sacl.types import SPLITS, UNKNOWN

_SHOWN = 3


def cohort_record(cohort: CohortFacts, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return counts and findings as JSON types."""
    return {
        "name": cohort.name,
        "modality": cohort.modality,
        "organs": list(cohort.organs),
        "scans": len(cohort.scans),
        "subjects": len({scan.subject_id for scan in cohort.scans}),
        "splits": split_counts(cohort),
        "scan_labels": scan_label_counts(cohort),
        "annotation": {organ: states_of(cohort, organ) for organ in cohort.organs},
        "kinds": count_by_level(findings),
        "findings": [
            {
                "level": finding.level,
                "code": finding.code,
                "title": finding.rule.title,
                "case_id": finding.case_id or None,
                "message": finding.message,
                "remedy": finding.rule.remedy,
            }
            for group in grouped(findings).values()
            for finding in group
        ],
    }


def split_counts(cohort: CohortFacts) -> dict[str, dict[str, int]]:
    """Return subjects and scans of every split, with and without a reference."""
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        scans = [scan for scan in cohort.scans if scan.split == split]
        labeled = sum(scan.has_reference for scan in scans)
        counts[split] = {
            "subjects": len({scan.subject_id for scan in scans}),
            "scans": len(scans),
            "labeled": labeled,
            "unlabeled": len(scans) - labeled,
        }
    return counts


def scan_label_counts(cohort: CohortFacts) -> dict[str, dict[str, dict[str, int]]]:
    """Return how many scans have each value of each scan-wise label, by split; unknown last."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for name in cohort.scan_label_names():
        values: dict[str, Counter[str]] = defaultdict(Counter)
        for scan in cohort.scans:
            values[scan.scan_labels.get(name, UNKNOWN)][scan.split] += 1
        ordered = sorted(values, key=lambda value: (value == UNKNOWN, value))
        counts[name] = {value: {s: values[value][s] for s in SPLITS} for value in ordered}
    return counts


def states_of(cohort: CohortFacts, organ: str) -> dict[str, int]:
    """Return in how many scans an organ is annotated, absent, or not annotated."""
    states = Counter(scan.state_of(organ) for scan in cohort.scans)
    return {state: states[state] for state in ("annotated", "absent", "not annotated")}


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
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def terminal_text(record: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    """Return what the command line says: a table of the splits, and the findings by kind."""
    head = ("split", "subjects", "scans", "labeled", "unlabeled")
    rows = [
        (split, *(str(counts[name]) for name in head[1:]))
        for split, counts in record["splits"].items()
        if counts["scans"]
    ]
    lines = [f"{record['name']}: {record['modality'].upper()}, {len(record['organs'])} organs", ""]
    lines += [plain_table(head, rows), ""]
    for group in grouped(findings).values():
        rule = group[0].rule
        lines.append(f"{rule.level}: {rule.title}" + f" ({len(group)})" * (len(group) > 1))
        lines += [f"    {_line(finding)}" for finding in group[:_SHOWN]]
        lines += [f"    and {len(group) - _SHOWN} more"] * (len(group) > _SHOWN)
        lines += [f"    {rule.remedy}"] * (rule.level != "note")
    kinds = record["kinds"]
    counts = ", ".join(f"{kinds[level]} {level}{'s' * (kinds[level] != 1)}" for level in LEVELS)
    return "\n".join([*lines, *[""] * bool(findings), f"kinds of findings: {counts}"])


def _line(finding: Finding) -> str:
    return f"{finding.case_id}: {finding.message}" if finding.case_id else finding.message


def _row(scan: ScanFacts, cohort: CohortFacts) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case_id": scan.case_id,
        "subject_id": scan.subject_id,
        "split": scan.split,
        "labeled": "yes" if scan.has_reference else "no",
    }
    row |= {name: scan.scan_labels.get(name, UNKNOWN) for name in cohort.scan_label_names()}
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
