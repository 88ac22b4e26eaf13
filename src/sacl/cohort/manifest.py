"""`cohort.json` and the volumes beside it: the one description of a cohort all stages share.

`phases.csv` joins it later: the contrast phase of every scan, where it is from, what its HU say.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import pandas as pd

from sacl.errors import DataError
from sacl.files.atomic import array_of
from sacl.files.documents import cell_text, read_rows, text_of_cell, write_json, write_table
from sacl.files.nifti import map_volume, read_label_map, read_volume
from sacl.types import PHASE, UNKNOWN, Case, Cohort, LabelMap, LabelScheme, Volume

MANIFEST = "cohort.json"
PHASES_FILE = "phases.csv"
PhaseSource = Literal["table", "tags", "estimated", "unknown"]

_VERSION = 2
_AGAIN = "run `sacl ingest CONFIG.yaml --force`"


@dataclass(frozen=True)
class ScanPhase:
    """One scan's phase: the one that is used, its source, and what the estimator says.

    `estimated` is the likeliest phase by the HU, whatever is used; `conflict` marks a given phase
    that the HU contradict. `hu` are medians by tissue.
    """

    case_id: str
    phase: str
    source: PhaseSource
    estimated: str
    probability: float
    conflict: bool
    explanation: str
    hu: Mapping[str, float]


def write_cohort(folder: Path, cohort: Cohort) -> None:
    """Write the cohort's manifest into its folder; it holds no path outside of it."""
    write_json(folder / MANIFEST, {"version": _VERSION, **vars(cohort)})


def read_cohort(folder: Path) -> Cohort:
    """Read the cohort of a folder."""
    where = f"{folder.name}/{MANIFEST}"
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = document.pop("version", None)
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file; run `sacl ingest` first") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object ({error}); {_AGAIN}") from error
    if version != _VERSION:
        raise DataError(f"{where}: version {version}, expected {_VERSION}; {_AGAIN}")
    try:
        return msgspec.convert(document, Cohort, dec_hook=array_of)
    except (msgspec.ValidationError, DataError) as error:
        raise DataError(f"{where}: damaged, {error}; {_AGAIN}") from error


def read_image(folder: Path, case: Case) -> Volume:
    """Return a case's canonical image, memory-mapped where it is stored uncompressed."""
    path = folder / case.image
    return map_volume(path) if path.suffix == ".nii" else read_volume(path)[0]


def read_reference(folder: Path, case: Case, scheme: LabelScheme) -> LabelMap | None:
    """Return a case's canonical reference, None where it has none or it is hidden."""
    if case.reference is None:
        return None
    return read_label_map(folder / case.reference, scheme)[0]


def write_phases(path: Path, phases: Sequence[ScanPhase], tissues: Sequence[str]) -> None:
    """Write a row per scan and a column of HU per tissue, empty where it was not measured."""
    rows = []
    for scan in phases:
        row = {**vars(scan), "case_id": cell_text(scan.case_id)}
        hu, row["probability"] = row.pop("hu"), round(scan.probability, 4)
        rows.append(row | {f"hu_{t}": f"{hu[t]:.1f}" if t in hu else "" for t in tissues})
    write_table(path, pd.DataFrame(rows), lineterminator="\r\n")


def with_phases(cohort: Cohort, folder: Path) -> Cohort:
    """Return the cohort with the phases of `phases.csv`, if any, where its own are unknown."""
    path = folder / PHASES_FILE
    if not path.is_file():
        return cohort
    try:
        rows = [row for row in read_rows(path).values() if row["source"] == "estimated"]
        estimated = {text_of_cell(row["case_id"]): row["phase"] for row in rows}
    except (DataError, KeyError) as error:
        raise DataError(
            f"{folder.name}/{PHASES_FILE}: damaged; run `sacl locate CONFIG.yaml --force`"
        ) from error
    cases = tuple(
        dataclasses.replace(case, scan_labels={**case.scan_labels, PHASE: estimated[case.case_id]})
        if case.scan_label(PHASE) == UNKNOWN and case.case_id in estimated
        else case
        for case in cohort.cases
    )
    return dataclasses.replace(cohort, cases=cases)
