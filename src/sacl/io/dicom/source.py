"""The source datasets of a case: what a DICOM object that refers to the scan is made from."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset


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
    raise NotImplementedError
