"""Where the organs lie in a scan: one square for every slice, so that dense slices are finer.

A network that sees all organs at once needs neither the air around the body nor the arms. The
coarse label map places the square; it is wrong in places, so islands and stragglers do not count.
They are judged organ by organ: of all organs together, a spleen is an island beside a liver.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from sacl.errors import DataError
from sacl.patches.query import box_around, organ_regions, plan_boxes, whole_slice_box
from sacl.types import Box, Grid, LabelMap

PLACEMENT_RULE = 2
"""Version of how boxes are placed; a segmenter is right only in boxes placed as in its training.
1: an island was what is small beside all organs together, so that whole organs were cut away."""

_ISLAND = 0.3
"""A component of an organ below this share of the organ's largest one is taken for an error."""
_STRAGGLERS = (5.0, 95.0)
"""Percentiles of the positions of an organ's voxels that count as its ends."""
_TOUCHING = np.ones((3, 3, 3), np.bool_)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where query patches and dense slices lie: the same in training and in prediction.

    `context`, `min_side_mm` and `slice_margin` place the patches (`query.plan_boxes`),
    `region_context` and `min_side_mm` the square that dense slices show where `region` is `organs`.
    """

    context: float = 1.4
    min_side_mm: float = 24.0
    slice_margin: int = 1
    region: Literal["organs", "slice"] = "organs"
    region_context: float = 1.75
    rule: int = PLACEMENT_RULE

    def __post_init__(self) -> None:
        if self.rule != PLACEMENT_RULE:
            raise DataError(
                f"placement: patches and slices were placed by rule {self.rule}, this version"
                f" places them by rule {PLACEMENT_RULE}, which keeps every organ in the square;"
                " redo the run from `sacl extract CONFIG.yaml --force` on"
            )


def dense_boxes(placement: Placement, grid: Grid, coarse: LabelMap | None) -> list[Box]:
    """Return what a dense slice shows, a box per axial slice: the square or the whole slice."""
    if placement.region == "slice" or coarse is None:
        return slice_boxes(grid)
    return region_boxes(coarse, placement.region_context, placement.min_side_mm)


def patch_boxes(placement: Placement, coarse: LabelMap) -> Iterator[tuple[str, Box]]:
    """Yield organ and box of all query patches of a scan, organ by organ by rising slice."""
    rules = (placement.context, placement.min_side_mm, placement.slice_margin)
    for organ, region in organ_regions(coarse).items():
        for box in plan_boxes(coarse, organ, *rules, region):
            yield organ, box


def region_boxes(coarse: LabelMap, context: float, min_side_mm: float) -> list[Box]:
    """Return one box per axial slice, all of one place and side, around every organ of a scan.

    The side is `context` times the larger in-plane extent of the organs, at least `min_side_mm`
    and square in mm. Where the map holds no organ, or the square would be wider than the slice,
    the boxes are those of the whole slices.
    """
    ends = [
        _ends_of(coarse.voxels[region] == coarse.scheme.label_of(organ), region)
        for organ, region in organ_regions(coarse).items()
    ]
    if not ends:
        return slice_boxes(coarse.grid)
    first, last = np.min(ends, axis=0)[:, 0], np.max(ends, axis=0)[:, 1]
    spacing_mm = coarse.grid.spacing_mm
    extent_mm = float(np.max((last - first) * spacing_mm[:2]))
    middle = (0.5 * float(first[0] + last[0]), 0.5 * float(first[1] + last[1]))
    side_mm = max(context * extent_mm, min_side_mm)
    if side_mm >= max(n * s for n, s in zip(coarse.grid.shape[:2], spacing_mm, strict=False)):
        return slice_boxes(coarse.grid)
    return [box_around(middle, side_mm, spacing_mm, k) for k in range(coarse.grid.shape[2])]


def slice_boxes(grid: Grid) -> list[Box]:
    """Return a box per axial slice that holds the whole slice."""
    return [whole_slice_box(grid, k) for k in range(grid.shape[2])]


def without_islands(
    mask: Bool[np.ndarray, "i j k"], keep_share: float, touching: Bool[np.ndarray, "3 3 3"]
) -> Bool[np.ndarray, "i j k"]:
    """Return a mask without the components below a share of its largest one."""
    component, count = ndimage.label(mask, touching)
    if count < 2:
        return mask
    sizes = np.bincount(component.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= keep_share * sizes.max())[component], dtype=np.bool_)


def _ends_of(
    inside: Bool[np.ndarray, "i j k"], region: Sequence[slice]
) -> list[tuple[float, float]]:
    """Return where an organ begins and ends along i and j, as borders between voxels.

    What counts is the middle share of its voxels, from its mask inside its bounding box.
    """
    believable = without_islands(inside, _ISLAND, _TOUCHING)
    ends = []
    for axes, span in zip(((1, 2), (0, 2)), region, strict=False):
        share = np.cumsum(believable.sum(axis=axes)) / believable.sum()
        first, last = np.searchsorted(share, np.divide(_STRAGGLERS, 100))
        ends.append((float(span.start + first), float(span.start + last + 1)))
    return ends
