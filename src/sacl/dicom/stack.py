"""From slices to a grid: sorted along their normal, LPS to RAS, a gantry tilt kept as shear.

A slice's first direction cosines run along its rows, so along i, by the distance of its columns
(`PixelSpacing[1]`); the second along its columns, so along j, by that of its rows
(`PixelSpacing[0]`). k runs from slice to slice, ascending along cosines 1 x cosines 2. DICOM's
world is LPS, ours RAS: x and y change their sign (DICOM PS3.3, C.7.6.2.1.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sacl.dicom.files import Fault
from sacl.dicom.header import near
from sacl.dicom.slices import Slice
from sacl.errors import DataError
from sacl.types import Grid

OFF_GRID = 0.1
"""In slice distances: how far a slice may lie from its place on the even grid."""
SAME_PLACE_MM = 0.01
"""Slices closer than this along the normal count as one position."""
UNIT = 1e-3
"""How far orientation vectors may be from unit length and from a right angle."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CHANGED = 3
"""So many equally wide steps in a row are another distance of slices, not as many gaps."""


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Slices in the order of k, and the grid `[column, row, slice]`, RAS+ mm, on which they lie.

    `tilt_deg` is the angle between the step from slice to slice and the slices' normal.
    """

    slices: tuple[Slice, ...]
    grid: Grid
    tilt_deg: float


def plane_fault(piece: Slice) -> Fault | None:
    """Return what is wrong with a slice's own place, spacing or orientation."""
    if piece.spacing_mm is None or None in (piece.position_mm, piece.orientation):
        return Fault("missing_tags", "an image lacks its position, orientation or pixel spacing")
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


def mixed_fault(slices: Sequence[Slice]) -> Fault | None:
    """Return a fault where slices differ in direction, matrix or spacing: no part was a scan."""
    first, count = slices[0], len(slices)
    if not all(near(piece.orientation, first.orientation, UNIT) for piece in slices):
        directions = len({tuple(np.round(piece.orientation or (), 2)) for piece in slices})
        why = f"{count} slices in {directions} directions, too few in each for a stack"
        return Fault("mixed_orientation", why)
    if len({(s.encoding.rows, s.encoding.columns, s.spacing_mm) for s in slices}) > 1:
        why = f"{count} slices of several matrices or pixel spacings, too few of each for a stack"
        return Fault("uneven_slices", why)
    return None


def _distances_mm(slices: Sequence[Slice]) -> Float[np.ndarray, " slice"]:
    """Return where slices lie along the normal of the first one."""
    return np.array([piece.position_mm for piece in slices]) @ np.cross(*_cosines(slices[0]))


def positions(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Return slices by position along the normal, ascending; several where a place is taken."""
    distance = _distances_mm(slices)
    order = np.argsort(distance, kind="stable")
    starts = np.flatnonzero(np.diff(distance[order]) >= SAME_PLACE_MM) + 1
    return [[slices[n] for n in place] for place in np.split(order, starts)]


def stack(slices: Sequence[Slice], thickness_mm: float = 1.0) -> SliceStack | Fault:
    """Return slices as a stack, or why they are none; each position is taken once.

    Every slice has to lie within a tenth of the slice distance of its place between the first and
    the last. The step of a slice alone is `thickness_mm`.
    """
    order = np.argsort(_distances_mm(slices), kind="stable")
    ordered = tuple(slices[n] for n in order)
    normal = np.cross(*_cosines(ordered[0]))
    points = np.array([piece.position_mm for piece in ordered])
    count = len(points)
    step = (points[-1] - points[0]) / (count - 1) if count > 1 else normal * thickness_mm
    distance = float(step @ normal)
    off = points - points[0] - np.multiply.outer(np.arange(count), step)
    if np.linalg.norm(off, axis=1).max() > OFF_GRID * distance:
        return _uneven(points @ normal, off - np.multiply.outer(off @ normal, normal))
    across = float(np.linalg.norm(step - distance * normal))
    try:
        grid = grid_of(ordered[0], points[0], step, count)
    except DataError as error:
        return Fault("bad_geometry", f"no grid can hold its slices ({error})")
    return SliceStack(ordered, grid, math.degrees(math.atan2(across, distance)))


def grid_of(
    piece: Slice, start_mm: Float[np.ndarray, 3], step_mm: Float[np.ndarray, 3], count: int
) -> Grid:
    """Return the grid `[column, row, slice]` of slices like one, the first at a place in LPS+."""
    along_row, along_column = _cosines(piece)
    row_mm, column_mm = piece.spacing_mm or (0.0, 0.0)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([along_row * column_mm, along_column * row_mm, step_mm])
    affine[:3, 3] = start_mm
    shape = (piece.encoding.columns, piece.encoding.rows, count)
    return Grid(shape, LPS_TO_RAS @ affine + 0.0)  # no -0.0


def _cosines(piece: Slice) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions of a slice's rows and columns, LPS+."""
    assert piece.orientation is not None
    cosines = np.array(piece.orientation)
    return cosines[:3], cosines[3:]


def _uneven(distance: Float[np.ndarray, " n"], across: Float[np.ndarray, "n 3"]) -> Fault:
    """Return why slices are off the even grid: some are missing, or they lie unevenly.

    `distance` is their places along the normal, `across` how far each is off in its plane, mm.
    """
    steps = np.diff(distance)
    usual = float(np.median(steps))
    counts = steps / usual
    whole = np.abs(counts - np.round(counts)).max() <= OFF_GRID
    missing = int(np.sum(np.round(counts) - 1))
    shifted = np.linalg.norm(across, axis=1).max() > OFF_GRID * usual
    is_gap = whole and missing > 0 and not _changes(np.round(counts).astype(int))
    if is_gap and not (shifted and np.allclose(counts, 1, atol=OFF_GRID)):
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


def _changes(counts: Int[np.ndarray, " n"]) -> bool:
    """Tell whether several equally wide steps follow each other: another distance of slices."""
    runs = itertools.groupby(counts.tolist())
    return any(count > 1 and len(list(run)) >= _CHANGED for count, run in runs)
