"""Gather what finished cells scored into `results.csv` and `results.json`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from filelock import FileLock

from research.grid import OF_COHORT, Cell, Grid, labeled_count, scored_cases, workspace_of
from research.protocol import Protocol
from research.results import VERSION, CellEntry, Level, Results, read_results
from research.statistics import (
    PRIMARY,
    SECONDARY,
    Draws,
    compare_strategies,
    strategy_figures,
)
from sacl.errors import DataError, WorkspaceError
from sacl.files.atomic import plain, remove_partials
from sacl.files.documents import write_json, write_table
from sacl.run.record import git_revision, read_record, versions
from sacl.scores.organs_of_case import EMPTY_RULE
from sacl.scores.summary import CONFIDENCE, read_scores
from sacl.types import Cohort

RESULTS, TABLE, LOCK = "results.json", "results.csv", ".results.lock"
COLUMNS = (
    *("cohort", "labeled_subjects", "strategy", "seed", "split", "case_id", "subject_id", "organ"),
    *("dice", "nsd", "hd95_mm", "reference_ml", "predicted_ml"),
)


def write_results(grid: Grid) -> Results:
    """Write table and figures of all finished cells, one process at a time, and return them.

    Raises:
        WorkspaceError: the folder holds the results of another comparison.
    """
    protocol = grid.protocol
    path = protocol.work / RESULTS
    with FileLock(protocol.work / LOCK):
        require_results_of(protocol)
        remove_partials(protocol.work, [RESULTS, TABLE])
        finished = {cell.name: grid.finished(cell) for cell in grid.cells}
        done = [c for c in grid.cells if len(finished[c.name]) == len(c.stages)]
        parts = [_score_lines(grid, cell, finished[cell.name]) for cell in done]
        scores = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
        _require_same_scans(scores)
        cohort = grid.cohort(done[0]) if done else None
        document = {
            "version": VERSION,
            "protocol": {**plain(protocol), "work": protocol.work.name},
            "settings_hash": settings_hash(grid.cells),
            "cohort": None if cohort is None else cohort.name,
            "modality": None if cohort is None else cohort.modality,
            "organs": [] if cohort is None else list(cohort.scheme.names),
            "nsd_tolerance_mm": grid.cells[0].config.evaluate.nsd_tolerance_mm,
            "rule_for_empty_organs": EMPTY_RULE,
            "confidence": CONFIDENCE,
            "bootstrap": {"resamples": protocol.bootstrap, "seed": protocol.seeds[0]},
            "tests": {"primary": PRIMARY, "secondary": SECONDARY},
            "levels": levels(protocol, scores),
            "cells": [_entry(grid, cell, finished[cell.name]) for cell in grid.cells],
            "shared": _shared_seconds(finished.values()),
            "machine": {
                "system": platform.system(),
                "architecture": platform.machine(),
                "cores": os.cpu_count(),
            },
            "versions": versions(),
            "git_revision": git_revision(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_table(protocol.work / TABLE, scores)
        write_json(path, document)
    return read_results(path)


def require_results_of(protocol: Protocol) -> None:
    """Refuse a folder that holds another comparison's results.

    Raises:
        WorkspaceError: naming both.
    """
    path = protocol.work / RESULTS
    if path.is_file() and (name := read_results(path).protocol.name) != protocol.name:
        raise WorkspaceError(
            f"{path}: results of '{name}', expected '{protocol.name}'; take another --work"
        )


def levels(protocol: Protocol, scores: pd.DataFrame) -> list[Level]:
    """Return the figures at every number of labeled subjects, the smallest first."""
    draws = Draws(protocol.bootstrap, protocol.seeds[0])
    return [
        Level(
            labeled_subjects=int(str(count)),
            scored={
                str(split): {
                    "subjects": int(own["subject_id"].nunique()),
                    "cases": int(own["case_id"].nunique()),
                }
                for split, own in part.groupby("split", sort=False)
            },
            strategies={
                name: strategy_figures(part[part["strategy"] == name], draws)
                for name in protocol.names
                if name in set(part["strategy"])
            },
            comparisons=compare_strategies(part, protocol.ours, tuple(protocol.strategies), draws),
            ablations=compare_strategies(part, protocol.ours, tuple(protocol.ablations), draws),
            families={
                name: compare_strategies(part, name, others, draws)
                for name, others in protocol.families.items()
            },
        )
        for count, part in scores.groupby("labeled_subjects", sort=True)
    ]


def settings_hash(cells: Iterable[Cell]) -> str:
    """Return a hash of all settings of all cells, which tells two comparisons apart."""
    settings = {cell.name: {**plain(cell.config), "work": None} for cell in cells}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _score_lines(grid: Grid, cell: Cell, entries: Mapping[str, Path]) -> pd.DataFrame:
    """Return the scores of a finished cell's one segmenter, a line per scan and organ."""
    workspace = workspace_of(cell, "evaluate", entries)
    rows = read_scores(workspace.folder("evaluate") / "scores.csv")
    cohort: Cohort = grid.cohort(cell)
    counted = scored_cases(cohort, grid.protocol, cell.config.ingest.stratify)
    lines = [
        {"subject_id": row.subject_id, "split": row.split, **asdict(row.score)}
        for row in rows
        if row.run == rows[0].run and row.score.case_id in counted
    ]
    table = pd.DataFrame(lines, columns=[c for c in COLUMNS if c not in _OF_CELL])
    return table.assign(
        cohort=cohort.name,
        labeled_subjects=labeled_count(cohort),
        strategy=cell.strategy,
        seed=cell.seed,
    )[list(COLUMNS)]


