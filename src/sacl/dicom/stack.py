"""Where the images of a series lie: one regular stack of parallel planes in the patient.

A plane's pixels are counted [column, row], as DICOM's two direction cosines run. DICOM's world is
(x, y, z) mm in LPS+; a `Grid` is RAS+.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from sacl.dicom.header import copy_patient_and_study, image_header, shared_uids
from sacl.dicom.values import Numbers, integer, numbers
from sacl.errors import DataError
from sacl.geometry import require_same_grid, to_canonical, to_native
from sacl.types import Grid, LabelMap

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_PARALLEL = 1e-3
"""Largest difference of direction cosines between the images of one stack."""
_OFF_STEP = 0.1
"""In slice distances: how far an image may lie from its place in a regular stack."""
_TILT_MM = 5e-3
"""What the planes of a stack may be shifted against each other in all, by rounding."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One image of a series, or one frame of a multi-frame image.

    `cosines` are the directions of its rows and columns, `[2, 3]`; `position_mm` is the center of
    its first pixel; both in LPS+. `spacing_mm` is the distance of its rows and of its columns,
    `distance_mm` that to the next plane where the header tells it, `size` rows and columns.
    """

    header: Dataset
    frame: int | None
    position_mm: np.ndarray
    cosines: np.ndarray
    spacing_mm: tuple[float, float]
    size: tuple[int, int]
    thickness_mm: float
    distance_mm: float | None

    @property
    def normal(self) -> np.ndarray:
        """Direction across the plane, LPS+, of length 1."""
        across = np.cross(*self.cosines)
        return np.asarray(across / np.linalg.norm(across))

    def point_mm(self, column: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Return the places of pixels in the patient, `[n, 3]`, LPS+; halves are pixel edges."""
        along_row, along_column = self.cosines
        return (
            self.position_mm
            + np.multiply.outer(column * self.spacing_mm[1], along_row)
            + np.multiply.outer(row * self.spacing_mm[0], along_column)
        )


@dataclass(frozen=True, eq=False)
class Stack:
    """The planes of a series in order along their normal, and the grid `[column, row, plane]`.

    `patient` holds the patient and study attributes of the source; `made_up` names the UIDs that
    the source lacks.
    """

    planes: tuple[Plane, ...]
    grid: Grid
    patient: Dataset
    made_up: tuple[str, ...] = ()

    @property
    def distance_mm(self) -> float | None:
        """Distance of neighboring planes; None for a single one, and where the stack is tilted."""
        count = len(self.planes)
        step = LPS_TO_RAS[:3, :3] @ self.grid.affine[:3, 2]
        distance = float(step @ self.planes[0].normal)
        across = np.linalg.norm(step - distance * self.planes[0].normal)
        return distance if count > 1 and across * count < _TILT_MM else None


def stack_of(source: Sequence[Dataset]) -> Stack:
    """Return the stack of a source series, in whatever order its images come.

    The source is one dataset per slice or a single multi-frame dataset; pixels are not looked at.

    Raises:
        DataError: the images are no regular stack of parallel, equal planes of one series.
    """
    if not source:
        raise DataError("source series: it has no image")
    uids, made_up = shared_uids(source)
    planes = [plane for image in source for plane in planes_of(image, image_header(image, uids))]
    order, grid = _regular_stack(planes)
    patient = Dataset()
    copy_patient_and_study(source[0], patient, ())
    return Stack(tuple(planes[n] for n in order), grid, patient, made_up)


def slices_of(label_map: LabelMap, stack: Stack) -> np.ndarray:
    """Return a label map's voxels plane by plane, `[plane, row, column]`; nothing is resampled.

    Raises:
        DataError: the map does not lie on the stack's voxels; both grids are printed.
    """
    canonical, grid = to_canonical(label_map.voxels, label_map.grid)
    _, expected = to_canonical(np.empty(stack.grid.shape, np.bool_), stack.grid)
    remedy = "give the map that was predicted from this series"
    require_same_grid(expected, grid, "source series", remedy)
    return to_native(canonical, stack.grid).transpose(2, 1, 0)


def require_parallel(planes: Sequence[Plane], where: str) -> None:
    """Refuse planes that differ in direction, spacing or size.

    Raises:
        DataError: as said.
    """
    first = planes[0]
    for plane in planes[1:]:
        if plane.size != first.size or not np.allclose(plane.spacing_mm, first.spacing_mm, 1e-4):
            raise DataError(f"{where}: its images differ in size or pixel spacing; split it")
        if np.abs(plane.cosines - first.cosines).max() > _PARALLEL:
            raise DataError(f"{where}: its images are not parallel; split it")


