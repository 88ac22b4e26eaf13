"""Median HU of the organs that tell a scan's contrast phase, robust to a coarse map's errors."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from scipy import ndimage

from sacl.organs import canonical_name
from sacl.patches.query import organ_regions
from sacl.types import LabelMap, Volume

TISSUE_OF = {
    "aorta": "aorta",
    "portal_vein_and_splenic_vein": "portal_vein",
    "inferior_vena_cava": "inferior_vena_cava",
    "kidney_left": "kidneys",
    "kidney_right": "kidneys",
    "kidneys": "kidneys",
    "liver": "liver",
    "spleen": "spleen",
}
"""The tissue whose HU an organ's mask gives, by the organ's canonical name."""
TISSUES = tuple(dict.fromkeys(TISSUE_OF.values()))
"""The tissues in the order in which they are told."""

_EDGE_MM = 4.0
_CORTEX_EDGE_MM = 2.0
"""Kidneys lose less of their edge: the cortex, 5 to 8 mm thick, is what enhances first."""
_STEP_MM = 2.0
_LEAST_ML = 0.3
_SOFT_HU = (-30.0, 700.0)
_LEAST_SOFT_SHARE = 0.2


def organ_hu(image: Volume, label_map: LabelMap) -> dict[str, float]:
    """Return the median HU of every tissue of `TISSUES` that the map holds.

    A coarse mask is wrong at its edge first, so voxels near the edge are left out: those within
    4 mm (kidneys: 2 mm), and in a thin organ at most half of its greatest depth. Of the rest, fat,
    air and bone are no part of the organ and left out too, unless there is hardly anything else.
    Voxels finer than 2 mm are thinned out before. A tissue with less than 0.3 ml is not measured.
    """
    values: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    milliliters: defaultdict[str, float] = defaultdict(float)
    steps = tuple(max(1, int(_STEP_MM // s)) for s in label_map.grid.spacing_mm)
    spacing_mm = [s * n for s, n in zip(label_map.grid.spacing_mm, steps, strict=True)]
    for organ, region in organ_regions(label_map).items():
        tissue = TISSUE_OF.get(canonical_name(organ))
        if tissue is None:
            continue
        thinned = tuple(slice(r.start, r.stop, n) for r, n in zip(region, steps, strict=True))
        mask = label_map.voxels[thinned] == label_map.scheme.label_of(organ)
        if not mask.any():
            continue
        core = _core(mask, spacing_mm, _CORTEX_EDGE_MM if tissue == "kidneys" else _EDGE_MM)
        values[tissue].append(_of_soft_tissue(np.asarray(image.voxels[thinned])[core]))
        milliliters[tissue] += np.count_nonzero(core) * float(np.prod(spacing_mm)) / 1000.0
    return {
        tissue: float(np.median(np.concatenate(values[tissue])))
        for tissue in TISSUES
        if milliliters[tissue] >= _LEAST_ML
    }


def _of_soft_tissue(hu: np.ndarray) -> np.ndarray:
    """Return the HU that soft tissue and enhanced blood can have; all where those are too few."""
    low, high = _SOFT_HU
    kept = hu[(hu >= low) & (hu <= high)]
    return kept if len(kept) >= _LEAST_SOFT_SHARE * len(hu) else hu


def _core(mask: np.ndarray, spacing_mm: list[float], edge_mm: float) -> np.ndarray:
    """Return the voxels of a mask that lie deeper than the edge, or in its inner half."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)
    inner = np.asarray(depth)[1:-1, 1:-1, 1:-1]
    return np.asarray(inner > min(edge_mm, 0.5 * float(inner.max())), dtype=np.bool_)
