"""The page of a check, its tables: organs, geometry, intensities, and every scan."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from sacl.check.cohort_checks import CohortFacts
from sacl.check.findings import Finding
from sacl.check.organ_volumes import adult_range_ml
from sacl.check.record import states_of
from sacl.report.figures import dot_rows
from sacl.report.page import Section, chart
from sacl.report.tables import DASH, Cell, html_table

_DRAWN_ORGANS = 40
_TABLED_ORGANS = 30
_TIMES = "\N{MULTIPLICATION SIGN}"
_MARKS = {"annotated": "●", "absent": "○", "not annotated": "·"}


def organ_section(cohort: CohortFacts) -> Section:
    """Return how often each organ is annotated, how large it is, and what adults have."""
    if not any(scan.reference for scan in cohort.scans):
        return Section("Organs")
    volumes = {
        organ: [
            scan.reference.present[organ].volume_ml
            for scan in cohort.scans
            if scan.reference and organ in scan.reference.present
        ]
        for organ in cohort.organs
    }
    seen = {organ: values for organ, values in volumes.items() if values}
    head = ("organ", "annotated", "absent", "not annotated", "volume, mL (range)", "adults, mL")
    body = []
    for organ in cohort.organs:
        states = states_of(cohort, organ)
        expected = adult_range_ml(organ)
        adults = f"{expected[0]:.0f}{DASH}{expected[1]:.0f}" if expected else DASH
        counts = (str(count) for count in states.values())
        body.append((organ.replace("_", " "), *counts, _spread(volumes[organ]), adults))
    drawn = ""
    if 0 < len(seen) <= _DRAWN_ORGANS:
        drawn = chart(dot_rows(seen, "volume of every annotated scan, mL"))
    return Section(
        "Organs",
        drawn + html_table(head, body),
        "Absent: somebody looked for the organ, and it is not there. Not annotated: nobody looked."
        " Adults: a wide range around published means (Geraghty et al. 2004; ICRP 89, 2002).",
    )


def geometry_section(cohort: CohortFacts) -> Section:
    """Return ranges of size, spacing and field of view, and how the files are oriented."""
    grids = [scan.geometry for scan in cohort.scans if scan.geometry]
    if not grids:
        return Section("Geometry")
    rows: dict[str, np.ndarray] = {
        "voxels": np.array([grid.shape for grid in grids], dtype=float),
        "spacing, mm": np.array([grid.spacing_mm for grid in grids]),
        "field of view, mm": np.array([grid.field_of_view_mm for grid in grids]),
    }
    body = [
        (name, *(_spread(values[:, axis].tolist()) for axis in range(3)))
        for name, values in rows.items()
    ]
    head = ("", "x (left-right)", "y (back-front)", "z (foot-head)")
    orientations = Counter(grid.orientation for grid in grids).most_common()
    oriented = ", ".join(f"{name} {count}" for name, count in orientations)
    return Section(
        "Geometry",
        html_table(head, body),
        f"Median (smallest to largest) over {len(grids)} scans, along the body's axes. Orientation"
        f" of the files: {oriented}; L, P and S mean that an axis runs to left, back and head.",
    )


def intensity_section(cohort: CohortFacts) -> Section:
    """Return the spread of the scans' own statistics."""
    images = [scan.image for scan in cohort.scans if scan.image]
    if not images:
        return Section("Intensities")
    names = {
        "lowest": "low",
        "percentile 0.5": "p005",
        "median": "median",
        "percentile 99.5": "p995",
        "highest": "high",
    }
    body = []
    for title, field in names.items():
        values = np.array([getattr(image, field) for image in images])
        ends = (values.min(), float(np.median(values)), values.max())
        body.append((title, *(_plain(float(value)) for value in ends)))
    unit = "HU" if cohort.modality == "ct" else "the scanner's own unit"
    return Section(
        "Intensities",
        html_table(("of a scan", "smallest", "median scan", "largest"), body),
        f"In {unit}, over {len(images)} scans.",
    )


def matrix_section(cohort: CohortFacts, findings: Sequence[Finding]) -> Section:
    """Return every scan: what it is, what is annotated in it, and the findings on it."""
    codes: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        if finding.level != "note":
            codes[finding.case_id].append(finding.code)
    organs = cohort.organs if len(cohort.organs) <= _TABLED_ORGANS else ()
    head = [Cell("scan"), Cell("split"), Cell("voxels"), Cell("spacing, mm")]
    head += [Cell(organ.replace("_", " ")) for organ in organs] + [Cell("findings", "text")]
    body: list[list[str | Cell]] = []
    for scan in cohort.scans:
        grid = scan.geometry
        size = f" {_TIMES} ".join(str(n) for n in grid.shape) if grid else DASH
        spacing = f" {_TIMES} ".join(f"{s:.3g}" for s in grid.spacing_mm) if grid else DASH
        marks = [_MARKS[scan.state_of(organ)] for organ in organs]
        told = ", ".join(dict.fromkeys(codes[scan.case_id]))
        body.append([scan.case_id, scan.split, size, spacing, *marks, Cell(told, "text")])
    table = html_table(head, body)
    return Section(
        "All scans",
        f"<details><summary>{len(body)} scans</summary>{table}</details>",
        "● annotated, ○ looked for and absent, · not annotated. Volumes and intensities of every"
        " scan are in the table (.csv) beside this page.",
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return DASH
    low, middle, high = min(values), float(np.median(values)), max(values)
    if low == high:
        return _plain(middle)
    return f"{_plain(middle)} ({_plain(low)}{DASH}{_plain(high)})"


def _plain(value: float) -> str:
    """Return a number with three significant digits and no exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "\N{MINUS SIGN}")
