"""Scores of several runs: `scores.csv`, a row per run, scan and organ; `summary.json`, the figures.

Figures are means over subjects, intervals and counts. An undefined number is NaN here,
an empty field in the table and null in the summary.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from sacl.errors import DataError
from sacl.files.documents import cell_text, text_of_cell, write_json, write_table
from sacl.scores.organs_of_case import EMPTY_RULE
from sacl.types import OrganScore

COLUMNS = (
    *("run", "case_id", "subject_id", "split", "organ"),
    *("dice", "hd95_mm", "nsd", "reference_ml", "predicted_ml"),
)
"""Columns of `scores.csv`: five of text, five of numbers."""
METRICS = ("dice", "nsd", "hd95_mm")
TESTED = ("dice", "nsd")
"""Metrics by which runs are compared: those that are finite wherever they are defined."""
RESAMPLES = 5000
"""Resamples of the bootstrap over subjects."""
CONFIDENCE = 0.95
FEWEST = 8
"""Fewer values say nothing of what is usual among them."""
_NORMAL = 1.4826
"""The median absolute deviation times this is the standard deviation of a normal distribution."""
_DECIMALS = 12
"""To which differences are rounded, so that equal scores make a zero and not 1e-17."""
COARSE = "coarse"
"""Name under which the coarse maps are scored: the bound of what the query head starts from."""
_AGAIN = "redo it with `sacl evaluate CONFIG.yaml --force`"


@dataclass(frozen=True)
class ScoreRow:
    """An organ's score in a scan, with the run that predicted it and where the scan belongs."""

    run: str
    subject_id: str
    split: str
    score: OrganScore


@dataclass(frozen=True)
class Estimate:
    """A mean over subjects with its bootstrap interval; NaN where undefined."""

    mean: float
    low: float
    high: float
    subjects: int


@dataclass(frozen=True, kw_only=True)
class OrganFigures:
    """An organ's means over subjects with their intervals, and counts of pairs of scan and organ.

    All of these, the undefined (in neither map), missed, invented ones, and of infinite HD95.
    """

    pairs: int
    undefined: int
    missed: int
    invented: int
    infinite_hd95: int
    dice: Estimate
    nsd: Estimate
    hd95_mm: Estimate


@dataclass(frozen=True, kw_only=True)
class RunFigures(OrganFigures):
    """A run's figures over all organs, and those of every organ."""

    organs: Mapping[str, OrganFigures]


@dataclass(frozen=True)
class PairedDifference:
    """A run less another one, paired over subjects.

    `organ` is empty for the mean over organs. `p` is of Wilcoxon's signed-rank test; `p_holm` of an
    organ is Holm-corrected for the number of organs, and that of the mean is `p` itself.
    """

    run: str
    against: str
    metric: str
    organ: str
    difference: Estimate
    p: float
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All figures of an evaluation; the first run is the main one.

    `subjects` and `cases` count those that were scored, by split. `differences` are those of the
    main run from its rivals.
    """

    nsd_tolerance_mm: float
    rule_for_empty_organs: str
    confidence: float
    bootstrap: Mapping[str, int]
    subjects: Mapping[str, int]
    cases: Mapping[str, int]
    organs: tuple[str, ...]
    runs: Mapping[str, RunFigures]
    differences: tuple[PairedDifference, ...] = ()


def summarize(
    rows: Sequence[ScoreRow],
    nsd_tolerance_mm: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
    rivals: Sequence[str] = (),
) -> Summary:
    """Return all figures of some scores; the first run is compared with its rivals."""
    scores = score_table(rows)
    runs = list(dict.fromkeys(row.run for row in rows))
    return Summary(
        nsd_tolerance_mm=nsd_tolerance_mm,
        rule_for_empty_organs=EMPTY_RULE,
        confidence=CONFIDENCE,
        bootstrap={"resamples": resamples, "seed": seed},
        subjects=_per_split(scores, "subject_id"),
        cases=_per_split(scores, "case_id"),
        organs=tuple(dict.fromkeys(row.score.organ for row in rows)),
        runs={run: _run(scores[scores["run"] == run], resamples, seed) for run in runs},
        differences=tuple(
            difference
            for rival in rivals
            if rival in runs
            for difference in paired_differences(scores, runs[0], rival, resamples, seed)
        ),
    )


def bootstrap_mean(values: ArrayLike, resamples: int, seed: int) -> Estimate:
    """Return the mean over subjects with its 95 % percentile-bootstrap interval.

    Subjects are resampled with replacement (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, ch. 13); NaN subjects are left out. With fewer than about 10 subjects such an interval is
    too narrow. One subject gives a mean and no interval; none gives NaN.
    """
    value = np.asarray(values, dtype=np.float64)
    value = value[np.isfinite(value)]
    mean = float(value.mean()) if value.size else math.nan
    if value.size < 2:
        return Estimate(mean, math.nan, math.nan, int(value.size))
    drawn = np.random.default_rng(seed).integers(value.size, size=(resamples, value.size))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(value[drawn].mean(axis=1), [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), int(value.size))


def robust_z(values: Float[np.ndarray, " n"], floor: float) -> Float[np.ndarray, " n"]:
    """Return the robust z-score of every value; of fewer than 8 finite ones all are NaN.

    z = (x - median) / max(1.4826 MAD, floor), after Iglewicz and Hoaglin 1993, where `floor` is the
    smallest believable standard deviation. What is not finite counts for nothing and gives NaN.
    """
    values = np.where(np.isfinite(values), values, math.nan)
    finite = values[np.isfinite(values)]
    if finite.size < FEWEST:
        return np.full(values.shape, math.nan)
    center = np.median(finite)
    return (values - center) / max(_NORMAL * float(np.median(np.abs(finite - center))), floor)


def paired_differences(
    scores: pd.DataFrame, run: str, against: str, resamples: int = RESAMPLES, seed: int = 0
) -> list[PairedDifference]:
    """Compare two runs of a table by Dice and by NSD: the mean over organs first, then each organ.

    A subject for which one of them is undefined is not a pair.
    """
    scores = scores[scores["run"].isin((run, against))]
    parts = {"": scores} | {str(organ): part for organ, part in scores.groupby("organ", sort=False)}
    tested = []
    for metric in TESTED:
        pairs = []
        for part in parts.values():
            means = subject_means(part, metric).reindex(columns=[run, against])
            pairs.append(means.diff(axis=1, periods=-1).iloc[:, 0].round(_DECIMALS).to_numpy())
        p = [wilcoxon_p(pair) for pair in pairs]
        for organ, pair, plain, adjusted in zip(parts, pairs, p, [p[0], *holm(p[1:])], strict=True):
            difference = bootstrap_mean(pair, resamples, seed)
            names = run, against, metric, organ
            tested.append(PairedDifference(*names, difference, plain, adjusted))
    return tested


def wilcoxon_p(differences: ArrayLike) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test (Biometrics Bulletin 1945, 1(6):80).

    Zero differences are dropped, as Wilcoxon did; where all are zero, p is 1, and NaN where there
    is no pair at all. Exact for few pairs without ties.
    """
    difference = np.asarray(differences, dtype=np.float64)
    difference = difference[np.isfinite(difference)]
    if not difference.size:
        return math.nan
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference[difference != 0]).pvalue)


