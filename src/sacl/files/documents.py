"""Small JSON and CSV files that people write; damaged ones are refused in one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import yaml

from sacl.errors import DataError
from sacl.files.atomic import plain, replacing, write_text
from sacl.organs import snake_case

if TYPE_CHECKING:  # pandas takes a while to import
    import pandas as pd

Record = TypeVar("Record")
JsonObject = Mapping[str, Any]
"""An object of JSON as read, its values not yet looked at."""


def cell_text(text: str) -> str:
    """Return a name as a spreadsheet shows it and never runs it: a leading `=` gets a quote.

    Example:
        >>> cell_text("=cmd|'/c calc'!A1"), cell_text("case-7")
        ("'=cmd|'/c calc'!A1", 'case-7')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


def text_of_cell(cell: str) -> str:
    """Return the name that `cell_text` wrote."""
    return cell.removeprefix("'")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; an object with one key twice is refused."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text, object_pairs_hook=_without_repetition)
        if "\\ud" in text.lower():  # half of a pair, which nothing can print or write
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except RecursionError as error:
        raise DataError(f"{path.name}: nested too deeply to be read as JSON") from error
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read, {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path.name}: not readable as JSON ({error})") from error


def read_object(path: Path) -> JsonObject:
    """Return what a JSON file holds, and refuse what is no object."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path.name}: expected a JSON object, got a {type(document).__name__}")
    return document


def read_as(path: Path, kind: type[Record], remedy: str) -> Record:
    """Return a JSON file of ours as a record with all fields checked; errors end in the remedy."""
    where = f"{path.parent.name}/{path.name}: damaged"
    try:
        document = read_json(path)
    except DataError as error:
        raise DataError(f"{where}, {error}; {remedy}") from error
    return as_record(document, kind, where, remedy)


def read_if_there(path: Path, kind: type[Record], remedy: str) -> Record | None:
    """Return a JSON file of ours as by `read_as`, None where there is no such file."""
    return read_as(path, kind, remedy) if path.is_file() else None


def packaged(package: str, name: str, kind: Any) -> Any:
    """Return a YAML file that comes with a package, as a record or a mapping of records."""
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it was built: at each start
    return msgspec.convert(yaml.load(text, loader), kind)


def write_json(path: Path, document: Any) -> None:
    """Write JSON, or a record of ours as JSON, whole or not at all."""
    write_text(path, json.dumps(plain(document), indent=1, allow_nan=False) + "\n")


def write_table(path: Path, table: pd.DataFrame, **how: Any) -> None:
    """Write a table as CSV whole or not at all; `how` are arguments of `to_csv`."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, **how)


def as_record(document: Any, kind: Any, where: str, remedy: str) -> Any:
    """Return JSON as a record, or as a `list[...]` of records, with all fields checked."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        message = str(error)[:1].lower() + str(error)[1:]
        raise DataError(f"{where}: {message}; {remedy}") from error


def read_rows(path: Path, key: str = "case_id") -> dict[str, dict[str, str]]:
    """Return the rows of a CSV by case, which the file calls `key`; column names in snake case.

    Commas, semicolons and tabs separate columns. Two rows of a case are refused.
    """
    rows: dict[str, dict[str, str]] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0].strip()
        delimiter = max(",;\t", key=header.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        for cells in reader:
            row = {snake_case(k): (v or "").strip() for k, v in cells.items() if k}
            case_id = row["case_id"] = row.pop(key, "")
            if not case_id:
                raise DataError(
                    f"{path.name}: line {reader.line_num} has no {key}; the column names are"
                    f" {header[:100]}"
                )
            if case_id in rows:
                raise DataError(f"{path.name}: case {case_id} appears twice; remove one row")
            rows[case_id] = row
    except OSError as error:
        raise DataError(f"{path.name}: not readable, {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        reason = error if isinstance(error, csv.Error) else type(error).__name__
        raise DataError(f"{path.name}: not readable as a table ({reason})") from error
    if not rows:
        raise DataError(
            f"{path.name}: has no rows; expected {key} and one column per scan-wise label"
        )
    return rows


def _without_repetition(pairs: list[tuple[str, Any]]) -> JsonObject:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in document if keys.count(key) > 1)
        raise ValueError(f"the key '{twice[:60]}' appears twice in one object; remove one")
    return document
