"""DICOM SEG: write a label map that opens on its source series, and read one."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from highdicom import AlgorithmIdentificationSequence, PlanePositionSequence
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from sacl import __version__
from sacl.dicom.coding import (
    CATEGORY,
    cielab,
    organ_code,
    private_scheme,
    require_names,
    title_of,
)
from sacl.dicom.files import DAMAGE
from sacl.dicom.frame_places import frame_places
from sacl.dicom.header import copy_patient_and_study, new_uid
from sacl.dicom.segment_frames import labels_of, pixels_of, scheme_of
from sacl.dicom.source_images import decimal_strings, source_images
from sacl.dicom.stack import Stack, planes_of, slices_of, stack_of
from sacl.dicom.values import quiet
from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.geometry import require_same_grid, to_canonical
from sacl.types import Grid, LabelMap, LabelScheme

SERIES_NUMBER = 9100
"""Of the new series; high, so that viewers list it after the scanner's own."""


class Kind(enum.Enum):
    """How a segmentation is stored.

    BINARY has a frame of single bits per organ and slice that it is in, uncompressed: any viewer
    that knows segmentations reads it. LABELMAP has one frame per slice with all organs, losslessly
    run-length coded: smaller, and for viewers of 2025 and later.
    """

    BINARY = "binary"
    LABELMAP = "labelmap"


