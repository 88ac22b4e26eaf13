"""DICOM SEG: write a label map that opens on its source series, and read one."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pydicom
from highdicom import AlgorithmIdentificationSequence, PlanePositionSequence, seg
from highdicom.color import CIELabColor
from jaxtyping import Int, Shaped
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from sacl import __version__
from sacl.dicom.files import DAMAGE, Source
from sacl.dicom.header import quiet
from sacl.dicom.result import (
    Planes,
    SourceSeries,
    category_of,
    decimal_strings,
    organ_code,
    rgb,
    source_images,
    write_result,
)
from sacl.dicom.slices import Slice, slices_in
from sacl.dicom.stack import OFF_GRID, grid_of
from sacl.errors import DataError
from sacl.geometry import describe
from sacl.organs import readable
from sacl.types import Grid, LabelMap, LabelScheme

_SERIES_NUMBER = 9100
"""Of the new series; high, so that viewers list it after the scanner's own."""
_UNKNOWN = np.iinfo(np.uint16).max
"""Stands for a pixel value that no segment describes."""
Kind = Literal["BINARY", "LABELMAP"]
"""How a segmentation whose pixels are in a segment or not, unlike FRACTIONAL ones, is stored.

BINARY has bits per organ and slice, for any viewer; LABELMAP run-length coded values per slice,
smaller, for viewers of 2025 and later.
"""


def write_segmentation(
    path: Path,
    label_map: LabelMap,
    source: Sequence[Dataset],
    run: str,
    kind: Kind = "BINARY",
    made_by: str = "",
) -> tuple[str, ...]:
    """Write a label map as DICOM SEG, with the arguments and errors of `result.write_result`.

    Every organ of the scheme is described, so that one without voxels is told from one that was not
    looked for. A map without any voxel is written too: as LABELMAP with frames of background, as
    BINARY with an empty frame per organ at the first slice.
    """
    build = functools.partial(_segmentation, kind)
    return write_result(path, label_map, source, run, build, made_by)


def read_segmentation(path: Path, grid: Grid) -> LabelMap:
    """Read a DICOM SEG of disjoint segments as a label map on the canonical grid of its scan.

    Refused where it is damaged or not of the type BINARY or LABELMAP, two segments overlap, or a
    frame does not lie on the grid's voxels.
    """
    with _one_line(path):
        dataset = pydicom.dcmread(path)
        segments = _segments(dataset)
        scheme = LabelScheme(path.stem, tuple(segments.values()))
        label_map = LabelMap(np.zeros(grid.shape, scheme.label_type), grid, scheme)
        frames = list(slices_in(dataset, Source(Path())))
        image = seg.Segmentation.from_dataset(dataset, copy=False)
        labels_of = _labels(dataset, tuple(segments))
        for number, (frame, labels) in enumerate(zip(frames, labels_of, strict=True), start=1):
            _add(label_map, labels[image.get_stored_frame(number)], _to_voxel(frame, grid))
        return label_map


