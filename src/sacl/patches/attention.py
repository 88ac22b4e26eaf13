"""The attention channel: how much of each pixel the coarse map gives to the patch's organ."""

from __future__ import annotations

import numpy as np

from sacl.patches.query import cut
from sacl.types import Box


def coverage(labels: np.ndarray, label: int, box: Box, size: int, scale: float = 1.0) -> np.ndarray:
    """Return the share of each pixel that a label covers, float32 in [0, 1].

    The mask goes through the same antialiased filter as the image, so that both lie on each other
    to a fraction of a pixel. It is not thresholded: a soft edge says where the boundary runs, a
    hard one only which pixels it crosses.

    Args:
        labels: One slice of a label map, `[i, j]`.
        label: The organ's label value.
        box: The patch without margin.
        size: Pixels of the box's side.
        scale: As for `query.cut`.
    """
    return np.clip(cut(labels == label, box, size, scale), 0.0, 1.0)
