"""Clean a label map: remove an organ's small islands, and organs too small to be believed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer
from scipy import ndimage

from sacl.patches.region import without_islands

_NEIGHBORS = ndimage.generate_binary_structure(3, 1)


def clean_components(
    voxels: Integer[np.ndarray, "i j k"], labels: int, keep_share: float, min_voxels: float
) -> Integer[np.ndarray, "i j k"]:
    """Return the labels without small components, and without organs that are too small.

    Voxels of one label are connected through their 6 faces. A component with fewer voxels than
    `keep_share` times the organ's largest one becomes background; of what is left, an organ with
    fewer than `min_voxels` voxels is removed entirely, so that it counts as absent. Every organ
    is worked on inside its own bounding box only.

    Args:
        voxels: Label values; those above `labels` are left alone.
        labels: Number of organs.
        keep_share: Between 0 (keep every component) and 1 (keep the largest only).
        min_voxels: Smallest believable organ; 0 keeps all.
    """
    cleaned = voxels.copy()
    boxes = ndimage.find_objects(voxels, max_label=labels)
    for label, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = voxels[box] == label
        kept = without_islands(mask, keep_share, _NEIGHBORS) if keep_share > 0 else mask
        if np.count_nonzero(kept) < min_voxels:
            kept = np.zeros_like(mask)
        cleaned[box][mask & ~kept] = 0
    return cleaned
