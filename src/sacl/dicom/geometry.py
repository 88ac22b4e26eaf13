"""From slices to a grid: sorted along their normal, LPS to RAS, a gantry tilt kept as shear.

A slice's first direction cosines run along its rows, so along i, by the distance of its columns
(`PixelSpacing[1]`); the second along its columns, so along j, by that of its rows
(`PixelSpacing[0]`). k runs from slice to slice, ascending along cosines 1 x cosines 2. DICOM's
world is LPS, ours RAS: x and y change their sign (DICOM PS3.3, C.7.6.2.1.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sacl.dicom.faults import Fault
from sacl.dicom.slices import Slice
from sacl.types import Grid

OFF_GRID = 0.1
"""In slice distances: how far a slice may lie from its place on the even grid."""
SAME_PLACE_MM = 0.01
"""Slices closer than this along the normal count as one position."""
UNIT = 1e-3
"""How far orientation vectors may be from unit length and from a right angle."""
_TILT_DEG = 0.05
"""A tilt below this is rounding."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Slices in the order of k, and the grid `[column, row, slice]`, RAS+ mm, on which they lie.

    `tilt_deg` is the angle between the step from slice to slice and the slices' normal.
    """

    slices: tuple[Slice, ...]
    grid: Grid
    tilt_deg: float

    @property
    def is_tilted(self) -> bool:
        """Tell whether the grid is sheared by more than rounding."""
        return self.tilt_deg > _TILT_DEG


def plane_fault(piece: Slice) -> Fault | None:
    """Return what is wrong with a slice's own spacing or orientation."""
    assert piece.spacing_mm is not None
    if min(piece.spacing_mm) <= 0:
        return Fault(
            "bad_geometry",
            f"pixel spacing {piece.spacing_mm[0]:g} x {piece.spacing_mm[1]:g} mm, expected above 0",
        )
    along_row, along_column = _cosines(piece)
    lengths = np.linalg.norm([along_row, along_column], axis=1)
    skew = abs(float(along_row @ along_column))
    if np.abs(lengths - 1).max() > UNIT or skew > UNIT:
        return Fault(
            "bad_geometry",
            f"orientation vectors of length {lengths[0]:.4g} and {lengths[1]:.4g} with a cosine of"
            f" {skew:.4g}, expected unit vectors at a right angle",
        )
    return None


def distances_mm(slices: Sequence[Slice]) -> np.ndarray:
    """Return where slices lie along the normal of the first one, float64 `[slice]`."""
    return np.array([piece.position_mm for piece in slices]) @ np.cross(*_cosines(slices[0]))


def positions(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Return slices by position along the normal, ascending; several where a place is taken."""
    distance = distances_mm(slices)
    places: list[list[Slice]] = []
    last = -math.inf
    for n in np.argsort(distance, kind="stable"):
        if distance[n] - last < SAME_PLACE_MM:
            places[-1].append(slices[n])
        else:
            places.append([slices[n]])
        last = distance[n]
    return places


def stack(slices: Sequence[Slice]) -> SliceStack | Fault:
    """Return slices as a stack, or why they are none; each position is taken once.

    The step is that from the first to the last slice; every slice has to lie within a tenth of
    the slice distance of its place, along the normal and across it.
    """
    order = np.argsort(distances_mm(slices), kind="stable")
    ordered = tuple(slices[n] for n in order)
    along_row, along_column = _cosines(ordered[0])
    normal = np.cross(along_row, along_column)
    points = np.array([piece.position_mm for piece in ordered])
    step = (points[-1] - points[0]) / (len(points) - 1)
    distance = float(step @ normal)
    off = points - points[0] - np.multiply.outer(np.arange(len(points)), step)
    if np.linalg.norm(off, axis=1).max() > OFF_GRID * distance:
        return _uneven(points @ normal, off - np.multiply.outer(off @ normal, normal))
    row_mm, column_mm = ordered[0].spacing_mm or (0.0, 0.0)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([along_row * column_mm, along_column * row_mm, step])
    affine[:3, 3] = points[0]
    encoding = ordered[0].encoding
    grid = Grid(
        (encoding.columns, encoding.rows, len(ordered)), _LPS_TO_RAS @ affine + 0.0
    )  # no -0.0
    across = float(np.linalg.norm(step - distance * normal))
    return SliceStack(ordered, grid, math.degrees(math.atan2(across, distance)))


def _cosines(piece: Slice) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions of a slice's rows and columns, LPS."""
    assert piece.orientation is not None
    cosines = np.array(piece.orientation)
    return cosines[:3], cosines[3:]


def _uneven(distance: np.ndarray, across: np.ndarray) -> Fault:
    """Return why slices are off the even grid: some are missing, or they lie unevenly.

    Args:
        distance: places along the normal, mm, ascending.
        across: `[slice, 3]`, how far each is off in its plane.
    """
    steps = np.diff(distance)
    usual = float(np.median(steps))
    counts = steps / usual
    whole = np.abs(counts - np.round(counts)).max() <= OFF_GRID
    missing = int(np.sum(np.round(counts) - 1))
    shifted = np.linalg.norm(across, axis=1).max() > OFF_GRID * usual
    if whole and missing > 0 and not (shifted and np.allclose(counts, 1, atol=OFF_GRID)):
        return Fault(
            "missing_slices",
            f"{missing} of {len(distance) + missing} slices are missing: gaps of"
            f" {steps.max():.4g} mm where {usual:.4g} mm are usual; export the series again",
        )
    what = "shifted in their plane" if shifted else "at uneven distances"
    return Fault(
        "uneven_slices",
        f"slices {what}: steps of {steps.min():.4g} to {steps.max():.4g} mm, expected equal ones"
        f" within {OFF_GRID:.0%}; export the original series",
    )
