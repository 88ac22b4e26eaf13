"""Measure a scan and its reference once, so that a cohort can be checked without its voxels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import ndimage

from sacl.check.findings import Finding
from sacl.geometry import orientation_of
from sacl.types import Grid, NativeFrame, Split

_SAMPLE_VOXELS = 1_000_000
_SOFT_TISSUE_HU = (-150.0, 250.0)
_UNSHIFTED_TISSUE = (874.0, 1274.0)
"""Where soft tissue lies when an intercept of -1024 was not applied."""
_ANY_NEIGHBOR = ndimage.generate_binary_structure(3, 3)
_UNITS_MM = {1: 1000.0, 3: 0.001}
"""NIfTI's codes of meters and micrometers, in mm; all other codes are taken as mm."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """How a scan lies in space.

    `shape` and `spacing_mm` are canonical (x, y, z), `orientation` is the file's own (`LPS`: i
    runs to the left, j to the back, k to the head). `tilt_deg` is the largest angle between a
    voxel axis and its world axis, `shear` the largest cosine between two voxel axes, `unit_mm` the
    unit that the header names.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    origin_mm: tuple[float, float, float]
    tilt_deg: float
    shear: float
    unit_mm: float = 1.0

    @property
    def field_of_view_mm(self) -> tuple[float, float, float]:
        """Extent along x, y and z."""
        x, y, z = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z


@dataclass(frozen=True)
class Intensities:
    """An image in a few numbers, and what tells its voxels from any other's.

    `p005`, `median` and `p995` are percentiles 0.5, 50 and 99.5. `soft_share` is the share of the
    voxels between -150 and 250, `soft_median` their median (NaN where there are none);
    `unshifted_share` the share that would be soft tissue in a CT without its intercept.
    """

    low: float
    high: float
    p005: float
    median: float
    p995: float
    soft_share: float
    soft_median: float
    unshifted_share: float
    digest: str
    bytes_per_voxel: int


@dataclass(frozen=True)
class OrganFacts:
    """An organ's mask in a few numbers; `center_mm` is its center of mass in the world, RAS+."""

    voxels: int
    volume_ml: float
    center_mm: tuple[float, float, float]
    pieces: int
    main_share: float
    second_share: float
    at_border: bool
    slices: int


@dataclass(frozen=True, eq=False)
class Reference:
    """What somebody annotated in a scan: the organs looked for, and those that are there."""

    annotated: tuple[str, ...]
    present: Mapping[str, OrganFacts]
    digest: str = ""


@dataclass(frozen=True, eq=False)
class ScanFacts:
    """All that is known of one case; None where it could not be read, or is not there."""

    case_id: str
    subject_id: str
    split: Split
    geometry: Geometry | None = None
    image: Intensities | None = None
    reference: Reference | None = None
    scan_labels: Mapping[str, str] = field(default_factory=dict)
    modality: Literal["ct", "mr"] | None = None
    has_reference: bool = False
    problems: tuple[Finding, ...] = ()

    def state_of(self, organ: str) -> Literal["annotated", "absent", "not annotated"]:
        """Tell whether an organ is there, was looked for in vain, or was not looked for."""
        if self.reference is None or organ not in self.reference.annotated:
            return "not annotated"
        return "annotated" if organ in self.reference.present else "absent"


def measure_geometry(frame: NativeFrame) -> Geometry:
    """Return how a scan lies, from its file's own grid."""
    grid = frame.grid
    orientation = orientation_of(grid)
    axes = [axis for axis, _ in orientation]
    cosine = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    letters = [""] * 3
    for world, (axis, flip) in enumerate(orientation):
        letters[axis] = ("RAS", "LPI")[flip][world]
    along = [abs(float(cosine[world, axis])) for world, axis in enumerate(axes)]
    between = cosine.T @ cosine - np.eye(3)
    i, j, k = (grid.shape[axis] for axis in axes)
    x, y, z = (grid.spacing_mm[axis] for axis in axes)
    return Geometry(
        shape=(i, j, k),
        spacing_mm=(x, y, z),
        orientation="".join(letters),
        origin_mm=(float(grid.affine[0, 3]), float(grid.affine[1, 3]), float(grid.affine[2, 3])),
        tilt_deg=math.degrees(math.acos(min(1.0, *along))),
        shear=float(np.abs(between).max()),
        unit_mm=_UNITS_MM.get(frame.xyzt_units & 7, 1.0),
    )


