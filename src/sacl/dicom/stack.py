"""From slices to a volume: sorted along their normal, LPS to RAS, a gantry tilt kept as shear.

A slice's first direction cosines run along its rows, so along i, by the distance of its columns
(`PixelSpacing[1]`); the second along its columns, so along j, by that of its rows
(`PixelSpacing[0]`). k runs from slice to slice, ascending along cosines 1 x cosines 2. DICOM's
world is LPS, ours RAS: x and y change their sign (DICOM PS3.3, C.7.6.2.1.1). Pixels are read slice
by slice, as HU (CT) or intensities (MR).
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import pydicom
from jaxtyping import Float, Integer, Num
from pydicom import Dataset, uid
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels

from sacl.dicom.files import DAMAGE, Fault, Opener
from sacl.dicom.header import near, quiet
from sacl.dicom.slices import Slice
from sacl.errors import DataError
from sacl.geometry import to_canonical
from sacl.types import Grid, NativeFrame, Volume

OFF_GRID = 0.1
"""In slice distances: how far a slice may lie from its place on the even grid."""
SAME_PLACE_MM = 0.01
"""Slices closer than this along the normal count as one position."""
UNIT = 1e-3
"""How far orientation vectors may be from unit length and from a right angle."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CHANGED = 3
"""So many equally wide steps in a row are another distance of slices, not as many gaps."""
AIR_HU = -1024
"""What CT padding becomes, and the least value that a CT keeps."""
_TISSUE_HU = (-500, 3071)
"""A padding value inside would erase tissue: it is not taken for padding."""
_INT16 = np.iinfo(np.int16)
_JPEG = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81))
"""JPEG and JPEG-LS; JPEG 2000 is decoded by what every installation has."""


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


def positions(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Return slices by position along the normal, ascending; several where a place is taken."""
    distance = np.array([s.position_mm for s in slices]) @ np.cross(*_cosines(slices[0]))
    order = np.argsort(distance, kind="stable")
    starts = np.flatnonzero(np.diff(distance[order]) >= SAME_PLACE_MM) + 1
    return [[slices[n] for n in place] for place in np.split(order, starts)]


def stack(slices: Sequence[Slice], thickness_mm: float = 1.0) -> SliceStack | Fault:
    """Return slices of one direction and matrix as a stack, or why they are none.

    Every slice has to lie within a tenth of the slice distance of its place between the first and
    the last. The step of a slice alone is `thickness_mm`.
    """
    ordered = tuple(place[0] for place in positions(slices))
    if len(ordered) < len(slices):
        return Fault("repeated_positions", "there are several images of a place")
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
    whole = np.round(counts).astype(int)
    missing = int(np.sum(whole - 1))
    shifted = np.linalg.norm(across, axis=1).max() > OFF_GRID * usual
    runs = [(count, len(list(run))) for count, run in itertools.groupby(whole.tolist())]
    changes = any(count > 1 and length >= _CHANGED for count, length in runs)
    is_gap = np.abs(counts - whole).max() <= OFF_GRID and missing > 0 and not changes
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


def read_stack(stack: SliceStack, case_id: str) -> tuple[Volume, NativeFrame]:
    """Return a scan in canonical orientation and the frame that leads back to its own grid.

    Every slice's own slope and intercept are applied. Voxels are int16 where all of these are
    whole numbers and the values fit, else float32. CT padding becomes air, -1024 HU, and what is
    below, as outside the field of measurement, too; MR padding becomes 0.

    Raises:
        DataError: a slice cannot be decoded, or its file has changed.
    """
    kind = np.int16 if all(map(_is_whole, stack.slices)) else np.float32
    voxels = np.empty(stack.grid.shape, kind, order="F")
    with Opener() as opener:
        planes = stored_pixels(stack.slices, opener)
        for k, piece in enumerate(stack.slices):
            try:
                values = rescaled(next(planes), piece)
            except DAMAGE as error:
                raise DataError(
                    f"case {case_id}: slice {k + 1} of {len(stack.slices)} cannot be decoded"
                    f" ({type(error).__name__}); export the series again, or remove it"
                ) from error
            fits = values.min() >= _INT16.min and values.max() <= _INT16.max
            if voxels.dtype == np.int16 and not fits:
                voxels = voxels.astype(np.float32)
            voxels[:, :, k] = values.T
    canonical, grid = to_canonical(voxels, stack.grid)
    return Volume(canonical, grid), NativeFrame(stack.grid)


def stored_pixels(
    slices: Sequence[Slice], opener: Opener
) -> Iterator[Integer[np.ndarray, "row column"]]:
    """Yield each slice's pixels as stored, one at a time; raise `files.DAMAGE` where damaged."""
    for source, members in itertools.groupby(slices, key=lambda piece: piece.source):
        frames = [piece.frame or 0 for piece in members]
        with quiet(), opener.stream(source, whole=True) as stream:
            yield from iter_pixels(
                cast(BinaryIO, _decodable_source(stream)), indices=frames, raw=True
            )


def _decodable_source(stream: io.BufferedIOBase) -> io.BufferedIOBase | Dataset:
    """Return a stream, or of a deflated file, or one without meta information, the data set."""
    header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=[])
    syntax = header.file_meta.get("TransferSyntaxUID")
    stream.seek(0)
    if syntax and syntax != uid.DeflatedExplicitVRLittleEndian:
        return stream
    data = pydicom.dcmread(stream, force=True)
    if not syntax:
        implicit, _ = data.original_encoding
        data.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        )
    return data


