"""A plain folder of NIfTI scans without annotation."""

from __future__ import annotations

from pathlib import Path

from sacl.cohort.layouts.found import Found, FoundCase, by_key, nifti_files
from sacl.errors import DataError
from sacl.files.nifti import stem


def list_images(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder by name.

    Raises:
        DataError: there is no such folder, no NIfTI file in it, or two files of one name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder.name}: no such folder")
    images = nifti_files(folder)
    if not images:
        raise DataError(f"{folder.name}: no .nii or .nii.gz file in this folder")
    return list(by_key(images, map(stem, images), folder.name).values())


def recognize(root: Path) -> str | None:
    """Return why a folder is a plain folder of scans, None where it is not."""
    images = nifti_files(root)
    return f"{len(images)} NIfTI files and no annotation" if images else None


def read(root: Path) -> Found:
    """List the scans, all for training and without a reference.

    Raises:
        DataError: as `list_images`.
    """
    cases = (
        FoundCase(stem(path), path, None, "train", origin="folder") for path in list_images(root)
    )
    return Found("folder", root.name, {}, tuple(cases))