def write_segmentation(
    path: Path,
    label_map: LabelMap,
    source: Sequence[Dataset],
    run: str,
    kind: Kind = Kind.BINARY,
) -> tuple[str, ...]:
    """Write a label map as DICOM SEG on the frames of its source series, whole or not at all.

    Every organ of the scheme is described, in its order, so that an organ without voxels is told
    from one that nobody looked for; it has no frame. A map without any voxel is written too: as
    LABELMAP with frames of background, as BINARY with an empty frame per organ at the first slice.

    Args:
        path: The file.
        label_map: On the canonical grid of the source.
        source: Datasets of the source series, in any order; pixels are not needed.
        run: Name of the run; the series is called "sacl RUN".
        kind: How it is stored.

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
        try:
            segmentation = _segmentation(slices, names, stack, title, kind)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"source series: no segmentation can refer to its images ({type(error).__name__}:"
                f" {error}); export the series again"
            ) from error
        copy_patient_and_study(stack.patient, segmentation, (title, *names))
        with replacing(path) as temporary:
            segmentation.save_as(temporary, enforce_file_format=True)
    return stack.made_up


def _segmentation(
    slices: np.ndarray, names: Sequence[str], stack: Stack, title: str, kind: Kind
) -> Segmentation:
    images, order = source_images(stack)
    pixels = slices[order].astype(np.uint8 if len(names) < 256 else np.uint16)
    positions = None
    is_labelmap = kind is Kind.LABELMAP
    if not is_labelmap and not pixels.any():
        pixels = pixels[:1]
        place = decimal_strings(stack.planes[order[0]].position_mm)
        positions = [PlanePositionSequence("PATIENT", place)]
    segmentation = Segmentation(
        source_images=images,
        pixel_array=pixels,
        plane_positions=positions,
        segmentation_type=SegmentationTypeValues[kind.name],
        segment_descriptions=_descriptions(names),
        series_instance_uid=new_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=new_uid(),
        instance_number=1,
        manufacturer="sacl",
        manufacturer_model_name="sacl",
        software_versions=__version__,
        device_serial_number="none",
        transfer_syntax_uid=RLELossless if is_labelmap else ExplicitVRLittleEndian,
        omit_empty_frames=not is_labelmap,
        content_label="SACL",
        content_description=title,
        series_description=title,
    )
    segmentation.CodingSchemeIdentificationSequence = [private_scheme()]
    # highdicom takes the distance from the planes it gets, and 1 mm where that is one.
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.pop("SpacingBetweenSlices", None)
    if stack.distance_mm is not None:
        (measures.SpacingBetweenSlices,) = decimal_strings([stack.distance_mm])
    return segmentation


def _descriptions(names: Sequence[str]) -> list[SegmentDescription]:
    algorithm = AlgorithmIdentificationSequence(
        name="sacl", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=organ,
            segmented_property_category=CATEGORY,
            segmented_property_type=organ_code(organ),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=cielab(number),
        )
        for number, organ in enumerate(names, start=1)
    ]


def read_segmentation(path: Path, grid: Grid | None = None) -> LabelMap:
    """Read a DICOM SEG of disjoint segments as a label map in canonical orientation.

    The organs are the segments by number, under their segment labels. The map lies on the given
    grid. Without one it lies on all slices of the series that the segmentation refers to, as far
    as the file tells where they are; else on those from its first frame to its last.

    Args:
        path: A file with SegmentationType BINARY or LABELMAP.
        grid: Canonical grid of the scan; its voxels have to be the segmentation's.

    Raises:
        DataError: the file is damaged or another kind of DICOM, two segments overlap, or a voxel
            in an organ is none of the grid.
    """
    with quiet():
        try:
            dataset = pydicom.dcmread(path)
            scheme = scheme_of(dataset, path.name)
            planes = planes_of(dataset, Dataset())
            index, native = frame_places(dataset, planes, path.name)
            voxels = np.zeros(native.shape, np.uint8 if len(scheme.names) < 256 else np.uint16)
            frames = zip(pixels_of(dataset), labels_of(dataset), index, strict=True)
            for pixels, labels, k in frames:
                _add(labels[pixels], voxels[:, :, k].T, scheme, path.name)
        except FileNotFoundError as error:
            raise DataError(f"{path.name}: no such file") from error
        except DAMAGE as error:
            raise DataError(
                f"{path.name}: not a readable DICOM segmentation ({type(error).__name__}); export"
                " or copy it again"
            ) from error
    if grid is not None:
        # Slices before and after the frames are empty, and their place is only inferred.
        start, stop = int(index.min()), int(index.max()) + 1
        voxels, native = voxels[:, :, start:stop], _between(native, start, stop)
    if grid is None:
        canonical, own = to_canonical(voxels, native)
        return LabelMap(np.ascontiguousarray(canonical), own, scheme)
    # Axes are turned to those of the grid, not to the nearest ones of the world: at 45 degrees
    # rounding decides which these are, and it may decide otherwise here than for the scan.
    seen = Grid(native.shape, np.linalg.inv(grid.affine) @ native.affine)
    turned, relative = to_canonical(voxels, seen)
    own = Grid(relative.shape, grid.affine @ relative.affine)
    return LabelMap(_onto(turned, own, grid, path.name), grid, scheme)


def _between(native: Grid, start: int, stop: int) -> Grid:
    """Return the grid of some of the slices of a grid."""
    affine = native.affine.copy()
    affine[:3, 3] += start * affine[:3, 2]
    return Grid((*native.shape[:2], stop - start), affine)


def _add(found: np.ndarray, there: np.ndarray, scheme: LabelScheme, where: str) -> None:
    """Put the labels of a frame to those that are there on its slice, both `[row, column]`.

    Raises:
        DataError: a voxel would belong to two organs, or to one that is not described.
    """
    inside = found > 0
    names = scheme.names
    if found.max() > len(names):
        raise DataError(f"{where}: it has pixels of a segment that it does not describe")
    taken = there[inside]
    if taken.any():
        count = np.count_nonzero(taken)
        first, second = names[taken[taken > 0][0] - 1], names[found[inside][taken > 0][0] - 1]
        raise DataError(
            f"{where}: {count} voxels of a slice are in both {first} and {second}; a label map"
            " holds one organ per voxel, export segments that do not overlap"
        )
    there[inside] = found[inside]


def _onto(voxels: np.ndarray, own: Grid, grid: Grid, where: str) -> np.ndarray:
    """Return voxels on a grid with the same voxels that may reach further or less far.

    Raises:
        DataError: the grids do not share their voxels, or an organ reaches beyond the grid.
    """
    start = np.rint((np.linalg.inv(grid.affine) @ own.affine)[:3, 3]).astype(int)
    shifted = grid.affine.copy()
    shifted[:3, 3] = (grid.affine @ [*start, 1])[:3]
    remedy = "give the segmentation of this scan, or resample it"
    require_same_grid(Grid(own.shape, shifted), own, where, remedy)
    target = np.zeros(grid.shape, voxels.dtype)
    low = np.maximum(start, 0)
    high = np.minimum(start + own.shape, grid.shape)
    inside = tuple(slice(a, max(a, b)) for a, b in zip(low - start, high - start, strict=True))
    target[tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))] = voxels[inside]
    if np.count_nonzero(target) < np.count_nonzero(voxels):
        raise DataError(
            f"{where}: organs reach beyond the scan; give the segmentation of this scan"
        )
    return target