def decoder_fault(transfer_syntax: str) -> Fault | None:
    """Return what to install where no package that is installed decodes a transfer syntax."""
    syntax = uid.UID(transfer_syntax or uid.ImplicitVRLittleEndian)
    try:
        if get_decoder(syntax).is_available:
            return None
    except (NotImplementedError, ValueError):
        pass
    remedy = "`pip install 'sacl[jpeg]'`, or " if syntax in _JPEG else ""
    return Fault(
        "missing_decoder",
        f"no decoder is installed for {syntax.name}; {remedy}export the series uncompressed",
    )


def rescaled(
    stored: Integer[np.ndarray, "row column"], piece: Slice
) -> Num[np.ndarray, "row column"]:
    """Return stored x slope + intercept of a slice: int32 where these are whole, else float."""
    if stored.shape != (piece.encoding.rows, piece.encoding.columns):
        raise ValueError("another matrix than the header says")
    slope, intercept = _line(piece)
    if _is_whole(piece) and stored.dtype.itemsize <= 2:
        values: np.ndarray = stored.astype(np.int32) * round(slope) + round(intercept)
    else:
        values = stored.astype(np.float64) * slope + intercept
    if padding := padding_of(piece):
        low, high = padding
        values[(stored >= low) & (stored <= high)] = AIR_HU if piece.modality == "CT" else 0
    return np.maximum(values, AIR_HU) if piece.modality == "CT" else values


def padding_of(piece: Slice) -> tuple[int, int] | None:
    """Return the stored values that are taken for padding: of a CT none that could be tissue."""
    slope, intercept = _line(piece)
    ends = [end * slope + intercept for end in piece.encoding.padding or ()]
    may_be_tissue = ends and max(ends) > _TISSUE_HU[0] and min(ends) <= _TISSUE_HU[1]
    return None if piece.modality == "CT" and may_be_tissue else piece.encoding.padding


def _line(piece: Slice) -> tuple[float, float]:
    """Return slope and intercept of a slice; 1 and 0 where the header does not say."""
    slope = 1.0 if piece.slope is None else piece.slope
    return slope, piece.intercept or 0.0


def _is_whole(piece: Slice) -> bool:
    return all(value.is_integer() for value in _line(piece))
