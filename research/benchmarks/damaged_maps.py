"""Label maps that err as a coarse network does: organs shifted, grown or shrunken, or missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from sacl.patches.query import organ_regions
from sacl.prediction.phases import TISSUE_OF
from sacl.types import LabelMap


@dataclass(frozen=True)
class Damage:
    """How a label map errs: shift and growth of each organ in mm (deviations), share missing."""

    shift_mm: float = 0.0
    growth_mm: float = 0.0
    missing: float = 0.0


def damaged(labels: LabelMap, damage: Damage, rng: np.random.Generator) -> LabelMap:
    """Return a label map whose organs are shifted, grown or shrunken, or missing."""
    if damage == Damage():
        return labels
    voxels = np.zeros_like(labels.voxels)
    for organ, region in organ_regions(labels).items():
        shift_mm, growth_mm = rng.normal(0, damage.shift_mm, 3), rng.normal(0, damage.growth_mm)
        if rng.random() < damage.missing or TISSUE_OF.get(organ) is None:
            continue
        box, mask = _moved(labels, organ, region, shift_mm, growth_mm)
        voxels[box][mask] = labels.scheme.label_of(organ)
    return LabelMap(voxels, labels.grid, labels.scheme)


def displaced(labels: LabelMap, damage: Damage, rng: np.random.Generator) -> LabelMap:
    """Return a map whose organs are all shifted, and grown or shrunken; none is missing."""
    voxels = np.zeros_like(labels.voxels)
    for organ, region in organ_regions(labels).items():
        shift_mm, growth_mm = rng.normal(0, damage.shift_mm, 3), rng.normal(0, damage.growth_mm)
        box, mask = _moved(labels, organ, region, shift_mm, growth_mm)
        voxels[box][mask] = labels.scheme.label_of(organ)
    return LabelMap(voxels, labels.grid, labels.scheme)


def _moved(
    labels: LabelMap, organ: str, region: Any, shift_mm: np.ndarray, growth_mm: float
) -> tuple[Any, np.ndarray]:
    """Return a box around an organ and its shifted and grown mask in it."""
    spacing = np.array(labels.grid.spacing_mm)
    edge = np.ceil((np.abs(shift_mm) + abs(growth_mm)) / spacing).astype(int) + 1
    box = tuple(
        slice(max(0, r.start - e), min(n, r.stop + e))
        for r, e, n in zip(region, edge, labels.voxels.shape, strict=True)
    )
    mask = labels.voxels[box] == labels.scheme.label_of(organ)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    moved = ndimage.shift(np.asarray(outside - inside), shift_mm / spacing, order=1, mode="nearest")
    grown = moved <= growth_mm
    return box, grown if grown.any() else moved <= moved.min()