def segment_names(path: Path) -> tuple[str, ...]:
    """Return the organs of a DICOM SEG by the number of their segment; pixels are not read."""
    with _one_line(path):
        return tuple(_segments(pydicom.dcmread(path, stop_before_pixels=True)).values())


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what reading a missing, locked or damaged file raises into one line with its name."""
    try:
        with quiet():
            yield
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path.name}: no such file") from error
    except PermissionError as error:
        raise DataError(f"{path.name}: no permission to read it") from error
    except DAMAGE as error:
        raise DataError(
            f"{path.name}: not a readable DICOM segmentation ({type(error).__name__}); export or"
            " copy it again"
        ) from error


def _segmentation(
    kind: Kind, slices: Planes, names: Sequence[str], source: SourceSeries, title: str
) -> seg.Segmentation:
    images, order = source_images(source)
    pixels = slices[order].astype(np.uint8 if len(names) < 256 else np.uint16)
    places, is_labelmap, is_empty = None, kind == "LABELMAP", not pixels.any()
    if is_empty and not is_labelmap:
        pixels = pixels[:1]
        place = decimal_strings(source.stack.slices[order[0]].position_mm or ())
        places = [PlanePositionSequence("PATIENT", place)]
    try:
        segmentation = seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            plane_positions=places,
            segmentation_type=seg.SegmentationTypeValues[kind],
            segment_descriptions=_descriptions(names),
            series_instance_uid=generate_uid(None),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=generate_uid(None),
            instance_number=1,
            manufacturer="sacl",
            manufacturer_model_name="sacl",
            software_versions=__version__,
            device_serial_number="none",
            transfer_syntax_uid=RLELossless if is_labelmap else ExplicitVRLittleEndian,
            omit_empty_frames=not (is_labelmap or is_empty),
            content_label="SACL",
            content_description=title,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"source series: no segmentation can refer to its images ({type(error).__name__}:"
            f" {error}); export the series again"
        ) from error
    # highdicom takes the distance from the planes it gets, and 1 mm where that is one.
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.pop("SpacingBetweenSlices", None)
    if source.distance_mm is not None:
        (measures.SpacingBetweenSlices,) = decimal_strings([source.distance_mm])
    return segmentation


def _descriptions(names: Sequence[str]) -> list[seg.SegmentDescription]:
    algorithm = AlgorithmIdentificationSequence(
        name="sacl", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    descriptions = []
    for number, organ in enumerate(names, start=1):
        description = seg.SegmentDescription(
            segment_number=number,
            segment_label=readable(organ),
            segmented_property_category=category_of(organ),
            segmented_property_type=organ_code(organ),
            algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=CIELabColor.from_rgb(*rgb(number)),
        )
        description.SegmentDescription = organ
        descriptions.append(description)
    return descriptions


def _segments(dataset: Dataset) -> dict[int, str]:
    """Return the organs by the number of their segment, without the background of a label map.

    The name is the segment's label; its description where the label is the readable form of that.
    """
    kind = str(dataset.get("SegmentationType"))
    if "SegmentSequence" not in dataset or kind not in get_args(Kind):
        what = "no DICOM segmentation" if "SegmentSequence" not in dataset else f"a {kind} one"
        raise DataError(f"{what}; give a segmentation of type BINARY or LABELMAP")
    segments = {}
    for segment in sorted(dataset.SegmentSequence, key=lambda item: int(item.SegmentNumber)):
        label, name = str(segment.SegmentLabel), str(segment.get("SegmentDescription") or "")
        if segment.SegmentNumber > 0:
            segments[int(segment.SegmentNumber)] = name if readable(name) == label else label
    return segments


def _to_voxel(frame: Slice, grid: Grid) -> Int[np.ndarray, "3 3"]:
    """Return the matrix from a frame's (column, row, 1) to the grid's (i, j, k), or refuse it."""
    if None in (frame.position_mm, frame.orientation, frame.spacing_mm):
        raise DataError("a frame lacks its position, orientation or pixel spacing")
    normal = np.cross(*np.reshape(frame.orientation or (), (2, 3)))
    own = grid_of(frame, np.array(frame.position_mm), normal, 1)
    exact = (np.linalg.inv(grid.affine) @ own.affine)[:3, [0, 1, 3]]
    to_voxel = np.rint(exact)
    columns, rows, _ = own.shape
    corners = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1], [1] * 4])
    if np.abs((exact - to_voxel) @ corners).max() > OFF_GRID:
        raise DataError(
            f"a frame of {describe(own)} does not lie on the scan's voxels, {describe(grid)}; give"
            " the segmentation of this scan, or resample it"
        )
    return to_voxel.astype(int)


def _labels(dataset: Dataset, segments: Sequence[int]) -> Iterator[Shaped[np.ndarray, " value"]]:
    """Yield for each frame the label of every value that its pixels can have."""
    labels = np.full(max(segments) + 1, _UNKNOWN, np.uint16)
    labels[0] = 0
    labels[list(segments)] = np.arange(1, len(segments) + 1)
    if dataset.SegmentationType == "LABELMAP":
        yield from itertools.repeat(labels, len(dataset.PerFrameFunctionalGroupsSequence))
        return
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        group = frame if "SegmentIdentificationSequence" in frame else shared
        (segment,) = group.SegmentIdentificationSequence
        yield np.array([0, labels[int(segment.ReferencedSegmentNumber)]])


def _add(
    label_map: LabelMap, labels: Shaped[np.ndarray, "row column"], to_voxel: Int[np.ndarray, "3 3"]
) -> None:
    """Put a frame's labels into a label map, where the matrix from (column, row, 1) leads."""
    rows, columns = np.nonzero(labels)
    values = labels[rows, columns]
    names = label_map.scheme.names
    if values.max(initial=0) > len(names):
        raise DataError("it has pixels of a segment that it does not describe")
    voxel = to_voxel @ np.stack([columns, rows, np.ones_like(rows)])
    if (voxel < 0).any() or (voxel.max(axis=1, initial=0) >= label_map.grid.shape).any():
        raise DataError("organs reach beyond the scan; give the segmentation of this scan")
    there = label_map.voxels[tuple(voxel)]
    if there.any():
        first, second = names[there[there > 0][0] - 1], names[values[there > 0][0] - 1]
        raise DataError(
            f"{np.count_nonzero(there)} voxels of a slice are in both {first} and {second}; a label"
            " map holds one organ per voxel, export segments that do not overlap"
        )
    label_map.voxels[tuple(voxel)] = values
