"""`scores.csv`: one row per run, scan and organ; read back exactly as written."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.types import OrganScore


@dataclass(frozen=True)
class ScoreRow:
    """An organ's score in a scan, with the run that predicted it and where the scan belongs."""

    run: str
    subject_id: str
    split: str
    score: OrganScore


COLUMNS = (
    *("run", "case_id", "subject_id", "split", "organ"),
    *("dice", "hd95_mm", "nsd", "reference_ml", "predicted_ml"),
)
_NUMBERS = tuple(name for name, kind in get_type_hints(OrganScore).items() if kind is float)


def write_scores(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Write the rows; NaN (undefined) becomes an empty field, an infinite distance `inf`.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(_to_fields(row) for row in rows)


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
        return [_from_fields(fields, f"{path.name}, line {reader.line_num}") for fields in reader]


def _to_fields(row: ScoreRow) -> dict[str, str]:
    fields = {"run": row.run, "subject_id": row.subject_id, "split": row.split}
    for name, value in dataclasses.asdict(row.score).items():
        fields[name] = _text(value) if name in _NUMBERS else value
    return fields


def _text(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def _from_fields(fields: dict[str, str], where: str) -> ScoreRow:
    try:
        numbers = {name: float(fields[name] or "nan") for name in _NUMBERS}
    except (TypeError, ValueError):
        raise DataError(f"{where}: a score is not a number; evaluate again") from None
    score = OrganScore(case_id=fields["case_id"], organ=fields["organ"], **numbers)
    return ScoreRow(fields["run"], fields["subject_id"], fields["split"], score)
