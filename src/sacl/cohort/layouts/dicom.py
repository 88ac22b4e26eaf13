"""DICOM: a hospital's export, in a folder tree, a zip or a folder of zips.

Every accepted series is a scan under a pseudonym, with the scan-wise labels of its header.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from sacl.cohort.dataset import (
    Dataset,
    Layout,
    Recognized,
    SourceCase,
    by_kind,
    common_modality,
    counted,
    first_of,
)
from sacl.dicom.intake import names_a_patient, take_in, what_is_dicom
from sacl.dicom.pseudonyms import KeyRow, read_key, with_pseudonyms, write_key
from sacl.dicom.stack import read_stack
from sacl.dicom.verdict import DicomExport, Verdict
from sacl.errors import DataError
from sacl.files.atomic import folder_fingerprint
from sacl.run.workspace import is_work

NAME = "dicom"
"""Name of the dataset: that of the folder could be a patient's."""


def read_export(root: Path, export: DicomExport | None = None) -> Dataset:
    """List the accepted series as cases, all for training and without a reference.

    The key is extended and written before anything is read.
    """
    export = export or DicomExport()
    intake = take_in(root, export)
    accepted = [verdict for verdict in intake.verdicts if verdict.accepted]
    if not accepted:
        why = "; ".join(intake.notes)
        raise DataError(f"data: {why}; `sacl ingest FOLDER --explain` gives all reasons")
    if names_a_patient(root.stem, intake):
        raise DataError(
            "data: the folder or zip is named after a patient, and records would keep the name;"
            " rename it"
        )
    known = read_key(export.key) if export.key is not None else []
    rows, extended = with_pseudonyms([verdict.series for verdict in accepted], known)
    if export.key is not None and extended != known:
        write_key(export.key, extended)
    named = sorted(zip(rows, accepted, strict=True), key=lambda pair: pair[0].case_id)
    cases = tuple(_case(verdict, row) for row, verdict in named)
    notes = (*intake.notes, *_notes(named))
    return Dataset(NAME, NAME, {}, cases, common_modality(cases), notes=notes)


def _case(verdict: Verdict, row: KeyRow) -> SourceCase:
    assert verdict.stack is not None
    return SourceCase(
        case_id=row.case_id,
        image=Path(row.case_id),
        subject_id=row.subject_id,
        scan_labels={**verdict.labels, "site": row.site},
        origin=NAME,
        modality="ct" if verdict.stack.slices[0].modality == "CT" else "mr",
        load=functools.partial(read_stack, verdict.stack, row.case_id),
    )


def _notes(named: list[tuple[KeyRow, Verdict]]) -> Iterator[str]:
    """Yield what to tell of the accepted series, under their pseudonyms."""
    nameless = sum(not row.patient_id for row, _ in named)
    if nameless:
        yield (
            f"{counted(nameless, 'scan')} without PatientID: each study, or folder where studies"
            " are unnamed, counts as a subject of its own; give subject_id in a table if persons"
            " came twice"
        )
    told = ((row.case_id, note) for row, verdict in named for note in verdict.notes)
    yield from map(first_of, by_kind(told))


def fingerprint_of_export(root: Path) -> str:
    """Return a hash of all files of an export; work directories in it are none of its."""
    return folder_fingerprint(root, is_work)


def _recognize(root: Path) -> Recognized | None:
    reason = what_is_dicom(root)
    return (reason, functools.partial(read_export, root)) if reason else None


DICOM = Layout(
    "DICOM: a hospital's export, in a folder tree, a zip or a folder of zips", _recognize
)
