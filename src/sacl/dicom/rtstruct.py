"""DICOM RTSTRUCT: write a label map as closed planar contours on its source series.

A contour runs along pixel edges, so that filling it gives back the pixels. Pixel (r, c) covers the
square from corner (r, c) to corner (r + 1, c + 1). Pixels that touch at a corner only are outlined
apart. A hole is joined to the outline around it by a cut of no width (a keyhole), so that every
outline is one closed polygon. It encloses the same pixel centers under the even-odd rule and under
the nonzero winding rule, and also where a reader takes the union of all polygons of a slice.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Shaped
from pydicom import Dataset
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from sacl import __version__
from sacl.dicom.result import SourceSeries, category_of, item, organ_code, rgb, write_result
from sacl.dicom.slices import Slice
from sacl.files.arrays import label_boxes
from sacl.organs import readable
from sacl.types import LabelMap

_SERIES_NUMBER = 9101
"""Of the new series; high, so that viewers list it after the scanner's own."""
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, retired, which is what structure sets still call a study."""
Corner = tuple[int, int]
_CONTOUR_DATA = Tag("ContourData")
_LONGEST_TEXT = 1024
"""Of DICOM's value representation ST."""
_DECIMALS = 5
"""Of contour points in mm: a hundredth of a micrometer, in less than 16 characters."""


def write_rtstruct(
    path: Path, label_map: LabelMap, source: Sequence[Dataset], run: str
) -> tuple[str, ...]:
    """Write a label map as RTSTRUCT, with the arguments and errors of `result.write_result`.

    Every organ that the map has is listed under its label value, and the set's description says
    which are left out. A map without any voxel lists all, as a set needs one at least. The file is
    implicit little endian, which alone has room for contours of over 64 kB.
    """
    return write_result(path, label_map, source, run, _structures)


def _structures(
    slices: Shaped[np.ndarray, "k row column"],
    names: Sequence[str],
    source: SourceSeries,
    title: str,
) -> Dataset:
    contours = _all_contours(slices, len(names), source)
    organs = {n: names[n - 1] for n, drawn in contours.items() if drawn}
    missing = [readable(name) for n, name in enumerate(names, start=1) if n not in organs]
    organs = organs or dict(enumerate(names, start=1))
    structures = _structure_set(source, title)
    if missing:
        text = f"{len(missing)} of {len(names)} organs not found: {', '.join(missing)}"
        structures.StructureSetDescription = text[:_LONGEST_TEXT]
    structures.StructureSetROISequence = [
        item(
            ROINumber=number,
            ROIName=readable(organ),
            ROIDescription=organ,
            ReferencedFrameOfReferenceUID=source.first.FrameOfReferenceUID,
            ROIGenerationAlgorithm="AUTOMATIC",
            ROIGenerationDescription=f"sacl {__version__}",
        )
        for number, organ in organs.items()
    ]
    structures.ROIContourSequence = [
        item(
            ReferencedROINumber=number,
            ROIDisplayColor=list(rgb(number)),
            **({"ContourSequence": contours[number]} if contours[number] else {}),
        )
        for number in organs
    ]
    structures.RTROIObservationsSequence = [
        item(
            ObservationNumber=number,
            ReferencedROINumber=number,
            SegmentedPropertyCategoryCodeSequence=[category_of(organ)],
            RTROIIdentificationCodeSequence=[organ_code(organ)],
            RTROIInterpretedType="ORGAN",
            ROIInterpreter=None,
        )
        for number, organ in organs.items()
    ]
    return structures


def _structure_set(source: SourceSeries, title: str) -> Dataset:
    now = datetime.datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    structures = item(
        SOPClassUID=RTStructureSetStorage,
        SOPInstanceUID=generate_uid(None),
        InstanceCreationDate=date,
        InstanceCreationTime=time,
        Modality="RTSTRUCT",
        SeriesInstanceUID=generate_uid(None),
        SeriesNumber=_SERIES_NUMBER,
        InstanceNumber=1,
        OperatorsName=None,
        Manufacturer="sacl",
        ManufacturerModelName="sacl",
        SoftwareVersions=__version__,
        StudyInstanceUID=source.first.StudyInstanceUID,
        FrameOfReferenceUID=source.first.FrameOfReferenceUID,
        PositionReferenceIndicator=None,
        StructureSetLabel="SACL",
        StructureSetName=title,
        StructureSetDate=date,
        StructureSetTime=time,
        ApprovalStatus="UNAPPROVED",
        ReferencedFrameOfReferenceSequence=[_frame_of_reference(source)],
    )
    structures.file_meta = FileMetaDataset()
    structures.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return structures


