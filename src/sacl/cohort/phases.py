"""`phases.csv`: the contrast phase of every scan, who says so, and what its HU say."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.phase_words import PHASE
from sacl.types import UNKNOWN, Cohort

PHASES_FILE = "phases.csv"

PhaseSource = Literal["table", "tags", "estimated", "unknown"]


@dataclass(frozen=True)
class ScanPhase:
    """One scan's phase: the one that is used, its source, and what the estimator says.

    `estimated` is the likeliest phase by the HU and `probability` its probability, whatever is
    used; `conflict` marks a given phase that the HU contradict. `hu` are medians by tissue.
    """

    case_id: str
    phase: str
    source: PhaseSource
    estimated: str
    probability: float
    conflict: bool
    explanation: str
    hu: Mapping[str, float]


def write_phases(path: Path, phases: Sequence[ScanPhase], tissues: Sequence[str]) -> None:
    """Write a row per scan and a column of HU per tissue, empty where it was not measured."""
    given = [field.name for field in dataclasses.fields(ScanPhase) if field.name != "hu"]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*given, *(f"hu_{tissue}" for tissue in tissues)])
        for scan in phases:
            row = dataclasses.replace(scan, probability=round(scan.probability, 4))
            values = [getattr(row, name) for name in given]
            hu = [f"{scan.hu[t]:.1f}" if t in scan.hu else "" for t in tissues]
            writer.writerow([*values, *hu])


def with_phases(cohort: Cohort, folder: Path) -> Cohort:
    """Return the cohort with the phases that were estimated, where its own are unknown.

    A phase that the cohort has stays. Without `phases.csv` the cohort is returned as it is.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / PHASES_FILE
    if not path.is_file():
        return cohort
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        estimated = {r["case_id"]: r["phase"] for r in rows if r["source"] == "estimated"}
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise DataError(
            f"{folder.name}/{PHASES_FILE}: damaged ({type(error).__name__});"
            " run `sacl locate --force`"
        ) from error
    cases = tuple(
        dataclasses.replace(case, scan_labels={**case.scan_labels, PHASE: estimated[case.case_id]})
        if case.scan_label(PHASE) == UNKNOWN and case.case_id in estimated
        else case
        for case in cohort.cases
    )
    return dataclasses.replace(cohort, cases=cases)
