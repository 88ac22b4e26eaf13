"""Overlap of two masks, and an organ's volume and intensities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from sacl.types import LabelMap, Volume


@dataclass(frozen=True)
class OrganMeasures:
    """An organ in a scan: its volume, mean and standard deviation of its intensities.

    Of an organ without voxels the volume is 0 and the others are NaN.
    """

    organ: str
    volume_ml: float
    mean: float
    sd: float


def measure_organs(volume: Volume, label_map: LabelMap) -> list[OrganMeasures]:
    """Measure every organ of the scheme; image and label map are on one grid."""
    names = label_map.scheme.names
    sums = np.zeros((3, len(names) + 1))
    middle = float(volume.voxels.flat[0])  # squares of small numbers round less
    for k in range(volume.grid.shape[2]):  # by slice: floats of a whole scan take gigabytes
        labels = label_map.voxels[:, :, k]
        inside = labels > 0
        label, value = labels[inside], volume.voxels[:, :, k][inside].astype(float) - middle
        sums += [np.bincount(label, value**power, sums.shape[1]) for power in range(3)]
    count, total, squares = sums
    with np.errstate(invalid="ignore"):
        mean = total / count
        sd = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return [
        OrganMeasures(name, count[n] * volume.grid.voxel_ml, mean[n] + middle, sd[n])
        for n, name in enumerate(names, start=1)
    ]


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
