"""Tables of scans (CSV or JSON): subjects, splits and scan-wise labels by case.

Besides tables, the JSON of TotalSegmentator's `totalseg_get_phase` is read: `phase` and
`probability` of one scan. Whatever is longer ago than 100 s is called portal venous there, with
the probability 0.3.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sacl.cohort.dataset import Dataset, SourceCase, in_short
from sacl.errors import DataError
from sacl.files.documents import JsonObject, read_json, read_object, read_rows
from sacl.organs import snake_case, words_for
from sacl.types import PHASE, PHASES, SPLITS, UNKNOWN, Split

BESIDE = ("scan_labels.csv", "subjects.csv")
"""Tables that are read without being asked for where they lie in the data's folder."""
_WORDS_OF = words_for("splits")
SPLIT_OF: dict[str, Split] = {word: split for split in SPLITS for word in _WORDS_OF[split]}
"""What others call a split."""
NOT_LABELS = ("case_id", "subject_id", "split", "image", "label", "annotated")
"""Columns of a table that are no scan-wise labels."""
_LEAST_PROBABILITY = 0.5
_PHASE_OF = {alias: phase for phase, aliases in words_for("phases").items() for alias in aliases}
"""What hospitals and other tools call a contrast phase."""


def scan_labels_of(row: Mapping[str, Any], others: Collection[str] = NOT_LABELS) -> dict[str, str]:
    """Return the scan-wise labels among plain values in snake case; `others` are no labels.

    The contrast phases of other tools get this program's words.
    """
    labels = {}
    for key, value in row.items():
        name, text = snake_case(key), "" if value is None else str(value)
        if name and name not in others and isinstance(value, (str, int, float, type(None))):
            labels[name] = phase_word(text) if name == PHASE else snake_case(text) or UNKNOWN
    return labels


def phase_word(text: str) -> str:
    """Return the one word for a contrast phase; another word is only put into snake case.

    Example:
        >>> phase_word("Portal-venous phase"), phase_word("non-contrast"), phase_word("ED")
        ('portal_venous', 'native', 'ed')
    """
    word = snake_case(text)
    if not word:
        return UNKNOWN
    short = word.removesuffix("_phase")
    return short if short in PHASES else _PHASE_OF.get(short, word)


def split_of(row: Mapping[str, str], where: str) -> Split | None:
    """Return the split that a row names, None where it names none; another word is refused."""
    word = row.get("split", "").lower()
    if word and word not in SPLIT_OF:
        raise DataError(
            f"{where}: case {row['case_id']} has the split '{row['split']}', expected train,"
            " validation or test"
        )
    return SPLIT_OF.get(word)


def annotated_of(row: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the organs that were looked for in a scan, such as `liver;spleen`; None for all."""
    names = re.split(r"[;|]", row.get("annotated", ""))
    return tuple(name.strip() for name in names if name.strip()) or None


def with_table(dataset: Dataset, path: Path) -> Dataset:
    """Return a dataset whose cases know what a table says of them; the table wins.

    An empty cell says nothing. `path` is a CSV, or what `read_phases` reads. A table of which no
    row is a case of the dataset is refused.
    """
    rows = read_phases(path) if path.is_dir() or path.suffix == ".json" else read_rows(path)
    names = list(dict.fromkeys(name for row in rows.values() for name in scan_labels_of(row)))
    if not any(case.case_id in rows for case in dataset.cases):
        raise DataError(
            f"{path.name}: no row names a case of {dataset.name}; the table has"
            f" '{next(iter(rows))}', the data '{dataset.cases[0].case_id}'"
        )
    cases = tuple(
        _with_row(case, rows.get(case.case_id, {"case_id": case.case_id}), names, path.name)
        for case in dataset.cases
    )
    missing = sum(case.case_id not in rows for case in cases)
    note = f"{missing} cases have no row in {path.name}; their scan-wise labels are unknown"
    strange = sorted(rows.keys() - {case.case_id for case in cases})
    lost = f"{len(strange)} rows of {path.name} name no scan: {in_short(strange)}"
    notes = note if missing else "", lost if strange else ""
    return dataclasses.replace(dataset, cases=cases).with_notes(*notes)


def _with_row(case: SourceCase, row: Mapping[str, str], names: list[str], table: str) -> SourceCase:
    split = split_of(row, table)
    said = {name: label for name, label in scan_labels_of(row).items() if row[name]}
    return dataclasses.replace(
        case,
        subject_id=row.get("subject_id") or case.subject_id,
        split=split or case.split,
        origin=table if split else case.origin,
        annotated=annotated_of(row) or case.annotated,
        scan_labels=dict.fromkeys(names, UNKNOWN) | dict(case.scan_labels) | said,
    )


def read_phases(path: Path) -> dict[str, dict[str, str]]:
    """Return the texts that JSON says of every case, by case id; numbers are no labels.

    Either a folder with `CASE.json` or `CASE_phase.json` per case, or one file with an entry per
    case: what `totalseg_get_phase` writes, or just the phase; `unknown` below a `probability` of
    0.5. A file without a phase, or a second one of a case, is refused.
    """
    rows = {}
    for case_id, document in (_of_folder(path) if path.is_dir() else _of_file(path)).items():
        entry = {PHASE: document} if isinstance(document, str) else document
        if not isinstance(entry, Mapping):
            raise DataError(
                f"{path.name}: case {case_id} has {json.dumps(document)[:40]}, expected a phase or"
                " what totalseg_get_phase writes"
            )
        rows[case_id] = _texts(entry) | {"case_id": case_id}
    if not rows:
        raise DataError(f"{path.name}: no case in it; expected a JSON file or entry per case")
    return rows


def phase_in(path: Path, where: str) -> str:
    """Return the phase that the JSON of one scan names, `unknown` where its writer doubts it."""
    document = read_json(path)
    if not isinstance(document, Mapping) or not isinstance(document.get(PHASE), str):
        raise DataError(f"{where}: has no text '{PHASE}'; remove the file")
    return _texts(document)[PHASE]


def _of_folder(folder: Path) -> JsonObject:
    phases: dict[str, str] = {}
    for path in sorted(folder.glob("[!.]*.json")):
        case_id = path.stem.removesuffix("_phase")
        if case_id in phases:
            raise DataError(f"{folder.name}: case {case_id} has two files; remove one")
        phases[case_id] = phase_in(path, f"{folder.name}/{path.name}")
    return phases


def _of_file(path: Path) -> JsonObject:
    document = read_object(path)
    if isinstance(document.get(PHASE), str) and "probability" in document:
        raise DataError(
            f"{path.name}: the phase of one scan, without its case id; give its folder (with a file"
            " CASE.json per case), or one file with an entry per case id"
        )
    return document


def _texts(entry: JsonObject) -> dict[str, str]:
    texts = {snake_case(k): v.strip() for k, v in entry.items() if isinstance(v, str)}
    probability = entry.get("probability")
    if isinstance(probability, (int, float)) and probability < _LEAST_PROBABILITY:
        texts[PHASE] = UNKNOWN
    return texts