def grid_of(plane: Plane, start_mm: np.ndarray, step_mm: np.ndarray, count: int) -> Grid:
    """Return the grid `[column, row, plane]` of equal planes, the first at a place in LPS+."""
    affine = np.eye(4)
    affine[:3, 0] = plane.cosines[0] * plane.spacing_mm[1]
    affine[:3, 1] = plane.cosines[1] * plane.spacing_mm[0]
    affine[:3, 2] = step_mm
    affine[:3, 3] = start_mm
    rows, columns = plane.size
    return Grid((columns, rows, count), LPS_TO_RAS @ affine)


def fit_step(
    index: np.ndarray, positions_mm: np.ndarray, alone_mm: np.ndarray
) -> np.ndarray | None:
    """Return the step from plane to plane that the places `[n, 3]` of planes by index show.

    None where they lie at no regular distances. Planes of one index alone show `alone_mm`.
    """
    low, high = int(index.argmin()), int(index.argmax())
    step = alone_mm
    if index[high] > index[low]:
        step = (positions_mm[high] - positions_mm[low]) / (index[high] - index[low])
    off = positions_mm - positions_mm[low] - np.multiply.outer(index - index[low], step)
    is_regular = np.linalg.norm(off, axis=1).max() <= _OFF_STEP * np.linalg.norm(step)
    return step if is_regular and np.linalg.norm(step) > 0 else None


def _regular_stack(planes: Sequence[Plane]) -> tuple[list[int], Grid]:
    """Return the order of planes along their normal, and the grid `[column, row, plane]`.

    Raises:
        DataError: the planes are not parallel and equal, or lie at irregular distances.
    """
    require_parallel(planes, "source series")
    first = planes[0]
    order = sorted(range(len(planes)), key=lambda n: float(planes[n].position_mm @ first.normal))
    positions = np.array([planes[n].position_mm for n in order])
    alone = first.normal * first.thickness_mm
    step = fit_step(np.arange(len(planes)), positions, alone)
    if step is None or step @ first.normal <= 0:
        raise DataError(
            "source series: its images lie on each other or at irregular distances, there are"
            " several of a place or one is missing; export the series again"
        )
    return order, grid_of(first, positions[0], step, len(planes))


def planes_of(image: Dataset, header: Dataset) -> list[Plane]:
    """Return the planes of an image: itself, or one per frame of a multi-frame image.

    Raises:
        DataError: a plane's place in the patient is not told.
    """
    if "PerFrameFunctionalGroupsSequence" not in image:
        return [_plane([image], header, image, None)]
    shared = _groups(next(iter(image.get("SharedFunctionalGroupsSequence") or []), Dataset()))
    return [
        _plane([*_groups(frame), *shared], header, image, number)
        for number, frame in enumerate(image.PerFrameFunctionalGroupsSequence, start=1)
    ]


def _groups(item: Dataset) -> list[Dataset]:
    """Return the functional groups of a frame, or of all frames, that tell where it lies."""
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    return [item[name].value[0] for name in names if item.get(name)]


def _plane(groups: Sequence[Dataset], header: Dataset, image: Dataset, frame: int | None) -> Plane:
    """Return the plane that the first groups tell which tell it."""

    def told(name: str, count: int) -> Numbers | None:
        return next(filter(None, (numbers(group, name, count) for group in groups)), None)

    position = told("ImagePositionPatient", 3)
    cosines = told("ImageOrientationPatient", 6)
    spacing = told("PixelSpacing", 2)
    if position is None or cosines is None or spacing is None:
        raise DataError(
            "source series: an image lacks its position, orientation or pixel spacing, so that its"
            " place in the patient is unknown; export the series again"
        )
    distance = told("SpacingBetweenSlices", 1)
    thickness = told("SliceThickness", 1) or distance or (1.0,)
    return Plane(
        header,
        frame,
        np.array(position),
        np.array(cosines).reshape(2, 3),
        (spacing[0], spacing[1]),
        (integer(image, "Rows") or 0, integer(image, "Columns") or 0),
        abs(thickness[0]) or 1.0,
        abs(distance[0]) if distance else None,
    )
