"""The frames of a DICOM SEG: their pixels, and which organ each value of a pixel means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.pixels.utils import iter_pixels

from sacl.errors import DataError
from sacl.types import LabelScheme

_KINDS = ("BINARY", "LABELMAP")
"""SegmentationType of those whose pixels are in a segment or not; FRACTIONAL ones are in part."""
_UNKNOWN = np.iinfo(np.uint16).max
"""Stands for a pixel value that no segment describes."""


def scheme_of(dataset: Dataset, where: str) -> LabelScheme:
    """Return the segments' labels by segment number, without the background of a label map.

    Raises:
        DataError: this is no segmentation, or one whose voxels are no plain membership.
    """
    kind = str(dataset.get("SegmentationType"))
    if "SegmentSequence" not in dataset or kind not in _KINDS:
        found = "no DICOM segmentation" if "SegmentSequence" not in dataset else f"a {kind} one"
        raise DataError(f"{where}: {found}; give a segmentation of type BINARY or LABELMAP")
    names = tuple(label for _, label in _described(dataset))
    try:
        return LabelScheme(Path(where).stem, names)
    except DataError as error:
        raise DataError(f"{where}: its segments do not name organs ({error})") from error


def _described(dataset: Dataset) -> list[tuple[int, str]]:
    """Return the organs' segments, number and label, in the order of their numbers."""
    segments = ((int(item.SegmentNumber), item) for item in dataset.SegmentSequence)
    return sorted((n, str(item.SegmentLabel)) for n, item in segments if n > 0)


def pixels_of(dataset: Dataset) -> Iterator[np.ndarray]:
    """Yield the pixels of each frame, `[row, column]`."""
    if dataset.BitsAllocated > 1 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from iter_pixels(dataset)
        return
    # pydicom iterates over single bits only where a frame ends with a byte.
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    size = dataset.Rows * dataset.Columns
    for start in range(0, size * int(dataset.NumberOfFrames), size):
        bits = np.unpackbits(packed[start // 8 : -(-(start + size) // 8)], bitorder="little")
        yield bits[start % 8 :][:size].reshape(dataset.Rows, dataset.Columns)


def labels_of(dataset: Dataset) -> Iterator[np.ndarray]:
    """Yield for each frame the label of every value that its pixels can have, `[value]`."""
    numbers = [number for number, _ in _described(dataset)]
    labels = np.full(max(numbers) + 1, _UNKNOWN, np.uint16)
    labels[0] = 0
    labels[numbers] = np.arange(1, len(numbers) + 1)
    (shared,) = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        if dataset.SegmentationType == "LABELMAP":
            yield labels
            continue
        group = frame if "SegmentIdentificationSequence" in frame else shared
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        yield np.array([0, labels[number]])
