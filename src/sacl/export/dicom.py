"""Results as DICOM, to go back to where the scan came from: segmentations and structure sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sacl.dicom.rtstruct import write_rtstruct
from sacl.dicom.segmentation import Kind, write_segmentation
from sacl.errors import DataError
from sacl.export.form import Result
from sacl.progress import say
from sacl.types import LabelMap


def write_binary_segmentation(result: Result, path: Path) -> None:
    """Write a DICOM SEG with a frame of bits per organ and slice, which any viewer reads."""
    _write(result, path, write_segmentation)


def write_labelmap_segmentation(result: Result, path: Path) -> None:
    """Write a DICOM SEG with a frame of label values per slice, which is smaller."""

    def write(path: Path, label_map: LabelMap, source: Sequence[Any], run: str) -> tuple[str, ...]:
        return write_segmentation(path, label_map, source, run, Kind.LABELMAP)

    _write(result, path, write)


def write_structures(result: Result, path: Path) -> None:
    """Write an RTSTRUCT with closed planar contours."""
    _write(result, path, write_rtstruct)


def _write(
    result: Result,
    path: Path,
    write: Callable[[Path, LabelMap, Sequence[Any], str], tuple[str, ...]],
) -> None:
    """Write a result, and tell what its source lacks.

    Raises:
        DataError: the scan's images are not found, or the result is none of them.
    """
    assert result.source is not None
    source = result.source()
    try:
        made_up = write(path, result.label_map, source, result.run)
    except DataError as error:
        raise DataError(f"case {result.case_id}: {error}") from error
    if made_up:
        say(
            f"export: case {result.case_id}: its images have no {' and no '.join(made_up)}; the"
            " result has new ones, and viewers will not match it to the images without them"
        )
