"""`scores.csv`: one row per run, scan and organ; read back exactly as written."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.types import OrganScore

COLUMNS = (
    *("run", "case_id", "subject_id", "split", "organ"),
    *("dice", "hd95_mm", "nsd", "reference_ml", "predicted_ml"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class ScoreRow:
    """An organ's score in a scan, with the run that predicted it and where the scan belongs."""

    run: str
    subject_id: str
    split: str
    score: OrganScore


def cell_text(text: str) -> str:
    """Return a name as a spreadsheet shows it and never runs it: a leading `=` gets a quote.

    Example:
        >>> cell_text("=cmd|'/c calc'!A1"), cell_text("case-7")
        ("'=cmd|'/c calc'!A1", 'case-7')
    """
    return f"'{text}" if text.startswith((*_FORMULA, "'")) else text


def score_table(rows: Iterable[ScoreRow]) -> pd.DataFrame:
    """Return one line per run, scan and organ with the columns of `scores.csv`."""
    return pd.DataFrame([(*_texts(row), *_numbers(row)) for row in rows], columns=list(COLUMNS))


def write_scores(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Write the rows; NaN (undefined) becomes an empty field, an infinite distance `inf`.

    A name that a spreadsheet would run as a formula is written behind a quote (`cell_text`).

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            numbers = ("" if math.isnan(n) else repr(float(n)) for n in _numbers(row))
            writer.writerow([*map(cell_text, _texts(row)), *numbers])


def read_scores(path: Path) -> list[ScoreRow]:
    """Read what `write_scores` wrote.

    Raises:
        DataError: the file lacks a column or a value is not a number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path.name}: no column {', '.join(missing)}; evaluate again")
        return [_row(fields, f"{path.name}, line {reader.line_num}") for fields in reader]


def _texts(row: ScoreRow) -> tuple[str, ...]:
    return row.run, row.score.case_id, row.subject_id, row.split, row.score.organ


def _numbers(row: ScoreRow) -> tuple[float, ...]:
    score = row.score
    return score.dice, score.hd95_mm, score.nsd, score.reference_ml, score.predicted_ml


def _row(fields: Mapping[str, str], where: str) -> ScoreRow:
    try:
        numbers = {name: float(fields[name] or "nan") for name in COLUMNS[5:]}
    except (TypeError, ValueError):
        raise DataError(f"{where}: a score is not a number; evaluate again") from None
    run, case_id, subject_id, split, organ = (
        fields[name].removeprefix("'") for name in COLUMNS[:5]
    )
    return ScoreRow(run, subject_id, split, OrganScore(case_id, organ, **numbers))
