"""The table of an export: every series with its verdict and the one reason for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sacl.dicom.files import DAMAGE, Opener
from sacl.dicom.headers import read_dataset
from sacl.dicom.identifiers import scrubbed
from sacl.dicom.intake import Intake
from sacl.dicom.pseudonyms import KeyRow, with_pseudonyms
from sacl.dicom.values import text
from sacl.dicom.verdict import Verdict


def series_table(intake: Intake, known: Sequence[KeyRow] = ()) -> list[dict[str, Any]]:
    """Return a row per series for a table or JSON.

    A subject and a scan have their pseudonym where the key knows them, else a running number of
    this table alone. The description is scrubbed of the names and numbers in the series' own
    header. No row has a file, a UID or a date.
    """
    by_scan = {row.scan: row for row in known}
    bare, _ = with_pseudonyms([verdict.series for verdict in intake.verdicts], [])
    numbers: dict[tuple[str, ...], int] = {}
    rows = []
    with Opener() as opener:
        for count, (verdict, own) in enumerate(zip(intake.verdicts, bare, strict=True), start=1):
            number = numbers.setdefault(own.subject, len(numbers) + 1)
            row = by_scan.get(own.scan)
            subject = next((r.subject_id for r in known if r.subject == own.subject), str(number))
            rows.append(
                {
                    "series": count,
                    "subject": subject,
                    "case_id": row.case_id if row is not None and verdict.accepted else None,
                    **_facts(verdict),
                    "description": _description(verdict, opener),
                }
            )
    rows += [
        {"series": None, "verdict": "rejected", "code": a.fault.code, "reason": a.fault.sentence}
        for a in intake.refused
    ]
    return rows


def _facts(verdict: Verdict) -> dict[str, Any]:
    first = verdict.series.slices[0]
    spacing = None
    if verdict.stack is not None:
        spacing = [round(mm, 4) for mm in verdict.stack.grid.spacing_mm]
    slices = verdict.stack.slices if verdict.stack is not None else verdict.series.slices
    return {
        "series_number": first.series_number,
        "part": verdict.series.part or None,
        "modality": first.modality if first.modality.isalnum() else None,
        "slices": len(slices),
        "spacing_mm": spacing,
        "phase": verdict.labels.get("phase"),
        "phase_reason": verdict.phase_reason or None,
        "verdict": "accepted" if verdict.accepted else "rejected",
        "code": verdict.fault.code if verdict.fault is not None else None,
        "reason": verdict.fault.sentence if verdict.fault is not None else None,
        "notes": list(verdict.notes),
    }


def _description(verdict: Verdict, opener: Opener) -> str | None:
    try:
        header = read_dataset(verdict.series.slices[0].source, opener)
    except DAMAGE:
        return None
    return scrubbed(text(header, "SeriesDescription"), header) or None
