"""Distances between the surfaces of an organ's reference and predicted masks, in mm.

A mask's surface are its voxels that have a face neighbor outside the mask; beyond the volume's
edge counts as outside, so a mask cut off by the edge has a surface there. Distances run between
voxel centers. This is the definition of MONAI and of Nikolov et al. (JMIR 23(7):e26151, 2021)
without subvoxel areas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import KDTree

Spacing = tuple[float, float, float]

_ROUNDING_MM = 1e-6
"""A voxel that lies at exactly the tolerance is within it, however its distance was rounded."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distance in mm of every surface voxel of one mask to the other mask's surface.

    An array is empty where its own mask is empty, and infinite where only the other one is.
    """

    from_reference: Float[np.ndarray, " voxels"]
    from_predicted: Float[np.ndarray, " others"]

    def hd95_mm(self) -> float:
        """Return the larger of the two directed 95th percentiles.

        Infinite when exactly one mask is empty, NaN when both are.
        """
        directed = [d for d in (self.from_reference, self.from_predicted) if d.size]
        if not directed:
            return float("nan")
        # linear interpolation between two infinities would be NaN
        return max(
            float("inf") if np.isinf(d[0]) else float(np.quantile(d, 0.95)) for d in directed
        )

    def nsd(self, tolerance_mm: float) -> float:
        """Return the share of both surfaces that lies within the tolerance of the other one.

        0 when exactly one mask is empty, NaN when both are.
        """
        both = np.concatenate([self.from_reference, self.from_predicted])
        return float(np.mean(both <= tolerance_mm + _ROUNDING_MM)) if both.size else float("nan")


def surface_distances(
    reference: Bool[np.ndarray, "i j k"], predicted: Bool[np.ndarray, "i j k"], spacing_mm: Spacing
) -> SurfaceDistances:
    """Measure both surfaces of two binary masks `[i, j, k]` of one shape.

    Works inside the masks' common bounding box, and only on surface voxels.
    """
    box = _bounding_box(reference | predicted)
    surface_r, surface_p = _surface(reference[box]), _surface(predicted[box])
    return SurfaceDistances(
        from_reference=_distances(surface_r, surface_p, spacing_mm),
        from_predicted=_distances(surface_p, surface_r, spacing_mm),
    )


def _bounding_box(mask: Bool[np.ndarray, "i j k"]) -> tuple[slice, ...]:
    """Return the smallest box that holds the mask; an empty one where the mask is empty."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return tuple(box)


def _surface(mask: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    inside = ndimage.binary_erosion(mask) if mask.any() else mask
    return np.asarray(mask & ~inside, dtype=np.bool_)


def _distances(
    surface: Bool[np.ndarray, "i j k"], other: Bool[np.ndarray, "i j k"], spacing_mm: Spacing
) -> Float[np.ndarray, " voxels"]:
    """Return each surface voxel's distance to the other surface in mm."""
    points = np.argwhere(surface) * np.asarray(spacing_mm)
    if not other.any() or not len(points):
        return np.full(len(points), np.inf)
    shared = other[surface]
    distance = np.zeros(len(points))
    tree = KDTree(np.argwhere(other) * np.asarray(spacing_mm), leafsize=32)
    distance[~shared] = tree.query(points[~shared])[0]
    return distance
