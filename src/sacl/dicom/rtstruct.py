"""DICOM RTSTRUCT: write a label map as closed planar contours on its source series."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from scipy.ndimage import find_objects

from sacl import __version__
from sacl.dicom.coding import CATEGORY, organ_code, private_scheme, require_names, rgb, title_of
from sacl.dicom.contours import outlines
from sacl.dicom.header import copy_patient_and_study, new_uid
from sacl.dicom.stack import Plane, Stack, slices_of, stack_of
from sacl.dicom.values import quiet
from sacl.files.atomic import replacing
from sacl.types import LabelMap

SERIES_NUMBER = 9101
"""Of the new series; high, so that viewers list it after the scanner's own."""
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, retired, which is what structure sets still call a study."""
_CONTOUR_DATA = Tag("ContourData")
_DECIMALS = 5
"""Of contour points in mm: a hundredth of a micrometer, in less than 16 characters."""


def write_rtstruct(
    path: Path, label_map: LabelMap, source: Sequence[Dataset], run: str
) -> tuple[str, ...]:
    """Write a label map as RTSTRUCT on the images of its source series, whole or not at all.

    A contour runs along the pixels' edges in the plane of its image: filling it gives back the
    voxels. Holes are keyholes (see `contours`), so that CLOSED_PLANAR says all. Every organ of the
    scheme is listed, in its order; one without voxels has no contour. The file is implicit little
    endian, which alone has room for contours of more than 64 kB.

    Args:
        path: The file.
        label_map: On the canonical grid of the source.
        source: Datasets of the source series, in any order; pixels are not needed.
        run: Name of the run; the series is called "sacl RUN".

    Returns:
        The names of the UIDs that the source lacks and that were made up.

    Raises:
        DataError: the map does not lie on the source's voxels, the source is no regular stack, or
            an organ's name does not fit.
    """
    names, title = label_map.scheme.names, title_of(run)
    require_names(names)
    with quiet():
        stack = stack_of(source)
        slices = slices_of(label_map, stack)
        structures = _structure_set(stack, title)
        structures.StructureSetROISequence = [
            _structure(number, organ, stack) for number, organ in enumerate(names, start=1)
        ]
        structures.ROIContourSequence = _all_contours(slices, len(names), stack)
        structures.RTROIObservationsSequence = [
            _observation(number, organ) for number, organ in enumerate(names, start=1)
        ]
        copy_patient_and_study(stack.patient, structures, (title, *names))
        with replacing(path) as temporary:
            structures.save_as(temporary, enforce_file_format=True)
    return stack.made_up


def _structure_set(stack: Stack, title: str) -> Dataset:
    now = datetime.datetime.now()
    header = stack.planes[0].header
    item = Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    item.SOPClassUID, item.SOPInstanceUID = RTStructureSetStorage, new_uid()
    item.InstanceCreationDate, item.InstanceCreationTime = _date(now), _time(now)
    item.Modality, item.SeriesInstanceUID = "RTSTRUCT", new_uid()
    item.SeriesNumber, item.InstanceNumber = SERIES_NUMBER, 1
    item.SeriesDescription = title
    item.OperatorsName = None
    item.Manufacturer = item.ManufacturerModelName = "sacl"
    item.SoftwareVersions = __version__
    item.StudyInstanceUID = header.StudyInstanceUID
    item.FrameOfReferenceUID, item.PositionReferenceIndicator = header.FrameOfReferenceUID, None
    item.StructureSetLabel, item.StructureSetName = "SACL", title
    item.StructureSetDate, item.StructureSetTime = _date(now), _time(now)
    item.ApprovalStatus = "UNAPPROVED"
    item.ReferencedFrameOfReferenceSequence = [_frame_of_reference(stack)]
    item.CodingSchemeIdentificationSequence = [private_scheme()]
    return item


def _frame_of_reference(stack: Stack) -> Dataset:
    header = stack.planes[0].header
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = header.SeriesInstanceUID
    series.ContourImageSequence = [_image(plane) for plane in stack.planes]
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = header.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = header.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _structure(number: int, organ: str, stack: Stack) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName = number, organ
    item.ReferencedFrameOfReferenceUID = stack.planes[0].header.FrameOfReferenceUID
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = f"sacl {__version__}"
    return item


def _observation(number: int, organ: str) -> Dataset:
    item, category = Dataset(), Dataset()
    category.CodeValue, category.CodeMeaning = CATEGORY.value, CATEGORY.meaning
    category.CodingSchemeDesignator = CATEGORY.scheme_designator
    item.ObservationNumber = item.ReferencedROINumber = number
    item.SegmentedPropertyCategoryCodeSequence = [category]
    item.RTROIIdentificationCodeSequence = [organ_code(organ)]
    item.RTROIInterpretedType, item.ROIInterpreter = "ORGAN", None
    return item


def _all_contours(slices: np.ndarray, organs: int, stack: Stack) -> list[Dataset]:
    contours: list[list[Dataset]] = [[] for _ in range(organs)]
    labels = range(1, organs + 1)
    for voxels, plane in zip(slices, stack.planes, strict=True):
        for box, found, label in zip(find_objects(voxels, organs), contours, labels, strict=True):
            if box is None:
                continue
            start = [side.start for side in box]
            for outline in outlines(voxels[box] == label):
                found.append(_contour(outline + start, plane, len(found) + 1))
    items = []
    for number, found in zip(labels, contours, strict=True):
        item = Dataset()
        item.ReferencedROINumber, item.ROIDisplayColor = number, list(rgb(number))
        if found:
            item.ContourSequence = found
        items.append(item)
    return items


def _contour(outline: np.ndarray, plane: Plane, number: int) -> Dataset:
    """Return an outline `[n, 2]` of pixel corners as points in the patient."""
    # A pixel's position is its center: half a pixel past its first corner.
    row, column = outline.T - 0.5
    points = plane.point_mm(column, row)
    item = Dataset()
    item.ContourImageSequence = [_image(plane)]
    item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
    item.ContourNumber = number
    numbers = [f"{x:.{_DECIMALS}f}".rstrip("0").rstrip(".") for x in points.ravel().tolist()]
    text = "\\".join(numbers).encode("ascii")
    text += b" " * (len(text) % 2)
    # As text that is said to be encoded already it is written at once; pydicom would take minutes
    # to check each number of a large scan.
    item.set_original_encoding(True, True, default_encoding)
    item[_CONTOUR_DATA] = RawDataElement(_CONTOUR_DATA, "DS", len(text), text, 0, True, True)
    return item


def _image(plane: Plane) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = plane.header.SOPClassUID
    item.ReferencedSOPInstanceUID = plane.header.SOPInstanceUID
    if plane.frame is not None:
        item.ReferencedFrameNumber = plane.frame
    return item


def _date(now: datetime.datetime) -> str:
    return now.strftime("%Y%m%d")


def _time(now: datetime.datetime) -> str:
    return now.strftime("%H%M%S")
