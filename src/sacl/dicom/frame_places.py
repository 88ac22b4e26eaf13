"""Which slice of its series each frame of a DICOM SEG lies on; frames may be missing or repeat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset

from sacl.dicom.stack import Plane, fit_step, grid_of, require_parallel
from sacl.errors import DataError
from sacl.types import Grid


def frame_places(dataset: Dataset, planes: Sequence[Plane], where: str) -> tuple[np.ndarray, Grid]:
    """Return the slice of every frame, `[n]`, and the grid `[column, row, slice]` of all slices.

    A segmentation leaves out slices without an organ. Where every frame refers to one image of the
    listed series, and the list is in the order of space, the grid has a slice for each image of
    it. Else it reaches from the first frame to the last.

    Raises:
        DataError: the frames are not parallel or lie at irregular distances.
    """
    require_parallel(planes, where)
    positions = np.array([plane.position_mm for plane in planes])
    first = planes[0]
    alone = first.normal * (first.distance_mm or first.thickness_mm)
    images, index = _images_referred_to(dataset)
    if index is not None and (first.distance_mm or len(set(index)) > 1):
        step = fit_step(index, positions, alone)
        if step is not None:
            return index, grid_of(first, positions[0] - index[0] * step, step, images)
    height = positions @ first.normal
    height -= height.min()
    for distance in (first.distance_mm, _smallest_gap(height)):
        if not distance:
            continue
        index = np.rint(height / distance).astype(np.intp)
        step = fit_step(index, positions, alone)
        if step is not None:
            start = positions[int(index.argmin())]
            return index, grid_of(first, start, step, int(index.max()) + 1)
    raise DataError(f"{where}: its frames lie at irregular distances; resample the segmentation")


def _images_referred_to(dataset: Dataset) -> tuple[int, np.ndarray | None]:
    """Return how many images the series has, and which of them each frame was drawn on.

    None where a frame does not refer to exactly one of them, or they are frames of one image.
    """
    series = dataset.get("ReferencedSeriesSequence") or []
    listed = [
        str(image.ReferencedSOPInstanceUID)
        for item in series
        for image in item.get("ReferencedInstanceSequence") or []
    ]
    number_of = {uid: n for n, uid in enumerate(listed)}
    index = []
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        drawn_on = [
            number_of.get(str(image.ReferencedSOPInstanceUID))
            for derivation in frame.get("DerivationImageSequence") or []
            for image in derivation.get("SourceImageSequence") or []
        ]
        if len(drawn_on) != 1 or drawn_on[0] is None:
            return 0, None
        index.append(drawn_on[0])
    if len(series) != 1 or len(listed) == 1:
        return 0, None
    return len(listed), np.array(index, np.intp)


def _smallest_gap(height: np.ndarray) -> float:
    """Return the smallest distance between different heights in mm; 1 where all are one."""
    gaps = np.diff(np.unique(height.round(3)))
    return float(gaps[gaps > 0.01].min(initial=np.inf)) if (gaps > 0.01).any() else 1.0
