"""The source datasets of a case: what a DICOM object that refers to the scan is made from."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset

from sacl.errors import DataError
from sacl.io.dicom.files import DAMAGE, Opener
from sacl.io.dicom.geometry import SliceStack
from sacl.io.dicom.headers import read_dataset
from sacl.io.dicom.intake import list_slices
from sacl.io.dicom.pseudonyms import read_key
from sacl.io.dicom.series import group
from sacl.io.dicom.verdict import Rule, judge


def source_series(root: Path, key: Path, case_id: str) -> list[Dataset]:
    """Return the headers of a case's source images, in the order of the native grid's k axis.

    A classic series gives one dataset per slice, an enhanced multi-frame one a single dataset. No
    dataset has pixels. Where an anonymizer emptied SOPClassUID or SOPInstanceUID, the values of
    the file's meta information stand in for them.

    Args:
        root: folder, zip or folder of zips that the cohort was ingested from.
        key: the work directory's `dicom-key.csv`.
        case_id: pseudonym of the scan, such as `p0001-s01`.

    Raises:
        DataError: the key does not know the case, or its series is not in `root` any more.
    """
    stacked = _stack_of(root, key, case_id)
    sources = list(dict.fromkeys(piece.source for piece in stacked.slices))
    try:
        with Opener() as opener:
            return [_with_uids(read_dataset(source, opener)) for source in sources]
    except DAMAGE as error:
        raise DataError(
            f"case {case_id}: its DICOM series changed while it was read ({type(error).__name__})"
        ) from error


def _stack_of(root: Path, key: Path, case_id: str) -> SliceStack:
    row = next((row for row in read_key(key) if row.case_id == case_id), None)
    if row is None:
        raise DataError(
            f"case {case_id}: {key.name} does not know it; give the key of the work directory that"
            " the cohort was ingested in"
        )
    slices = [piece for piece in list_slices(root)[0] if row.scan[:-1] == piece.identity.scan]
    with Opener() as opener:
        # How a series is split depends on the least number of slices; the key does not keep it.
        for least in (Rule().min_slices, 2):
            rule = Rule(min_slices=least)
            for series in group(slices, least) if slices else []:
                verdict = judge(series, rule, opener)
                if series.part == row.part and verdict.stack is not None:
                    return verdict.stack
    raise DataError(
        f"case {case_id}: its DICOM series is not in the folder given, or is not accepted any more;"
        " give the folder that was ingested"
    )


def _with_uids(header: Dataset) -> Dataset:
    """Fill in from the file's meta information the UIDs that a data set lacks."""
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not header.get(keyword):
            value = header.file_meta.get(f"MediaStorage{keyword}")
            if value:
                setattr(header, keyword, value)
    return header
