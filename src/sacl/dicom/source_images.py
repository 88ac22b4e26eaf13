"""The source images of a result as highdicom takes them: who they are and where they lie."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom import Dataset
from pydicom.valuerep import DSfloat

from sacl.dicom.stack import Plane, Stack


def source_images(stack: Stack) -> tuple[list[Dataset], list[int]]:
    """Return the source's images without their patient, and which plane each of their frames is.

    That is one dataset per image in the stack's order, or a multi-frame image with its frames in
    their own order. All get the direction of the first, from which none differs noticeably.
    """
    planes, first = stack.planes, stack.planes[0]
    if first.frame is None:
        images = [
            _with(p.header, p, _measures(first), _direction(first), _place(p)) for p in planes
        ]
        return images, list(range(len(planes)))
    order = sorted(range(len(planes)), key=lambda n: planes[n].frame or 0)
    shared, groups = Dataset(), Dataset()
    shared.PixelMeasuresSequence = [_measures(first)]
    shared.PlaneOrientationSequence = [_direction(first)]
    groups.NumberOfFrames = len(order)
    groups.SharedFunctionalGroupsSequence = [shared]
    groups.PerFrameFunctionalGroupsSequence = [_frame(planes[n]) for n in order]
    return [_with(first.header, first, groups)], order


def decimal_strings(numbers: Iterable[float]) -> list[DSfloat]:
    """Return numbers as DICOM's decimal strings, which have at most 16 characters."""
    return [DSfloat(float(number), auto_format=True) for number in numbers]


def _with(header: Dataset, plane: Plane, *parts: Dataset) -> Dataset:
    image = Dataset()
    for part in (header, *parts):
        image.update(part)
    image.Rows, image.Columns = plane.size
    return image


def _measures(plane: Plane) -> Dataset:
    item = Dataset()
    item.PixelSpacing = decimal_strings(plane.spacing_mm)
    (item.SliceThickness,) = decimal_strings([plane.thickness_mm])
    return item


def _direction(plane: Plane) -> Dataset:
    item = Dataset()
    item.ImageOrientationPatient = decimal_strings(plane.cosines.ravel())
    return item


def _place(plane: Plane) -> Dataset:
    item = Dataset()
    item.ImagePositionPatient = decimal_strings(plane.position_mm)
    return item


def _frame(plane: Plane) -> Dataset:
    item = Dataset()
    item.PlanePositionSequence = [_place(plane)]
    return item
