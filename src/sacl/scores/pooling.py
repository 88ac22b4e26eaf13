"""Scores of several work directories brought into one comparison."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from sacl.errors import DataError
from sacl.scores.table import ScoreRow


def in_common(
    rows_of: Mapping[str, Sequence[ScoreRow]], left_out: Collection[str] = ()
) -> list[ScoreRow]:
    """Return the rows of the scans and organs that all runs scored, runs named `work: run`.

    The main runs (the first of each work directory) stand first, their twins after them. Runs
    named in `left_out` are not taken.

    Raises:
        DataError: no scan and organ was scored by all runs, or their references differ.
    """
    named = [
        (row.run != rows[0].run, replace(row, run=f"{work}: {row.run}"))
        for work, rows in rows_of.items()
        for row in rows
        if row.run not in left_out
    ]
    named.sort(key=lambda pair: pair[0])
    scored: dict[str, set[tuple[str, str]]] = {}
    for _, row in named:
        scored.setdefault(row.run, set()).add((row.score.case_id, row.score.organ))
    empty = [work for work, rows in rows_of.items() if not rows]
    common = set.intersection(*scored.values()) if scored and not empty else set()
    if not common:
        raise DataError("report: no scan that all runs scored; compare runs on one cohort")
    kept = [row for _, row in named if (row.score.case_id, row.score.organ) in common]
    _require_same_references(kept)
    return kept


def _require_same_references(rows: Sequence[ScoreRow]) -> None:
    volume: dict[tuple[str, str], float] = {}
    for row in rows:
        expected = volume.setdefault((row.score.case_id, row.score.organ), row.score.reference_ml)
        if not math.isclose(row.score.reference_ml, expected, rel_tol=1e-6):
            raise DataError(
                f"report: case {row.score.case_id} has {row.score.reference_ml:.3f} ml of"
                f" {row.score.organ} in the reference of {row.run}, and {expected:.3f} ml in"
                " another run; compare runs on the same data"
            )
