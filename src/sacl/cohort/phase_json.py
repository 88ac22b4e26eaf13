"""Contrast phases as TotalSegmentator's `totalseg_get_phase` writes them, in JSON.

Such a file holds `phase`, `probability` and `pi_time` (seconds after the injection) of one scan.
Whatever is longer ago than 100 s is called portal venous there, with the probability 0.3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sacl.errors import DataError
from sacl.organs import snake_case
from sacl.phase_words import PHASE
from sacl.types import UNKNOWN

_LEAST_PROBABILITY = 0.5
_SUFFIX = "_phase"


def read_phases(path: Path) -> dict[str, dict[str, str]]:
    """Return the texts that JSON says of every case, by case id; numbers are no labels.

    Either a folder with `CASE.json` or `CASE_phase.json` per case, or one file with an entry per
    case: what `totalseg_get_phase` writes, or just the phase. A phase whose `probability` is below
    0.5 is `unknown`.

    Raises:
        DataError: a file is no JSON or names no phase, or a case has two files.
    """
    documents = _of_folder(path) if path.is_dir() else _of_file(path)
    rows = {}
    for case_id, document in documents.items():
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


def phase_of(document: Any, where: str) -> str:
    """Return the phase that the JSON of one scan names, `unknown` where its writer doubts it.

    Raises:
        DataError: it names none.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get(PHASE), str):
        raise DataError(f"{where}: no text '{PHASE}' in it; remove the file")
    return _texts(document)[PHASE]


def _of_folder(folder: Path) -> dict[str, Any]:
    documents: dict[str, Any] = {}
    for path in sorted(folder.glob("[!.]*.json")):
        case_id, document = path.stem.removesuffix(_SUFFIX), _read(path)
        if case_id in documents:
            raise DataError(f"{folder.name}: case {case_id} has two files; remove one")
        documents[case_id] = {PHASE: phase_of(document, f"{folder.name}/{path.name}")}
    return documents


def _of_file(path: Path) -> Mapping[str, Any]:
    document = _read(path)
    if not isinstance(document, Mapping):
        raise DataError(f"{path.name}: expected an entry per case id, got a {_kind(document)}")
    if isinstance(document.get(PHASE), str) and "probability" in document:
        raise DataError(
            f"{path.name}: the phase of one scan, nobody says which; give its folder (with a file"
            " CASE.json per case), or one file with an entry per case id"
        )
    return document


def _texts(entry: Mapping[str, Any]) -> dict[str, str]:
    texts = {snake_case(k): v.strip() for k, v in entry.items() if isinstance(v, str)}
    probability = entry.get("probability")
    if isinstance(probability, (int, float)) and probability < _LEAST_PROBABILITY:
        texts[PHASE] = UNKNOWN
    return texts


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name}: not readable as JSON ({type(error).__name__})") from error


def _kind(document: Any) -> str:
    return "list" if isinstance(document, list) else type(document).__name__
