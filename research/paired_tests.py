"""Paired tests over subjects, and Holm's correction for several tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from sacl.scores.summary import Estimate, bootstrap_mean

_DECIMALS = 12
"""Differences of means are rounded so that equal scores make a zero and not 1e-17."""


@dataclass(frozen=True)
class Comparison:
    """A paired comparison over subjects: difference = this run − the other one.

    `smallest_p` is the smallest value that the test can give with so few differing pairs.
    """

    difference: Estimate
    median_difference: float
    relative_gain: float
    p: float
    smallest_p: float


def wilcoxon_p(differences: ArrayLike) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test (Biometrics Bulletin 1945, 1(6):80).

    Zero differences are dropped, as Wilcoxon did; where all are zero, p is 1, and NaN where there
    is no pair at all. Exact for few pairs without ties.
    """
    difference = _finite(differences)
    if not difference.size:
        return math.nan
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference[difference != 0]).pvalue)


def compare(ours: ArrayLike, other: ArrayLike, resamples: int, seed: int) -> Comparison:
    """Compare two runs on the same subjects, in the same order.

    A subject that either run leaves undefined (NaN) is not a pair. `relative_gain` is the ratio
    of the means over the pairs, less 1; NaN where the other run's mean is 0.
    """
    pair = np.stack([np.asarray(ours, np.float64), np.asarray(other, np.float64)])
    pair = pair[:, np.isfinite(pair).all(axis=0)]
    difference = np.round(pair[0] - pair[1], _DECIMALS)
    ours_mean, other_mean = pair.mean(axis=1) if pair.size else (math.nan, math.nan)
    differing = int(np.count_nonzero(difference))
    return Comparison(
        difference=bootstrap_mean(difference, resamples, seed),
        median_difference=float(np.median(difference)) if pair.size else math.nan,
        relative_gain=float(ours_mean / other_mean) - 1 if other_mean else math.nan,
        p=wilcoxon_p(difference),
        smallest_p=min(1.0, 2.0 ** (1 - differing)),
    )


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


def _finite(values: ArrayLike) -> np.ndarray:
    value = np.asarray(values, dtype=np.float64)
    return value[np.isfinite(value)]
