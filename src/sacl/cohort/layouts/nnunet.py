"""nnU-Net raw: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz` and `dataset.json`.

`imagesVa`/`labelsVa` and `imagesTs`/`labelsTs` are read as validation and test. A training image
without a label map is an unlabeled scan. Both versions of `dataset.json` are understood. Where it
has a block `dataset`, {case: {images, label}}, the training cases are those, wherever they lie.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sacl.cohort.layouts.found import (
    Found,
    FoundCase,
    by_key,
    label_values,
    modality_of,
    nifti_files,
    pair,
    read_json,
)
from sacl.errors import DataError
from sacl.files.nifti import SUFFIXES, stem
from sacl.types import Split

_PARTS: tuple[tuple[str, str, Split], ...] = (
    ("imagesTr", "labelsTr", "train"),
    ("imagesVa", "labelsVa", "validation"),
    ("imagesTs", "labelsTs", "test"),
)


def recognize(root: Path) -> str | None:
    """Return why a folder is an nnU-Net raw dataset, None where it is not."""
    if not (root / "dataset.json").is_file():
        return None
    listed = read_json(root / "dataset.json").get("dataset")
    if isinstance(listed, Mapping) and listed:
        return f"dataset.json, which lists the files of {len(listed)} training cases"
    first = next((path for path in nifti_files(root / "imagesTr") if "_0000." in path.name), None)
    return f"dataset.json, and imagesTr with channel files like {first.name}" if first else None


def read(root: Path) -> Found:
    """List the cases; of several channels the first (0000) is taken.

    Raises:
        DataError: dataset.json is damaged, has regions or names files other than NIfTI, or a label
            map has no image.
    """
    document = read_json(root / "dataset.json")
    ending = document.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise DataError(f"dataset.json: file_ending '{ending}', expected .nii.gz or .nii; convert")
    organs, ignore = label_values(document.get("labels"), "dataset.json")
    channels = document.get("channel_names", document.get("modality", {}))
    notes: tuple[str, ...] = ()
    if len(channels) > 1:
        notes = (f"of {len(channels)} channels the first is used, {next(iter(channels.values()))}",)
    return Found(
        layout="nnunet",
        name=str(document.get("name") or root.name),
        organs=organs,
        cases=_all_cases(root, document.get("dataset")),
        modality=modality_of(channels),
        ignore=ignore,
        notes=notes,
    )


def _all_cases(root: Path, listed: Any) -> tuple[FoundCase, ...]:
    """Return the cases of all parts; the training cases as listed where there is a list."""
    if not isinstance(listed, Mapping) or not listed:
        return tuple(case for part in _PARTS for case in _cases(root, *part))
    training = [_listed_case(root, str(case_id), files) for case_id, files in listed.items()]
    return (*training, *(case for part in _PARTS[1:] for case in _cases(root, *part)))


def _listed_case(root: Path, case_id: str, files: Any) -> FoundCase:
    """Return a case of the block `dataset`; of several images the first is taken.

    Raises:
        DataError: it names no image, or a file that is not there.
    """
    images = files.get("images") if isinstance(files, Mapping) else None
    if not isinstance(images, list) or not images:
        raise DataError(f"dataset.json: case {case_id} of 'dataset' has no list 'images'")
    label = files.get("label")
    return FoundCase(
        case_id,
        _existing(root, images[0], case_id),
        _existing(root, label, case_id) if label else None,
        origin="dataset",
    )


def _existing(root: Path, name: Any, case_id: str) -> Path:
    path = root / os.path.expandvars(str(name))
    if not path.is_file():
        raise DataError(
            f"dataset.json: case {case_id} of 'dataset' names {path.name}, there is no such file"
        )
    return path


def _cases(root: Path, images: str, labels: str, split: Split) -> list[FoundCase]:
    first = [path for path in nifti_files(root / images) if stem(path).endswith("_0000")]
    cases = by_key(first, (stem(path)[: -len("_0000")] for path in first), images)
    references = nifti_files(root / labels)
    return pair(cases, by_key(references, map(stem, references), labels), images, split)
