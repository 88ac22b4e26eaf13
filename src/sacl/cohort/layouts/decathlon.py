"""Medical Segmentation Decathlon: `dataset.json` lists `training [{image, label}]` and `test`.

A list `validation` (AMOS has one) is read as such. `._*` files of macOS are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sacl.cohort.layouts.found import Found, FoundCase, label_values, modality_of, read_json
from sacl.errors import DataError
from sacl.files.nifti import is_nifti, stem
from sacl.types import Split

_PARTS: tuple[tuple[str, Split], ...] = (
    ("training", "train"),
    ("validation", "validation"),
    ("test", "test"),
)


def recognize(root: Path) -> str | None:
    """Return why a folder is a decathlon task, None where it is not."""
    path = root / "dataset.json"
    if not path.is_file():
        return None
    document = read_json(path)
    listed = document.get("training")
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
        return None
    if "labels" not in document:  # a datalist of MONAI may have any name, this one too
        return None
    return f"dataset.json lists {len(listed)} training pairs of image and label"


def read(root: Path) -> Found:
    """List the cases of a task.

    Raises:
        DataError: dataset.json is damaged, or a file that it lists is missing.
    """
    document = read_json(root / "dataset.json")
    organs, ignore = label_values(document.get("labels"), "dataset.json")
    return Found(
        layout="decathlon",
        name=str(document.get("name") or root.name),
        organs=organs,
        cases=tuple(
            case for key, split in _PARTS for case in _cases(root, document.get(key), key, split)
        ),
        modality=modality_of(document.get("modality")),
        ignore=ignore,
    )


def _cases(root: Path, listed: Any, where: str, split: Split) -> Iterator[FoundCase]:
    for row in listed or ():
        image = row if isinstance(row, str) else _entry(row, "image", where)
        label = None if isinstance(row, str) else row.get("label")
        path = _existing(root, image, where)
        if is_nifti(path):
            reference = _existing(root, label, where) if label else None
            yield FoundCase(stem(path), path, reference, split, origin=where)


def _entry(row: Any, key: str, where: str) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get(key), str):
        raise DataError(f"dataset.json: an entry of '{where}' has no '{key}', got {row!r}")
    return row[key]


def _existing(root: Path, name: str, where: str) -> Path:
    path = root / name
    if not path.is_file():
        raise DataError(f"dataset.json: '{where}' lists {path.name}, and there is no such file")
    return path