def _frame_of_reference(source: SourceSeries) -> Dataset:
    first = source.first
    images = [_image(piece, source) for piece in source.stack.slices]
    series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = item(
        ReferencedSOPClassUID=_STUDY_CLASS,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _all_contours(
    slices: Shaped[np.ndarray, "k row column"], organs: int, source: SourceSeries
) -> dict[int, list[Dataset]]:
    """Return the contours of every label value on all slices."""
    contours: dict[int, list[Dataset]] = {label: [] for label in range(1, organs + 1)}
    for voxels, piece in zip(slices, source.stack.slices, strict=True):
        for box, (label, drawn) in zip(label_boxes(voxels, organs), contours.items(), strict=True):
            if box is None:
                continue
            start = [side.start for side in box]
            for outline in outlines(voxels[box] == label):
                drawn.append(_contour(outline + start, piece, source, len(drawn) + 1))
    return contours


def _contour(
    outline: Int[np.ndarray, "n 2"], piece: Slice, source: SourceSeries, number: int
) -> Dataset:
    """Return an outline of pixel corners (row, column) as points in the patient."""
    # A pixel's position is its center: half a pixel past its first corner.
    offsets_mm = (outline - 0.5) * (piece.spacing_mm or ())
    cosines = np.reshape(piece.orientation or (), (2, 3))[::-1]
    points = np.array(piece.position_mm) + offsets_mm @ cosines
    numbers = [f"{x:.{_DECIMALS}f}".rstrip("0").rstrip(".") for x in points.ravel().tolist()]
    text = "\\".join(numbers).encode("ascii")
    text += b" " * (len(text) % 2)
    contour = item(
        ContourImageSequence=[_image(piece, source)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourNumber=number,
    )
    # As text that is said to be encoded already it is written at once; pydicom would take minutes
    # to check each number of a large scan.
    contour.set_original_encoding(True, True, default_encoding)
    contour[_CONTOUR_DATA] = RawDataElement(_CONTOUR_DATA, "DS", len(text), text, 0, True, True)
    return contour


def _image(piece: Slice, source: SourceSeries) -> Dataset:
    reference = source.references[piece.sop_uid]
    image = item(
        ReferencedSOPClassUID=reference.SOPClassUID, ReferencedSOPInstanceUID=piece.sop_uid
    )
    if piece.frame is not None:
        image.ReferencedFrameNumber = piece.frame + 1
    return image


def outlines(mask: Bool[np.ndarray, "row column"]) -> list[Int[np.ndarray, "n 2"]]:
    """Return a closed polygon per 4-connected part of a mask, without its last corner again.

    Corners are `[n, 2]` (row, column) in pixel edges: the first pixel's center is (0.5, 0.5).
    """
    rings = _rings(_edges(mask))
    outer = [ring for ring in rings if _turns_right(ring)]
    holes = [_from_left(ring) for ring in rings if not _turns_right(ring)]
    ring_at = {corner: number for number, ring in enumerate(outer) for corner in ring}
    for hole in sorted(holes, key=lambda ring: ring[0][1]):
        row, column = hole[0]
        # A hole's leftmost corner has mask on its left: going there, the first corner of an
        # outline met is of the same part, its outer one or a hole further left, joined already.
        column -= 1
        while (row, column) not in ring_at:
            column -= 1
        number = ring_at[row, column]
        at = outer[number].index((row, column))
        outer[number][at:at] = [(row, column), *hole, hole[0]]
        ring_at.update((corner, number) for corner in hole)
    return [_without_straight(np.array(ring)) for ring in outer]


def _edges(mask: Bool[np.ndarray, "row column"]) -> dict[Corner, list[Corner]]:
    """Return the edges between mask and background by the corner that they leave, one or two."""
    padded = np.pad(np.asarray(mask, np.bool_), 1)
    inside, above, left = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]
    edges: dict[Corner, list[Corner]] = {}
    for where, leave, arrive in (
        (inside & ~above, (0, 0), (0, 1)),
        (~inside & above, (0, 1), (0, 0)),
        (inside & ~left, (1, 0), (0, 0)),
        (~inside & left, (0, 0), (1, 0)),
    ):
        pixels = np.argwhere(where)
        starts, ends = (map(tuple, (pixels + step).tolist()) for step in (leave, arrive))
        for start, end in zip(starts, ends, strict=True):
            edges.setdefault(start, []).append(end)
    return edges


def _rings(edges: dict[Corner, list[Corner]]) -> list[list[Corner]]:
    """Return the closed walks along all edges, every unit step a corner; uses up the edges."""
    rings = []
    for start, leaving in edges.items():
        while leaving:
            ring, corner = [start], leaving.pop(0)
            while True:
                before = ring[-1]
                # Where two parts of the mask touch, turning right stays with one's own.
                right = (corner[0] + corner[1] - before[1], corner[1] - corner[0] + before[0])
                if corner == start and (right == ring[1] or not leaving):
                    break
                ring.append(corner)
                ends = edges[corner]
                corner = ends.pop(ends.index(right) if right in ends else 0)
            rings.append(ring)
    return rings


def _turns_right(ring: list[Corner]) -> bool:
    """Tell whether a ring goes around its part of the mask, not around a hole in it."""
    row, column = np.array(ring).T
    return bool(np.sum(np.roll(row, -1) * column - row * np.roll(column, -1)) > 0)


def _from_left(ring: list[Corner]) -> list[Corner]:
    """Return a ring from its leftmost corner on, the uppermost of these."""
    start = min(range(len(ring)), key=lambda n: (ring[n][1], ring[n][0]))
    return ring[start:] + ring[:start]


def _without_straight(ring: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "corner 2"]:
    """Return a polygon without the corners at which it goes straight on."""
    arriving = np.sign(ring - np.roll(ring, 1, axis=0))
    leaving = np.roll(arriving, -1, axis=0)
    return np.asarray(ring[(arriving != leaving).any(axis=1)])
