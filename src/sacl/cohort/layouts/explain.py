"""Say how a dataset would be read, without reading it: its layout, why, and what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sacl.cohort.layouts import dicom
from sacl.cohort.layouts.found import Found
from sacl.cohort.layouts.recognize import find, recognize
from sacl.dicom.explain import series_table
from sacl.dicom.intake import take_in
from sacl.dicom.pseudonyms import read_key
from sacl.types import SPLITS

_COLUMNS = {
    "series": "series",
    "subject": "subject",
    "modality": "modality",
    "slices": "slices",
    "spacing_mm": "spacing mm",
    "phase": "phase",
    "verdict": "verdict",
    "code": "code",
}


def explain(root: Path, layout: str, export: dicom.Export) -> dict[str, Any]:
    """Return what `ingest` would find, as JSON types; nothing is written.

    Of DICOM, every series has a row; of any other layout, the cases are counted.

    Raises:
        DataError: as `recognize.find`, but an export without an accepted series is explained.
    """
    name, reason = recognize(root, layout)
    if name != dicom.NAME:
        return _counts(find(root, name)[0], reason)
    intake = take_in(root, export.rule)
    known = read_key(export.key) if export.key is not None else []
    return {
        "layout": name,
        "reason": reason,
        "notes": list(intake.notes),
        "series": series_table(intake, known),
    }


def as_text(document: Mapping[str, Any]) -> str:
    """Return an explanation for a terminal: a line per series, its sentence at the end."""
    lines = [f"layout {document['layout']}, by {document['reason']}", *document["notes"]]
    if "series" not in document:
        counts = document["cases"]
        lines += [
            f"{split}: {n['cases']} cases, {n['with_reference']} with a reference"
            for split, n in counts.items()
        ]
        return "\n".join(lines)
    rows = [[*_COLUMNS.values(), "reason, notes [description]"]]
    rows += [
        [_cell(row.get(key)) for key in _COLUMNS] + [_remark(row)] for row in document["series"]
    ]
    widths = [max(len(row[n]) for row in rows) for n in range(len(_COLUMNS))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def _counts(found: Found, reason: str) -> dict[str, Any]:
    cases = {split: [case for case in found.cases if case.split == split] for split in SPLITS}
    return {
        "layout": found.layout,
        "reason": reason,
        "name": found.name,
        "modality": found.modality,
        "organs": list(found.organs.values()),
        "notes": list(found.notes),
        "cases": {
            split: {
                "cases": len(own),
                "with_reference": sum(case.has_reference for case in own),
            }
            for split, own in cases.items()
        },
    }


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(f"{mm:g}" for mm in value)
    return "-" if value is None else str(value)


def _remark(row: Mapping[str, Any]) -> str:
    told = [row.get("reason"), row.get("part"), row.get("phase_reason"), *row.get("notes", ())]
    description = row.get("description")
    return "; ".join(filter(None, told)) + (f" [{description}]" if description else "")
