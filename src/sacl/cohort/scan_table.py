"""Tables of scans (CSV or JSON): subjects, splits and scan-wise labels by case."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from sacl.cohort.layouts.found import Found
from sacl.cohort.phase_json import read_phases
from sacl.errors import DataError
from sacl.organs import snake_case
from sacl.phase_words import PHASE, phase_word
from sacl.types import UNKNOWN, Split

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "tr": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_NOT_LABELS = ("case_id", "subject_id", "split", "image", "label", "annotated")


def read_table(path: Path, key: str = "case_id") -> dict[str, dict[str, str]]:
    """Return the rows of a CSV by `case_id`; column names are put into snake case.

    Commas, semicolons and tabs separate columns. `key` is what the file calls the case.

    Raises:
        DataError: the file is missing or no text, has no column `key`, or a case has two rows.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: not readable as a table ({type(error).__name__})") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows: dict[str, dict[str, str]] = {}
    for cells in csv.DictReader(text.splitlines(), delimiter=delimiter):
        row = {snake_case(k or "extra"): (v or "").strip() for k, v in cells.items() if k}
        case_id = row["case_id"] = row.pop(key, "")
        if not case_id:
            raise DataError(
                f"{path.name}: a row without a {key}; the first column names are {header.strip()}"
            )
        if case_id in rows:
            raise DataError(f"{path.name}: case {case_id} stands in it twice; remove one row")
        rows[case_id] = row
    if not rows:
        raise DataError(f"{path.name}: no row; expected {key} and one column per scan-wise label")
    return rows


def scan_labels_of(row: Mapping[str, str]) -> dict[str, str]:
    """Return the scan-wise labels of a row in snake case; an empty cell is `unknown`.

    The contrast phases of other tools and languages get the words of `phase_words`.
    """
    labels = {name: value for name, value in row.items() if name not in _NOT_LABELS}
    return {
        name: phase_word(value) if name == PHASE else snake_case(value) or UNKNOWN
        for name, value in labels.items()
    }


def split_of(row: Mapping[str, str], where: str) -> Split | None:
    """Return the split that a row names, None where it names none.

    Raises:
        DataError: the word is not that of a split.
    """
    word = row.get("split", "").lower()
    if word and word not in _SPLITS:
        raise DataError(
            f"{where}: case {row['case_id']} has the split '{row['split']}', expected train,"
            " validation or test"
        )
    return _SPLITS.get(word)


def annotated_of(row: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the organs that somebody looked for in a scan, such as `liver;spleen`.

    None where the row does not say it: all of the scan's table then.
    """
    names = re.split(r"[;|]", row.get("annotated", ""))
    return tuple(name.strip() for name in names if name.strip()) or None


def with_table(found: Found, path: Path) -> Found:
    """Return a dataset whose cases know what a table says of them; the table wins.

    An empty cell says nothing: what the dataset knows itself stays. `path` is a CSV, a JSON with an
    entry per case, or a folder of phases as `io.phase_json` reads them.

    Raises:
        DataError: the table is damaged, or none of its rows is a case of the dataset.
    """
    rows = read_phases(path) if path.is_dir() or path.suffix == ".json" else read_table(path)
    names = list(dict.fromkeys(name for row in rows.values() for name in scan_labels_of(row)))
    if not any(case.case_id in rows for case in found.cases):
        raise DataError(
            f"{path.name}: no row names a case of {found.name}; the table has '{next(iter(rows))}',"
            f" the data '{found.cases[0].case_id}'"
        )
    cases = []
    for case in found.cases:
        row = rows.get(case.case_id, {"case_id": case.case_id})
        split = split_of(row, path.name)
        cases.append(
            dataclasses.replace(
                case,
                subject_id=row.get("subject_id") or case.subject_id,
                split=split or case.split,
                origin=path.name if split else case.origin,
                annotated=annotated_of(row) or case.annotated,
                scan_labels={**dict.fromkeys(names, UNKNOWN), **case.scan_labels}
                | {name: label for name, label in scan_labels_of(row).items() if row[name]},
            )
        )
    missing = sum(case.case_id not in rows for case in found.cases)
    note = (f"{missing} cases have no row in {path.name}; their scan-wise labels are unknown",)
    return dataclasses.replace(
        found, cases=tuple(cases), notes=found.notes + (note if missing else ())
    )
