"""Means over subjects with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over subjects with its bootstrap interval; NaN where undefined."""

    mean: float
    low: float
    high: float
    subjects: int


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
    interval = stats.bootstrap(
        (value,),
        np.mean,
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), int(value.size))
