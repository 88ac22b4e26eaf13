"""Datasets of empty files, for layouts that are listed and not read."""

from __future__ import annotations

import json
from pathlib import Path

from sacl.cohort.dataset import Dataset


def touch(root: Path, *names: str) -> None:
    """Make files that nobody reads: listing a dataset opens no scan."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_json(root: Path, document: object, name: str = "dataset.json") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(document))


def summary(found: Dataset) -> dict[str, tuple[str, str | None, str]]:
    """Return image name, reference name and split by case."""
    return {
        case.case_id: (
            case.image.name,
            case.reference.name if case.reference else None,
            case.split,
        )
        for case in found.cases
    }