_OF_CELL = ("cohort", "labeled_subjects", "strategy", "seed")


def _require_same_scans(scores: pd.DataFrame) -> None:
    """Refuse cells at one number of labels that were not scored on the same scans and organs."""
    first: dict[object, tuple[str, set[tuple[str, str]]]] = {}
    for (count, strategy, seed), own in scores.groupby(["labeled_subjects", "strategy", "seed"]):
        name = f"{strategy}, seed {seed}"
        pairs = set(zip(own["case_id"], own["organ"], strict=True))
        other, expected = first.setdefault(count, (name, pairs))
        if pairs != expected:
            raise DataError(
                f"{count} labels: {name} was scored on {len(pairs)} pairs of scan and organ, and"
                f" {other} on {len(expected)}, not the same ones; remove their evaluate- folders"
            )


def _entry(grid: Grid, cell: Cell, entries: Mapping[str, Path]) -> CellEntry:
    folders = {stage: workspace_of(cell, stage, entries).folder(stage) for stage in entries}
    records = {stage: read_record(folder) for stage, folder in folders.items()}
    finetune = cell.config.finetune
    teacher_steps = finetune.dense.teacher_steps if finetune.dense is not None else 0
    is_pretrained = cell.config.pretrain.method != "none"
    return CellEntry(
        name=cell.name,
        labeled_subjects=cell.labeled_subjects,
        strategy=cell.strategy,
        seed=cell.seed,
        state=grid.state(cell),
        cause=grid.failure(cell),
        seconds={s: r.duration_s for s, r in records.items() if r and s not in OF_COHORT},
        steps={
            "pretrain": cell.config.pretrain.steps if is_pretrained else 0,
            "finetune": finetune.steps + teacher_steps,
        },
        entries={stage: entry.name for stage, entry in entries.items()},
    )


def _shared_seconds(finished: Iterable[Mapping[str, Path]]) -> dict[str, dict[str, float]]:
    """Return how long the stages took that several cells rest on, by entry of the store."""
    seconds: dict[str, dict[str, float]] = {}
    for entries in finished:
        for stage in (s for s in OF_COHORT if s in entries):
            record = next(entries[stage].glob("*/run.json"))
            duration_s = json.loads(record.read_text(encoding="utf-8"))["duration_s"]
            seconds[entries[stage].name] = {stage: duration_s}
    return seconds
