"""Intensities to [0, 1]: the window that makes scans comparable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from sacl.errors import DataError

PERCENTILES = (0.5, 99.5)
"""MR: percentiles of a scan's intensities that become 0 and 1."""


@dataclass(frozen=True)
class WindowRule:
    """Which of a scan's intensities become 0 and 1: for CT two HU, for MR two percentiles."""

    modality: Literal["ct", "mr"]
    window_hu: tuple[float, float]
    percentiles: tuple[float, float] = PERCENTILES


def window_of(
    voxels: Shaped[np.ndarray, "i j k"], rule: WindowRule, where: str
) -> tuple[float, float]:
    """Return a scan's intensities that become 0 and 1.

    CT: the window in HU. MR: percentiles of the scan's voxels above its lowest intensity, which is
    the empty background of a masked or cropped scan.

    Raises:
        DataError: all voxels are equal.
    """
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        raise DataError(
            f"{where}: constant image, every voxel is {low:g}; check the file or leave the case out"
        )
    if rule.modality == "ct":
        return rule.window_hu
    start, stop = np.percentile(voxels[voxels > low], rule.percentiles)
    return (float(start), float(stop)) if stop > start else (low, high)


def normalize(
    voxels: Shaped[np.ndarray, "*space"], window: tuple[float, float]
) -> Float[np.ndarray, "*space"]:
    """Map the window's two intensities to 0 and 1, clip what lies outside, and return float32.

    NaN (no measurement) becomes 0, like everything below the window.
    """
    low, high = window
    scaled = np.subtract(voxels, np.float32(low), dtype=np.float32)
    scaled *= np.float32(1.0 / (high - low))
    np.clip(scaled, 0.0, 1.0, out=scaled)
    if voxels.dtype.kind == "f":
        np.nan_to_num(scaled, copy=False)
    return scaled
