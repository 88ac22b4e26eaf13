"""Overlap and volume of an organ's reference and predicted masks."""

from __future__ import annotations

import numpy as np


def dice(reference: np.ndarray, predicted: np.ndarray) -> float:
    """Return the Dice coefficient, 2 |R ∩ P| / (|R| + |P|), of two binary masks of one shape.

    NaN when both masks are empty: there was nothing to find, and nothing was found. 0 when exactly
    one is empty.
    """
    total = int(np.count_nonzero(reference)) + int(np.count_nonzero(predicted))
    if total == 0:
        return float("nan")
    return 2.0 * int(np.count_nonzero(reference & predicted)) / total


def volume_ml(mask: np.ndarray, voxel_ml: float) -> float:
    """Return the volume of a binary mask in milliliters; 0 when it is empty."""
    return int(np.count_nonzero(mask)) * voxel_ml
