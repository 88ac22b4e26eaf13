"""Scores of several runs in figures: means over subjects, intervals, comparisons, counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from sacl.scores.scoring import EMPTY_RULE
from sacl.scores.statistics import CONFIDENCE, Estimate, bootstrap_mean, compare, holm
from sacl.scores.table import ScoreRow

METRICS = ("dice", "nsd", "hd95_mm")
TESTED = ("dice", "nsd")
"""Metrics that are compared between runs; each is its own family of tests."""


def score_table(rows: Iterable[ScoreRow]) -> pd.DataFrame:
    """Return one line per run, scan and organ with the columns of `scores.csv`."""
    columns = [
        {"run": r.run, "subject_id": r.subject_id, "split": r.split, **asdict(r.score)}
        for r in rows
    ]
    return pd.DataFrame(columns)


def subject_means(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric's mean per subject (row) and run (column), runs in order of appearance.

    A scan's value is the mean over its organs with a finite score, a subject's the mean over its
    scans, so that a subject scanned often or annotated fully weighs no more than another.
    """
    finite = scores.assign(value=scores[metric].replace([np.inf, -np.inf], np.nan))
    scans = finite.groupby(["run", "subject_id", "case_id"])["value"].mean()
    means = scans.groupby(["run", "subject_id"]).mean().unstack("run")
    return means.reindex(columns=list(dict.fromkeys(scores["run"])))


def summarize(
    rows: Sequence[ScoreRow], untested: Sequence[str] = (), *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return all figures of `summary.json`; the first run is compared with every other one.

    Runs in `untested` (a bound, not a rival) are compared without a test. NaN becomes None.
    """
    scores = score_table(rows)
    runs = list(dict.fromkeys(row.run for row in rows))
    means = {metric: subject_means(scores, metric) for metric in METRICS} if runs else {}
    return none_for_nan(
        {
            "rule_for_empty_organs": EMPTY_RULE,
            "confidence": CONFIDENCE,
            "bootstrap": {"resamples": resamples, "seed": seed},
            "subjects": _per_split(scores, "subject_id") if runs else {},
            "cases": _per_split(scores, "case_id") if runs else {},
            "organs": list(dict.fromkeys(row.score.organ for row in rows)),
            "runs": {
                run: {
                    **{m: asdict(bootstrap_mean(means[m][run], resamples, seed)) for m in METRICS},
                    **counts(scores[scores["run"] == run]),
                    "organs": _organs(scores[scores["run"] == run]),
                }
                for run in runs
            },
            "comparisons": [
                entry
                for metric in TESTED
                for entry in _comparisons(metric, means.get(metric), untested, resamples, seed)
            ],
        }
    )


def _comparisons(
    metric: str,
    means: pd.DataFrame | None,
    untested: Sequence[str],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Compare the first run with every other one; Holm's correction over this metric's tests."""
    if means is None:
        return []
    ours, *others = means.columns
    entries = []
    for other in others:
        comparison = compare(means[ours], means[other], resamples, seed)
        tested = other not in untested
        entries.append(
            {
                "metric": metric,
                "run": ours,
                "against": other,
                **_flat(comparison.difference),
                "median_difference": comparison.median_difference,
                "relative_gain": comparison.relative_gain,
                "p": comparison.p if tested else math.nan,
                "smallest_p": comparison.smallest_p if tested else math.nan,
            }
        )
    for entry, adjusted in zip(entries, holm([e["p"] for e in entries]), strict=True):
        entry["p_holm"] = adjusted
    return entries


def _flat(difference: Estimate) -> dict[str, Any]:
    return {
        "mean_difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "subjects": difference.subjects,
    }


def _per_split(scores: pd.DataFrame, column: str) -> dict[str, int]:
    counts = scores.groupby("split", sort=False)[column].nunique()
    return {str(split): int(count) for split, count in counts.items()}


def counts(scores: pd.DataFrame) -> dict[str, int]:
    """Count the pairs of scan and organ that are scored, undefined, missed or invented."""
    there, found = scores["reference_ml"] > 0, scores["predicted_ml"] > 0
    return {
        "pairs": len(scores),
        "undefined": int((~there & ~found).sum()),
        "missed": int((there & ~found).sum()),
        "invented": int((~there & found).sum()),
        "infinite_hd95": int(np.isinf(scores["hd95_mm"]).sum()),
    }


def _organs(scores: pd.DataFrame) -> dict[str, Any]:
    return {
        str(organ): {
            **{m: _mean_over_subjects(part, m) for m in METRICS},
            **counts(part),
        }
        for organ, part in scores.groupby("organ", sort=False)
    }


def _mean_over_subjects(part: pd.DataFrame, metric: str) -> float:
    return float(subject_means(part, metric).iloc[:, 0].mean())


def none_for_nan(value: Any) -> Any:
    """Return nested lists and dicts with None for every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): none_for_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [none_for_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