def measure_image(voxels: np.ndarray) -> Intensities:
    """Return an image's numbers; percentiles and shares are of a regular sample of 1e6 voxels.

    The digest is of the voxels alone, as float32 in canonical order: it does not change with the
    header, the orientation in the file or the stored type.
    """
    step = max(1, math.ceil((voxels.size / _SAMPLE_VOXELS) ** (1 / 3)))
    sample = voxels[::step, ::step, ::step].astype(np.float32).ravel()
    p005, median, p995 = (float(value) for value in np.percentile(sample, (0.5, 50, 99.5)))
    soft = sample[(sample >= _SOFT_TISSUE_HU[0]) & (sample <= _SOFT_TISSUE_HU[1])]
    unshifted = (sample >= _UNSHIFTED_TISSUE[0]) & (sample <= _UNSHIFTED_TISSUE[1])
    return Intensities(
        low=float(voxels.min()),
        high=float(voxels.max()),
        p005=p005,
        median=median,
        p995=p995,
        soft_share=soft.size / sample.size,
        soft_median=float(np.median(soft)) if soft.size else math.nan,
        unshifted_share=float(unshifted.mean()),
        digest=digest_of(voxels),
        bytes_per_voxel=voxels.dtype.itemsize,
    )


def digest_of(voxels: np.ndarray) -> str:
    """Return a hash of an array's shape and values; the stored type does not matter."""
    digest = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    for k in range(voxels.shape[2]):  # by slice: a copy of the whole costs as much as the scan
        digest.update(np.ascontiguousarray(voxels[:, :, k], dtype=np.float32).data)
    return digest.hexdigest()


def measure_organ(mask: np.ndarray, start: tuple[int, int, int], grid: Grid) -> OrganFacts:
    """Return an organ's numbers.

    Args:
        mask: The organ inside its bounding box, bool `[i, j, k]`, not empty.
        start: Where the box starts in the scan.
        grid: The scan's canonical grid.
    """
    pieces, count = ndimage.label(mask, _ANY_NEIGHBOR)
    sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1]
    held = [mask.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    voxels = int(sizes.sum())
    center = [
        float((profile * (np.arange(len(profile)) + first)).sum()) / voxels
        for profile, first in zip(held, start, strict=True)
    ]
    x, y, z = grid.affine[:3, :3] @ center + grid.affine[:3, 3]
    ends = [first + n for first, n in zip(start, mask.shape, strict=True)]
    return OrganFacts(
        voxels=voxels,
        volume_ml=voxels * grid.voxel_ml,
        center_mm=(float(x), float(y), float(z)),
        pieces=int(count),
        main_share=float(sizes[0]) / voxels,
        second_share=float(sizes[1]) / voxels if count > 1 else 0.0,
        at_border=min(start) == 0 or any(e == n for e, n in zip(ends, grid.shape, strict=True)),
        slices=mask.shape[2],
    )


def measure_labels(
    voxels: np.ndarray, grid: Grid, names: Mapping[int, str]
) -> tuple[dict[str, OrganFacts], list[int]]:
    """Return the numbers of every organ that a label map holds, and the values without a name.

    Args:
        voxels: Label values `[i, j, k]`, 0 to 65535, canonical.
        grid: The canonical grid.
        names: Organ by label value.
    """
    found: dict[str, OrganFacts] = {}
    strange = []
    for value, box in enumerate(ndimage.find_objects(voxels), start=1):
        if box is None:
            continue
        if value not in names:
            strange.append(value)
            continue
        start = (box[0].start, box[1].start, box[2].start)
        mask = np.asarray(voxels[box] == value, dtype=np.bool_)
        found[names[value]] = measure_organ(mask, start, grid)
    return found, strange
