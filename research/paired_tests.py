"""Two runs compared over the same subjects, by a paired test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sacl.scores.summary import Estimate, bootstrap_mean, wilcoxon_p

_DECIMALS = 12
"""Differences of means are rounded so that equal scores make a zero and not 1e-17."""


@dataclass(frozen=True)
class Comparison:
    """A paired comparison over subjects: difference = this run − the other one.

    `smallest_p` is the smallest value that the test can give with so few differing pairs.
    """

    difference: Estimate
    median_difference: float
    p: float
    smallest_p: float


def compare(ours: ArrayLike, other: ArrayLike, resamples: int, seed: int) -> Comparison:
    """Compare two runs on the same subjects, in the same order.

    A subject that either run leaves undefined (NaN) is not a pair.
    """
    pair = np.stack([np.asarray(ours, np.float64), np.asarray(other, np.float64)])
    pair = pair[:, np.isfinite(pair).all(axis=0)]
    difference = np.round(pair[0] - pair[1], _DECIMALS)
    differing = int(np.count_nonzero(difference))
    return Comparison(
        difference=bootstrap_mean(difference, resamples, seed),
        median_difference=float(np.median(difference)) if pair.size else math.nan,
        p=wilcoxon_p(difference),
        smallest_p=min(1.0, 2.0 ** (1 - differing)),
    )
