"""Several work directories -> one self-contained HTML page that compares their runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import ChoiceLoader, FileSystemLoader

from research.statistics import Draws, compare_strategies
from research.tables import p_equals, p_text, points
from sacl.errors import DataError
from sacl.files.atomic import real, require_ours, write_text
from sacl.report.page import GENERATOR, environment
from sacl.report.results import scores_part
from sacl.run.workspace import Workspace
from sacl.scores.summary import (
    RESAMPLES,
    ScoreRow,
    read_scores,
    read_summary,
    score_table,
    summarize,
)


def report_runs(works: Sequence[Path], out: Path) -> Path:
    """Write one page that compares the runs of several work directories, and return `out`.

    Every run is compared with the first work directory's main run, on the scans and organs that
    all of them scored.

    Raises:
        DataError: two works were scored with different tolerances, or share no scan; or `out` is
            a file of the user's.
        WorkspaceError: a work directory has not been evaluated.
    """
    require_ours(out, GENERATOR)
    if len({real(work) for work in works}) < len(works):
        raise DataError("runs: a work directory is named twice; name each once")
    folders = {_name(work, works): Workspace(work).require("evaluate") for work in works}
    tolerances = {read_summary(f / "summary.json").nsd_tolerance_mm for f in folders.values()}
    if len(tolerances) > 1:
        raise DataError(
            f"runs: NSD tolerances of {sorted(tolerances)} mm differ; evaluate all runs alike"
        )
    rows = in_common(
        {name: read_scores(f / "scores.csv") for name, f in folders.items()}, ["coarse"]
    )
    write_text(out, runs_page(rows, len(works), tolerances.pop()))
    return out


def runs_page(
    rows: Sequence[ScoreRow], works: int, nsd_tolerance_mm: float, resamples: int = RESAMPLES
) -> str:
    """Return the page of some runs' scores; the first run is compared with every other one."""
    templates = environment()
    of_product = templates.loader
    assert of_product is not None, "the product has templates of its own"
    templates.loader = ChoiceLoader([FileSystemLoader(Path(__file__).parent), of_product])
    templates.filters |= {"points": points, "p_text": p_text, "p_equals": p_equals}
    main, *others = dict.fromkeys(row.run for row in rows) or [""]
    table = score_table(rows)
    table = table.assign(strategy=table["run"], seed=0)
    differences = compare_strategies(table, main, others, Draws(resamples, seed=0))
    return templates.get_template("runs.html").render(
        generator=GENERATOR,
        works=works,
        summary=summarize(rows, nsd_tolerance_mm, resamples),
        scores=scores_part(rows),
        compared=[one for one in differences if one.metric == "dice"],
    )


def _name(work: Path, works: Sequence[Path]) -> str:
    """Return the work directory's name, with its parent's where two are named alike."""
    alike = sum(other.name == work.name for other in works) > 1
    return f"{work.parent.name}/{work.name}" if alike else work.name


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
    common = set.intersection(*scored.values()) if scored and all(rows_of.values()) else set()
    if not common:
        raise DataError("runs: no scan that all runs scored; compare runs on one cohort")
    kept = [row for _, row in named if (row.score.case_id, row.score.organ) in common]
    _require_same_references(kept)
    return kept


def _require_same_references(rows: Sequence[ScoreRow]) -> None:
    volume: dict[tuple[str, str], float] = {}
    for row in rows:
        expected = volume.setdefault((row.score.case_id, row.score.organ), row.score.reference_ml)
        if not math.isclose(row.score.reference_ml, expected, rel_tol=1e-6):
            raise DataError(
                f"runs: case {row.score.case_id} has {row.score.reference_ml:.3f} ml of"
                f" {row.score.organ} in the reference of {row.run}, and {expected:.3f} ml in"
                " another run; compare runs on the same data"
            )
