"""Find the label maps that another tool made: which files are a case's, by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sacl.cohort.layouts.found import nifti_files
from sacl.cohort.layouts.nnssl import anatomy_masks
from sacl.errors import DataError
from sacl.files.atomic import listing_fingerprint
from sacl.files.nifti import SUFFIXES, stem

DICOM = ".dcm"
"""Suffix of a DICOM segmentation."""
_POSTFIXES = ("seg", "segmentation", "pred", "prediction", "label", "labels", "mask", "trans")
"""What is appended to a case's name, the likeliest first; MONAI's SaveImage takes any word."""
_WHOLE = ("combined_labels", "segmentations", "segmentation", "labels")
"""Names of the one label map in a case's folder, where it is not called as the case."""


@dataclass(frozen=True)
class GivenFiles:
    """One case's label map where it lies: one file of many values, or a mask per organ by name."""

    case_id: str
    file: Path | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)


def find_given(source: Path, case_ids: Iterable[str]) -> dict[str, GivenFiles]:
    """Return the files of every case that has some.

    In a folder, a case's map is `CASE.nii.gz` (nnU-Net, a table's folder), `CASE_seg.nii.gz` or
    `CASE/CASE_seg.nii.gz` (MONAI, which may keep nnU-Net's `_0000` in the name), or the masks
    `CASE/ORGAN.nii.gz` or `CASE/segmentations/ORGAN.nii.gz` (TotalSegmentator, AbdomenAtlas).
    DICOM segmentations are `CASE.dcm`, or the one file `.dcm` in a folder `CASE`. A
    `pretrain_data.json` (nnssl) names each image's anatomy mask.

    Raises:
        DataError: two files may be a case's label map, or the JSON is damaged.
    """
    if source.suffix == ".json":
        masks = anatomy_masks(source)
        return {name: GivenFiles(name, masks[name]) for name in case_ids if name in masks}
    found = {name: _in_folder(source, name) for name in case_ids}
    return {name: files for name, files in found.items() if files is not None}


def given_fingerprint(source: Path) -> str:
    """Return a hash of the names, sizes and times of all files that a source may be read from."""
    listed = [listing_fingerprint(source)]
    if source.suffix == ".json":
        listed += [listing_fingerprint(path) for path in anatomy_masks(source).values()]
    return hashlib.sha256("".join(listed).encode()).hexdigest()[:16]


def _in_folder(source: Path, case_id: str) -> GivenFiles | None:
    for suffix in (*SUFFIXES, DICOM):
        if (source / f"{case_id}{suffix}").is_file():
            return GivenFiles(case_id, source / f"{case_id}{suffix}")
    for name in (case_id, f"{case_id}_0000"):
        flat = [source / f"{name}_{word}{suffix}" for word in _POSTFIXES for suffix in SUFFIXES]
        named = [path for path in flat if path.is_file()]
        named += [path for path in nifti_files(source / name) if _is_of(path, name)]
        named += sorted((source / name).glob(f"*{DICOM}"))
        if named:
            return GivenFiles(case_id, _likeliest(named, name))
        for masks in (source / name / "segmentations", source / name):
            if nifti_files(masks):
                return GivenFiles(case_id, masks=by_stem(masks))
    return None


def by_stem(folder: Path) -> dict[str, Path]:
    """Return the NIfTI files of a folder by their name without suffix."""
    return {stem(path): path for path in nifti_files(folder)}


def _is_of(path: Path, name: str) -> bool:
    own = stem(path)
    return own == name or own.startswith(f"{name}_") or own in _WHOLE


def _likeliest(paths: list[Path], name: str) -> Path:
    """Return the label map among a case's files, which may hold the image too (MONAI's `trans`)."""

    def rank(path: Path) -> int:
        word = stem(path).removeprefix(name).lstrip("_")
        return _POSTFIXES.index(word) if word in _POSTFIXES else len(_POSTFIXES)

    first, *others = sorted(paths, key=rank)
    if others and rank(others[0]) == rank(first):
        raise DataError(
            f"case {name}: both {first.name} and {others[0].name} may be its label map; keep one"
        )
    return first
