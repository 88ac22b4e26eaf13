"""nnU-Net raw: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz` and `dataset.json`.

`imagesVa`/`labelsVa` and `imagesTs`/`labelsTs` are read as validation and test. A training image
without a label map is an unlabeled scan. Both versions of `dataset.json` are understood.
"""

from __future__ import annotations

from pathlib import Path

from sacl.errors import DataError
from sacl.io.layouts.found import (
    Found,
    FoundCase,
    by_key,
    label_values,
    modality_of,
    nifti_files,
    pair,
    read_json,
)
from sacl.io.nifti import SUFFIXES, stem
from sacl.types import Split

_PARTS: tuple[tuple[str, str, Split], ...] = (
    ("imagesTr", "labelsTr", "train"),
    ("imagesVa", "labelsVa", "validation"),
    ("imagesTs", "labelsTs", "test"),
)


def recognize(root: Path) -> str | None:
    """Return why a folder is an nnU-Net raw dataset, None where it is not."""
    if not (root / "dataset.json").is_file() or not (root / "imagesTr").is_dir():
        return None
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
        cases=tuple(case for part in _PARTS for case in _cases(root, *part)),
        modality=modality_of(channels),
        ignore=ignore,
        notes=notes,
    )


def _cases(root: Path, images: str, labels: str, split: Split) -> list[FoundCase]:
    first = [path for path in nifti_files(root / images) if stem(path).endswith("_0000")]
    cases = by_key(first, (stem(path)[: -len("_0000")] for path in first), images)
    references = nifti_files(root / labels)
    return pair(cases, by_key(references, map(stem, references), labels), images, split)
