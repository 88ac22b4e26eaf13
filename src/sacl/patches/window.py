"""Intensities to [0, 1]: the window that makes scans comparable."""

from __future__ import annotations

import numpy as np


def normalize(voxels: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map the window's two intensities to 0 and 1, and clip what lies outside.

    Args:
        voxels: Intensities of any real type and shape; HU for CT.
        window: The intensities that become 0 and 1.

    Returns:
        float32 of the same shape. NaN (no measurement) becomes 0, like everything below the window.
    """
    low, high = window
    scaled = np.subtract(voxels, np.float32(low), dtype=np.float32)
    scaled *= np.float32(1.0 / (high - low))
    np.clip(scaled, 0.0, 1.0, out=scaled)
    if voxels.dtype.kind == "f":
        np.nan_to_num(scaled, copy=False)
    return scaled
