"""Where all organs lie in a scan: one square for every slice, so that dense slices are finer.

A network that sees all organs at once needs neither the air around the body nor the arms. The
coarse label map places the square; it is wrong in places, so islands and stragglers do not count.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from sacl.patches.query import box_around, whole_slice_box
from sacl.types import Box, Grid, LabelMap

_ISLAND = 0.5
"""A component of all organs together below this share of the largest one is taken for an error."""
_STRAGGLERS = (2.0, 98.0)
"""Percentiles of the voxels' positions that count as the organs' ends."""
_TOUCHING = np.ones((3, 3, 3), np.bool_)


def region_boxes(coarse: LabelMap, context: float, min_side_mm: float) -> list[Box]:
    """Return one box per axial slice, all of one place and side, around all organs of a scan.

    The side is `context` times the larger in-plane extent of the organs, at least `min_side_mm`
    and square in mm. Where the map holds no organ the boxes are those of the whole slices.

    Args:
        coarse: The scan's coarse label map, canonical.
        context: Side in units of the organs' largest in-plane extent.
        min_side_mm: Smallest side.
    """
    depth = coarse.grid.shape[2]
    inside = _believable(coarse.voxels > 0)
    if not inside.any():
        return slice_boxes(coarse.grid)
    ends = [_ends(inside.sum(axis=axes)) for axes in ((1, 2), (0, 2))]
    spacing_mm = coarse.grid.spacing_mm
    extent_mm = max((b - a) * mm for (a, b), mm in zip(ends, spacing_mm[:2], strict=True))
    middle = (0.5 * (ends[0][0] + ends[0][1]), 0.5 * (ends[1][0] + ends[1][1]))
    side_mm = max(context * extent_mm, min_side_mm)
    return [box_around(middle, side_mm, spacing_mm, k) for k in range(depth)]


def slice_boxes(grid: Grid) -> list[Box]:
    """Return a box per axial slice that holds the whole slice."""
    return [whole_slice_box(grid, k) for k in range(grid.shape[2])]


def _believable(inside: np.ndarray) -> np.ndarray:
    """Return the large components of a mask."""
    component, count = ndimage.label(inside, _TOUCHING)
    if count < 2:
        return inside
    sizes = np.bincount(component.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= _ISLAND * sizes.max())[component])


def _ends(voxels_at: np.ndarray) -> tuple[float, float]:
    """Return where the middle share of the voxels begins and ends, as borders between voxels."""
    share = np.cumsum(voxels_at) / voxels_at.sum()
    first, last = (int(np.searchsorted(share, p / 100)) for p in _STRAGGLERS)
    return float(first), float(last + 1)