def holm(p_values: ArrayLike) -> list[float]:
    """Return p-values adjusted for their number (Holm, Scand. J. Statist. 1979, 6:65).

    The k-th smallest of m is multiplied by m − k + 1, never below the one before, at most 1. NaN
    stays NaN and does not count as a test.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def subject_means(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric's mean per subject (row) and run (column), runs in order of appearance.

    A scan's value is the mean over its organs with a finite score, a subject's the mean over its
    scans, so that a subject scanned often or annotated fully weighs no more than another.
    """
    finite = scores.assign(value=scores[metric].replace([np.inf, -np.inf], np.nan).astype(float))
    scans = finite.groupby(["run", "subject_id", "case_id"])["value"].mean()
    means = scans.groupby(["run", "subject_id"]).mean().unstack("run")
    return means.reindex(columns=list(dict.fromkeys(scores["run"])))


def score_table(rows: Iterable[ScoreRow]) -> pd.DataFrame:
    """Return one line per run, scan and organ with the columns of `scores.csv`."""
    return pd.DataFrame([vars(row) | vars(row.score) for row in rows], columns=list(COLUMNS))


def write_scores(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Write the rows; NaN (undefined) becomes an empty field, an infinite distance `inf`.

    A name that a spreadsheet would run as a formula is written behind a quote (`cell_text`).
    """
    table = score_table(rows)
    names = list(COLUMNS[:5])
    table[names] = table[names].map(cell_text)
    write_table(path, table, lineterminator="\r\n")


def read_scores(path: Path) -> list[ScoreRow]:
    """Read what `write_scores` wrote, and refuse what is no such table."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path.name}: no column {', '.join(missing)}; {_AGAIN}")
            return [_row(fields, f"{path.name}, line {reader.line_num}") for fields in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name}: not a table of scores ({error}); {_AGAIN}") from None


def _row(fields: Mapping[str, str], where: str) -> ScoreRow:
    try:
        numbers = {name: float(fields[name] or "nan") for name in COLUMNS[5:]}
    except (TypeError, ValueError):
        raise DataError(f"{where}: a score is not a number; {_AGAIN}") from None
    run, case_id, subject_id, split, organ = (text_of_cell(fields[name]) for name in COLUMNS[:5])
    return ScoreRow(run, subject_id, split, OrganScore(case_id, organ, **numbers))


def write_score_summary(path: Path, summary: Summary) -> None:
    """Write a summary as JSON, NaN as null."""
    write_json(path, summary)


def read_summary(path: Path) -> Summary:
    """Read what `write_score_summary` wrote, and refuse a file of another kind."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(_nan_for_none(document), Summary)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise DataError(
            f"{path.name}: not a summary of scores, or of an older version ({error}); {_AGAIN}"
        ) from None


def _nan_for_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_for_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_for_none(item) for item in value]
    return math.nan if value is None else value


def _per_split(scores: pd.DataFrame, column: str) -> dict[str, int]:
    counts = scores.groupby("split", sort=False)[column].nunique()
    return {str(split): int(count) for split, count in counts.items()}


def _run(part: pd.DataFrame, resamples: int, seed: int) -> RunFigures:
    """Return a run's figures from its rows of the table."""
    of_organs = part.groupby("organ", sort=False)
    organs = {str(o): OrganFigures(**_figures(rows, resamples, seed)) for o, rows in of_organs}
    return RunFigures(organs=organs, **_figures(part, resamples, seed))


def _figures(part: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    means = {metric: subject_means(part, metric).iloc[:, 0] for metric in METRICS}
    there, predicted = part["reference_ml"] > 0, part["predicted_ml"] > 0
    return dict(
        pairs=len(part),
        undefined=int((~there & ~predicted).sum()),
        missed=int((there & ~predicted).sum()),
        invented=int((~there & predicted).sum()),
        infinite_hd95=int(np.isinf(part["hd95_mm"]).sum()),
        **{metric: bootstrap_mean(of, resamples, seed) for metric, of in means.items()},
    )
