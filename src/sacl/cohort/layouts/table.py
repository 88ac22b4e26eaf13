"""A table of scans: `cohort.csv` with case_id, image, and optionally label, subject_id and split.

`annotated` lists the organs that somebody looked for, such as `liver;spleen`, where these are not
all. Every other column is a scan-wise label. Paths are relative to the table. The meaning of the
label values comes from `labels.json` beside the table (`{name: value}` or `{value: name}`), else
from the label table in the first label map.
"""

from __future__ import annotations

from pathlib import Path

from sacl.cohort.layouts.found import Found, FoundCase, label_values, read_json
from sacl.cohort.scan_table import annotated_of, read_table, scan_labels_of, split_of
from sacl.errors import DataError
from sacl.files.nifti import read_label_table

_NAME = "cohort.csv"


def recognize(root: Path) -> str | None:
    """Return why a path is a table of scans, or a folder with one, None where it is not."""
    path = _table(root)
    return f"{path.name} is a table of scans" if path.is_file() else None


def read(root: Path) -> Found:
    """List the cases of the table.

    Raises:
        DataError: the table lacks a column, a file that it names is missing, or the label maps'
            values have no names.
    """
    path = _table(root)
    cases = []
    for case_id, row in read_table(path).items():
        if not row.get("image"):
            raise DataError(f"{path.name}: case {case_id} has no image; fill the column 'image'")
        cases.append(
            FoundCase(
                case_id,
                _existing(path, row["image"], case_id),
                _existing(path, row["label"], case_id) if row.get("label") else None,
                split_of(row, path.name) or "train",
                row.get("subject_id") or None,
                scan_labels_of(row),
                path.name,
                annotated=annotated_of(row),
            )
        )
    organs, ignore = _organs(path, cases)
    return Found("table", path.parent.name, organs, tuple(cases), ignore=ignore)


def _table(root: Path) -> Path:
    return root if root.suffix == ".csv" else root / _NAME


def _existing(table: Path, name: str, case_id: str) -> Path:
    path = table.parent / name
    if not path.is_file():
        raise DataError(f"{table.name}: case {case_id} names {path.name}, there is no such file")
    return path


def _organs(table: Path, cases: list[FoundCase]) -> tuple[dict[int, str], int | None]:
    first = next((case.reference for case in cases if case.reference), None)
    if first is None:
        return {}, None
    beside = table.with_name("labels.json")
    if beside.is_file():
        return label_values(read_json(beside), beside.name)
    names = read_label_table(first)
    if names is None:
        raise DataError(
            f"{table.name}: the label values have no names; write labels.json beside the table,"
            ' such as {"liver": 1, "spleen": 2}'
        )
    return label_values({name: value for name, value in names.items() if value}, first.name)
