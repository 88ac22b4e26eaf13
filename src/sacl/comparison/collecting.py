"""The results of a comparison: a tidy table of all scores, and a document of all figures."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sacl.cohort.manifest import read_cohort
from sacl.comparison.cells import SHARED, Cell, cell_name
from sacl.comparison.checks import RESULTS, labeled_count, scored_cases
from sacl.comparison.running import (
    CellState,
    Confirmed,
    cell_state,
    failure_of,
    seconds_and_steps,
)
from sacl.comparison.strategies import (
    PRIMARY,
    SECONDARY,
    Draws,
    compare_strategies,
    strategy_figures,
)
from sacl.errors import DataError
from sacl.files.atomic import plain, replacing, write_text
from sacl.run.record import git_revision, read_record, versions
from sacl.scores.scoring import EMPTY_RULE
from sacl.scores.statistics import CONFIDENCE
from sacl.scores.summary import none_for_nan, score_table
from sacl.scores.table import read_scores
from sacl.settings.protocol import VERSION, Protocol
from sacl.types import Cohort

TABLE = "results.csv"
COLUMNS = (
    *("cohort", "labeled_subjects", "strategy", "seed", "split", "case_id", "subject_id", "organ"),
    *("dice", "nsd", "hd95_mm", "reference_ml", "predicted_ml"),
)


def write_results(
    protocol: Protocol, cells: Sequence[Cell], confirmed: Confirmed
) -> dict[str, Any]:
    """Write `results.csv` and `results.json` of all finished cells, and return the document."""
    states = {cell.name: cell_state(cell, confirmed) for cell in cells}
    done = [cell for cell in cells if states[cell.name] == "done"]
    cohorts = {cell.labeled_subjects: _cohort(cell) for cell in done}
    scores = score_lines(done, cohorts, protocol.scored_values)
    document = {
        "version": VERSION,
        "protocol": plain(protocol),
        "settings_hash": settings_hash(cells),
        "cohort": next((c.name for c in cohorts.values()), None),
        "modality": next((c.modality for c in cohorts.values()), None),
        "organs": list(next((c.scheme.names for c in cohorts.values()), ())),
        "nsd_tolerance_mm": cells[0].config.evaluate.nsd_tolerance_mm,
        "rule_for_empty_organs": EMPTY_RULE,
        "confidence": CONFIDENCE,
        "bootstrap": {"resamples": protocol.bootstrap, "seed": protocol.seeds[0]},
        "tests": {"primary": PRIMARY, "secondary": SECONDARY},
        "levels": levels(protocol, scores),
        "cells": [_of_cell(cell, states[cell.name]) for cell in cells],
        "shared": _shared_seconds(done),
        "machine": _machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    document = none_for_nan(document)
    with replacing(protocol.work / TABLE) as temporary:
        scores.to_csv(temporary, index=False)
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    write_text(protocol.work / RESULTS, text)
    return document


def score_lines(
    done: Sequence[Cell], cohorts: Mapping[int | None, Cohort], scored_values: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the scores of finished cells, a line per cell, scan and organ.

    With `scored_values`, only of scans whose scan-wise label is one of them.

    Raises:
        DataError: two cells at one number of labels were not scored on the same scans and organs.
    """
    parts: list[pd.DataFrame] = []
    scored: dict[int | None, tuple[str, set[tuple[str, str]]]] = {}
    for cell in done:
        folder = cell.workspace("evaluate").folder("evaluate")
        rows = read_scores(folder / "scores.csv")
        cohort = cohorts[cell.labeled_subjects]
        counted = scored_cases(cohort, cell.config.ingest.labeled_scan_label, scored_values)
        table = score_table(
            row for row in rows if row.run == rows[0].run and row.score.case_id in counted
        )
        table = table.assign(
            cohort=cohort.name,
            labeled_subjects=labeled_count(cohort),
            strategy=cell.strategy,
            seed=cell.seed,
        )
        pairs = set(zip(table["case_id"], table["organ"], strict=True))
        first = scored.setdefault(cell.labeled_subjects, (cell.name, pairs))
        if first[1] != pairs:
            raise DataError(
                f"{cell.name}: scored {len(pairs)} pairs of scan and organ, and {first[0]}"
                f" {len(first[1])}, not the same ones; remove both cells' folders to redo them"
            )
        parts.append(table)
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def levels(protocol: Protocol, scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the figures at every number of labeled subjects, the smallest first."""
    draws = Draws(protocol.bootstrap, protocol.seeds[0])
    found = []
    for count, part in scores.groupby("labeled_subjects", sort=True):
        figures = {
            str(name): strategy_figures(own, draws)
            for name, own in part.groupby("strategy", sort=False)
        }
        order = [s for s in (*protocol.strategies, *protocol.ablations) if s in figures]
        found.append(
            {
                "labeled_subjects": int(str(count)),
                "scored": _scored(part),
                "strategies": {name: figures[name] for name in order},
                "comparisons": compare_strategies(
                    part, protocol.ours, tuple(protocol.strategies), draws
                ),
                "ablations": compare_strategies(
                    part, protocol.ours, tuple(protocol.ablations), draws
                ),
                "families": {
                    name: compare_strategies(part, name, others, draws)
                    for name, others in protocol.families.items()
                },
            }
        )
    return found


def settings_hash(cells: Sequence[Cell]) -> str:
    """Return a hash of all settings of all cells, which tells two comparisons apart."""
    settings = {cell.name: {**plain(cell.config), "work": None} for cell in cells}
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cohort(cell: Cell) -> Cohort:
    return read_cohort(cell.workspace("ingest").require("ingest"))


def _scored(scores: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(split): {
            "subjects": int(part["subject_id"].nunique()),
            "cases": int(part["case_id"].nunique()),
        }
        for split, part in scores.groupby("split", sort=False)
    }


def _of_cell(cell: Cell, state: CellState) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": cell_name(cell.labeled_subjects, cell.strategy, cell.seed),
        "labeled_subjects": cell.labeled_subjects,
        "strategy": cell.strategy,
        "seed": cell.seed,
        "state": state,
    }
    if state == "failed":
        entry["cause"] = failure_of(cell)
    if state == "done":
        entry |= seconds_and_steps(cell)
    return entry


def _shared_seconds(done: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Return how long the shared stages took, by folder."""
    found: dict[str, dict[str, float]] = {}
    for cell in done:
        for stage in (s for s in cell.stages if s in SHARED):
            folder = cell.workspace(stage).folder(stage)
            record = read_record(folder) or {}
            found.setdefault(folder.parent.name, {})[stage] = record["duration_s"]
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
    }
