"""Values unlike the others of a cohort, by the robust z-score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

FEWEST = 8
"""A cohort of fewer values says nothing of what is usual."""
_LIMIT = 6.0
_NORMAL = 1.4826
"""The median absolute deviation times this is the standard deviation of a normal distribution."""


def robust_outliers(values: Mapping[str, float], floor: float) -> dict[str, float]:
    """Return the robust z-score of the values that lie more than 6 from the median.

    z = (x - median) / max(1.4826 MAD, floor), after Iglewicz and Hoaglin 1993 (who cut at 3.5: a
    cohort is searched for faults, not for tails). NaN values are passed over; fewer than 8 values
    have no outliers.

    Args:
        values: One number per case.
        floor: Smallest believable standard deviation, so that nearly equal values are no outliers.
    """
    finite = {case: value for case, value in values.items() if np.isfinite(value)}
    if len(finite) < FEWEST:
        return {}
    numbers = np.array(list(finite.values()))
    center = float(np.median(numbers))
    spread = max(_NORMAL * float(np.median(np.abs(numbers - center))), floor)
    scores = {case: (value - center) / spread for case, value in finite.items()}
    return {case: z for case, z in scores.items() if abs(z) > _LIMIT}
