"""Read one found case and measure it; whatever cannot be read becomes a finding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sacl.check.findings import Finding
from sacl.check.scan_facts import (
    Geometry,
    Intensities,
    OrganFacts,
    Reference,
    ScanFacts,
    digest_of,
    measure_geometry,
    measure_image,
    measure_labels,
)
from sacl.cohort.dataset import Dataset, SourceCase
from sacl.errors import SaclError
from sacl.files.nifti import read_frame, read_labels, read_volume
from sacl.geometry import describe, same_grid
from sacl.organs import canonical_name
from sacl.types import Grid

_UNREADABLE = (SaclError, OSError, ValueError, MemoryError)
_HIGHEST_LABEL = 65535


class _Fault(Exception):
    """A reference that cannot be measured, as the finding that says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def measure_case(case: SourceCase, found: Dataset) -> ScanFacts:
    """Return the facts of a case; one image or one label map is in memory at a time."""
    problems: list[Finding] = []
    geometry, image, grid = _measure_image(case, problems)
    reference = None
    if case.has_reference:
        try:
            reference = _measure_reference(case, found, grid)
        except _Fault as fault:
            problems.append(fault.finding)
    return ScanFacts(
        case_id=case.case_id,
        subject_id=case.subject,
        split=case.split,
        geometry=geometry,
        image=image,
        reference=reference,
        scan_labels=case.scan_labels,
        modality=case.modality,
        has_reference=case.has_reference,
        problems=tuple(problems),
    )


def organ_names(case: SourceCase, found: Dataset) -> dict[int, str]:
    """Return the organs by label value of a case's label map, in this project's spelling."""
    table = found.organs if case.organs is None else case.organs
    return {value: canonical_name(name) for value, name in table.items()}


def all_organs(found: Dataset) -> tuple[str, ...]:
    """Return every organ that a dataset or one of its cases names, in this project's spelling."""
    names: dict[str, None] = {}
    for case in found.cases:
        names |= dict.fromkeys(organ_names(case, found).values())
        names |= dict.fromkeys(map(canonical_name, case.masks))
    return tuple(names)


def _measure_image(
    case: SourceCase, problems: list[Finding]
) -> tuple[Geometry | None, Intensities | None, Grid | None]:
    """Measure the image; where its voxels cannot be read, its header alone."""
    try:
        volume, frame = case.load() if case.load else read_volume(case.image)
    except _UNREADABLE as error:
        problems.append(Finding("unreadable", case.case_id, _reason(error)))
    else:
        return measure_geometry(frame), measure_image(volume.voxels), volume.grid
    if case.load is None:
        try:
            return measure_geometry(read_frame(case.image)), None, None
        except _UNREADABLE:
            return None, None, None
    return None, None, None


def _measure_reference(case: SourceCase, found: Dataset, grid: Grid | None) -> Reference:
    names = organ_names(case, found)
    if case.reference is not None:
        ignore = found.ignore if case.ignore is None else case.ignore
        present, digest = _of_label_map(case, case.reference, names, grid, ignore)
        known = tuple(names.values())
    else:
        present, digest = _of_masks(case, grid)
        known = tuple(map(canonical_name, case.masks))
    annotated = known if case.annotated is None else tuple(map(canonical_name, case.annotated))
    return Reference(annotated, present, digest)


def _of_label_map(
    case: SourceCase,
    path: Path,
    names: Mapping[int, str],
    grid: Grid | None,
    ignore: int | None,
) -> tuple[dict[str, OrganFacts], str]:
    voxels, own = next(_on_grid(case, {"": path}, grid))[1:]
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high > _HIGHEST_LABEL:
        message = f"values {low} to {high}, expected {sorted(names)}"
        raise _Fault(Finding("label-values", case.case_id, message))
    present, strange = measure_labels(voxels, own, names)
    if ignore in strange:
        message = f"voxels of the value {ignore}, 'ignore'"
        raise _Fault(Finding("ignored-voxels", case.case_id, message))
    if strange:
        message = f"values {strange[:10]} in {path.name}, expected {sorted(names)}"
        raise _Fault(Finding("label-values", case.case_id, message))
    return present, digest_of(voxels)


def _of_masks(case: SourceCase, grid: Grid | None) -> tuple[dict[str, OrganFacts], str]:
    present: dict[str, OrganFacts] = {}
    digest = hashlib.blake2b(digest_size=16)
    for name, voxels, own in _on_grid(case, case.masks, grid):
        mask = (voxels != 0).astype(np.uint8)
        value = voxels.max() or voxels.min()
        if bool(((voxels != 0) & (voxels != value)).any()):
            message = f"{case.masks[name].name} has several values besides 0, expected a mask"
            raise _Fault(Finding("label-values", case.case_id, message))
        present |= measure_labels(mask, own, {1: canonical_name(name)})[0]
        digest.update(f"{name} {digest_of(mask)}".encode())
    return present, digest.hexdigest()


def _on_grid(
    case: SourceCase, files: Mapping[str, Path], grid: Grid | None
) -> Iterator[tuple[str, np.ndarray, Grid]]:
    """Yield the voxels of each label file, one at a time, refusing another grid than the image's.

    Raises:
        _Fault: a file cannot be read, or lies elsewhere.
    """
    for name, path in files.items():
        try:
            voxels, own, _ = read_labels(path)
        except _UNREADABLE as error:
            raise _Fault(Finding("label-unreadable", case.case_id, _reason(error))) from error
        if grid is not None and not same_grid(grid, own):
            message = f"{path.name}: {describe(own)}, expected the image's {describe(grid)}"
            raise _Fault(Finding("label-grid", case.case_id, message))
        yield name, voxels, own


def _reason(error: BaseException) -> str:
    """Return an error as one line; of what is not ours only the kind, which names no path."""
    if isinstance(error, SaclError):
        return " ".join(str(error).split())
    return f"reading failed with {type(error).__name__}"
