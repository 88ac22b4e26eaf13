"""Overlap of two masks, and the volume of one."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool


def dice(reference: Bool[np.ndarray, "*axes"], predicted: Bool[np.ndarray, "*axes"]) -> float:
    """Return the Dice coefficient, 2 |R ∩ P| / (|R| + |P|), of two masks.

    NaN when both masks are empty; 0 when exactly one is.
    """
    total = int(np.count_nonzero(reference)) + int(np.count_nonzero(predicted))
    if total == 0:
        return math.nan
    return 2.0 * int(np.count_nonzero(reference & predicted)) / total


def volume_ml(mask: Bool[np.ndarray, "*axes"], voxel_ml: float) -> float:
    """Return the volume of a mask in milliliters; 0 when it is empty."""
    return int(np.count_nonzero(mask)) * voxel_ml
