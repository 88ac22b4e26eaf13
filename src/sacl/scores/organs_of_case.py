"""Scores of all organs of one scan: overlap, volumes, and distances between the masks' surfaces.

A mask's surface are its voxels that have a face neighbor outside the mask; beyond the array's edge
counts as outside, so a mask cut off by the edge has a surface there. Distances run between voxel
centers. This is the definition of MONAI and of Nikolov et al. (JMIR 23(7):e26151, 2021) without
subvoxel areas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import KDTree

from sacl.files.arrays import label_boxes
from sacl.geometry import require_same_grid
from sacl.types import LabelMap, OrganScore, Volume

EMPTY_RULE = (
    "Organ absent from the reference and from the prediction: Dice, NSD and HD95 are undefined,"
    " counted, and left out of every mean. Absent from exactly one of them: Dice 0, NSD 0, HD95"
    " infinite; means of HD95 are over the finite values, and the infinite ones are counted."
    " An organ that was not annotated in a scan is not scored in it."
)
"""What an empty mask gives, in one paragraph for people."""

_Box = tuple[slice, ...]
_Spacing = tuple[float, float, float]
_ROUNDING_MM = 1e-6
"""A voxel that lies at exactly the tolerance is within it, however its distance was rounded."""
_OTHER_GRID = (
    "score a label map on its reference's own grid: predict the image that the reference was drawn"
    " on, or resample the map onto that grid by nearest neighbor"
)


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
        # linear interpolation between two infinities would be NaN
        ends = [math.inf if np.isinf(d[0]) else float(np.quantile(d, 0.95)) for d in directed]
        return max(ends, default=math.nan)

    def nsd(self, tolerance_mm: float) -> float:
        """Return the share of both surfaces that lies within the tolerance of the other one.

        0 when exactly one mask is empty, NaN when both are.
        """
        both = np.concatenate([self.from_reference, self.from_predicted])
        return float(np.mean(both <= tolerance_mm + _ROUNDING_MM)) if both.size else math.nan


def score_case(
    case_id: str,
    reference: LabelMap,
    predicted: LabelMap,
    organs: Sequence[str],
    tolerance_mm: float,
    run: str = "",
) -> list[OrganScore]:
    """Score organs of one scan, each in the box of its masks; the maps share scheme and grid.

    Empty masks follow `EMPTY_RULE`. `tolerance_mm` is that of the normalized surface Dice. Another
    grid is refused by the names of the case and the run, if one is given.
    """
    where = f"case {case_id}, run {run}" if run else f"case {case_id}"
    require_same_grid(reference.grid, predicted.grid, where, _OTHER_GRID)
    boxes = [label_boxes(m.voxels, len(m.scheme.names)) for m in (reference, predicted)]
    scores = []
    for organ in organs:
        label = reference.scheme.label_of(organ)
        box = _union(boxes[0][label - 1], boxes[1][label - 1])
        mask_r = np.asarray(reference.voxels[box] == label, dtype=np.bool_)
        mask_p = np.asarray(predicted.voxels[box] == label, dtype=np.bool_)
        distances = surface_distances(mask_r, mask_p, reference.grid.spacing_mm)
        scores.append(
            OrganScore(
                case_id=case_id,
                organ=organ,
                dice=dice(mask_r, mask_p),
                hd95_mm=distances.hd95_mm(),
                nsd=distances.nsd(tolerance_mm),
                reference_ml=volume_ml(mask_r, reference.grid.voxel_ml),
                predicted_ml=volume_ml(mask_p, reference.grid.voxel_ml),
            )
        )
    return scores


def surface_distances(
    reference: Bool[np.ndarray, "i j k"], predicted: Bool[np.ndarray, "i j k"], spacing_mm: _Spacing
) -> SurfaceDistances:
    """Measure both surfaces of two masks `[i, j, k]`; fastest where they fill their arrays."""
    surface_r, surface_p = _surface(reference), _surface(predicted)
    return SurfaceDistances(
        from_reference=_distances(surface_r, surface_p, spacing_mm),
        from_predicted=_distances(surface_p, surface_r, spacing_mm),
    )


def _union(a: _Box | None, b: _Box | None) -> _Box:
    """Return the smallest box that holds both; an empty one where neither is."""
    if a is None or b is None:
        return a or b or (slice(0, 0), slice(0, 0), slice(0, 0))
    return tuple(
        slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True)
    )


def _surface(mask: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    inside = ndimage.binary_erosion(mask) if mask.any() else mask
    return np.asarray(mask & ~inside, dtype=np.bool_)


def _distances(
    surface: Bool[np.ndarray, "i j k"], other: Bool[np.ndarray, "i j k"], spacing_mm: _Spacing
) -> Float[np.ndarray, " voxels"]:
    points = np.argwhere(surface) * np.asarray(spacing_mm)
    if not other.any() or not len(points):
        return np.full(len(points), np.inf)
    shared = other[surface]
    distance = np.zeros(len(points))
    tree = KDTree(np.argwhere(other) * np.asarray(spacing_mm), leafsize=32)
    distance[~shared] = tree.query(points[~shared])[0]
    return distance
