"""The source datasets of a case: what a DICOM object that refers to the scan is made from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom import Dataset

from sacl.dicom.files import DAMAGE, Opener
from sacl.dicom.geometry import SliceStack
from sacl.dicom.headers import read_dataset
from sacl.dicom.intake import list_slices
from sacl.dicom.pseudonyms import read_key
from sacl.dicom.series import group
from sacl.dicom.slices import Slice
from sacl.dicom.verdict import Rule, judge
from sacl.errors import DataError

_LEAST = (Rule().min_slices, 2)
"""Least numbers of slices to try: how a series is split depends on it, and the key keeps it not."""


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
    return ingested_series([root], key)(case_id)


def ingested_series(roots: Sequence[Path], key: Path) -> Callable[[str], list[Dataset]]:
    """Return what `source_series` does for each of many cases; the files are listed once."""

    @functools.cache
    def slices() -> list[Slice]:
        return [piece for root in roots for piece in list_slices(root)[0]]

    def read(case_id: str) -> list[Dataset]:
        row = next((row for row in read_key(key) if row.case_id == case_id), None)
        if row is None:
            raise DataError(
                f"case {case_id}: {key.name} does not know it; give the key of the work directory"
                " that the cohort was ingested in"
            )
        own = [piece for piece in slices() if row.scan[:-1] == piece.identity.scan]
        found = (pair for least in _LEAST for pair in _accepted(own, least))
        stack = next((stack for part, stack in found if part == row.part), None)
        if stack is None:
            raise DataError(
                f"case {case_id}: its DICOM series is not in the folder given, or is not accepted"
                " any more; give the folder that was ingested"
            )
        return _headers(stack, case_id)

    return read


def series_named(root: Path, case_id: str) -> list[Dataset]:
    """Return the headers of the one series in a folder or zip of a case's name, as above.

    Raises:
        DataError: there is neither, or there are several series or none in it.
    """
    found = [path for path in (root / case_id, root / f"{case_id}.zip") if path.exists()]
    if not found:
        raise DataError(
            f"case {case_id}: {root.name} has no folder or zip of this name; give a folder with one"
            " DICOM series per case"
        )
    slices = list_slices(found[0])[0]
    accepted = next(filter(None, (_accepted(slices, least) for least in _LEAST)), [])
    if len(accepted) != 1:
        raise DataError(
            f"case {case_id}: {len(accepted)} DICOM series are accepted in its folder, expected"
            " one; `sacl ingest FOLDER --explain` says why of each"
        )
    return _headers(accepted[0][1], case_id)


def _accepted(slices: Sequence[Slice], least: int) -> list[tuple[str, SliceStack]]:
    """Return the accepted series among some slices, and what tells each from others of its UID."""
    with Opener() as opener:
        series = group(slices, least) if slices else []
        verdicts = [judge(one, Rule(min_slices=least), opener) for one in series]
    return [(v.series.part, v.stack) for v in verdicts if v.stack is not None]


def _headers(stack: SliceStack, case_id: str) -> list[Dataset]:
    sources = list(dict.fromkeys(piece.source for piece in stack.slices))
    try:
        with Opener() as opener:
            return [_with_uids(read_dataset(source, opener)) for source in sources]
    except DAMAGE as error:
        raise DataError(
            f"case {case_id}: its DICOM series changed while it was read ({type(error).__name__})"
        ) from error


def _with_uids(header: Dataset) -> Dataset:
    """Fill in from the file's meta information the UIDs that a data set lacks."""
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not header.get(keyword):
            value = header.file_meta.get(f"MediaStorage{keyword}")
            if value:
                setattr(header, keyword, value)
    return header
