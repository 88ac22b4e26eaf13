"""The page of a check: what is the matter, and what the cohort is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from sacl.check.cohort_checks import CohortFacts, adult_range_ml
from sacl.check.findings import grouped
from sacl.check.record import CheckRecord
from sacl.report.figures import dot_rows
from sacl.report.page import DASH, plural, render, significant
from sacl.types import SPLITS

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
