"""Read a scan's reference, a label map or a mask per organ, in the cohort's scheme and grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sacl.cohort.annotation import label_of_value
from sacl.cohort.layouts.found import Found, FoundCase, naming_case
from sacl.cohort.overlap import Overlap, merge_masks, organ_mask
from sacl.errors import DataError
from sacl.files.nifti import read_labels
from sacl.files.voxel_values import distinct_values, relabeled
from sacl.geometry import repaired, require_same_grid, resample_nearest, same_grid
from sacl.organs import match
from sacl.types import Grid, LabelMap, LabelScheme

_WORTH_SAYING = 0.0005
"""Share of an image outside of its label map from which on it is told."""
_REMEDY = "resample the label map onto the image's grid, which `--ingest.repair_grid nearest` does"


@dataclass(frozen=True)
class ReferenceRules:
    """How references are read: the organs, who wins where masks overlap, whether to resample."""

    scheme: LabelScheme
    overlap: Overlap
    repairs_grid: bool


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference on its image's grid, with what had to be decided on the way.

    `contested` are the voxels that masks of two organs claim; `repair` says how the map's own grid
    differed and what resampling did to its volume, empty where it lies on the image's grid.
    """

    label_map: LabelMap
    contested: Mapping[tuple[str, str], int] = field(default_factory=dict)
    repair: str = ""


def read_reference(
    found: Found, case: FoundCase, annotated: tuple[str, ...], grid: Grid, rules: ReferenceRules
) -> Reference:
    """Read what is annotated of a case, by label values of the cohort's scheme.

    Raises:
        DataError: it lies on another grid than the image, has values that the source does not name,
            voxels to be ignored, or masks that overlap and may not; or a label map of a training
            scan is nothing but background.
    """
    with naming_case(case):
        if case.masks:
            return _from_masks(case, annotated, grid, rules)
        return _from_label_map(found, case, annotated, grid, rules)


def _from_label_map(
    found: Found, case: FoundCase, annotated: tuple[str, ...], grid: Grid, rules: ReferenceRules
) -> Reference:
    assert case.reference is not None, "the case has a reference"
    voxels, own_grid, _ = read_labels(case.reference)
    label_of = label_of_value(found, case, rules.scheme, annotated)
    ignore = found.ignore if case.ignore is None else case.ignore
    values = distinct_values(voxels)
    _require_known(case, values, label_of, ignore)
    voxels, repair = _on_grid(voxels, own_grid, grid, f"case {case.case_id}", rules)
    table = np.zeros(max(values) + 1, rules.scheme.label_type)
    for value in values:
        table[value] = label_of.get(value, 0)
    return Reference(LabelMap(relabeled(voxels, table), grid, rules.scheme), repair=repair)


def _require_known(
    case: FoundCase, values: set[int], label_of: Mapping[int, int], ignore: int | None
) -> None:
    if ignore in values:
        raise DataError(
            f"case {case.case_id}: its label map has voxels of the value {ignore}, 'ignore';"
            " complete the annotation, or remove this label map so that the scan counts as"
            " unlabeled"
        )
    strange = sorted(values - set(label_of) - {0})
    if strange:
        raise DataError(
            f"case {case.case_id}: label values {strange[:10]} outside the dataset's scheme, which"
            f" has {sorted(label_of)}; correct the label map or the scheme"
        )
    if case.split == "train" and values <= {0}:
        raise DataError(
            f"case {case.case_id}: empty label map, every voxel is background; correct it, or"
            " remove it so that the scan counts as unlabeled"
        )


def _from_masks(
    case: FoundCase, annotated: tuple[str, ...], grid: Grid, rules: ReferenceRules
) -> Reference:
    """Lay an organ's masks together, then those of all organs; other masks are not even read."""
    target = match(list(case.masks), annotated)
    masks, repairs = [], []
    for organ in annotated:
        inside = np.zeros(grid.shape, np.bool_, order="F")
        for name in (name for name in case.masks if target.get(name) == organ):
            where = f"case {case.case_id}, mask {name}"
            voxels, own_grid = _read_mask(case.masks[name], where)
            voxels, repair = _on_grid(voxels, own_grid, grid, where, rules)
            inside |= voxels
            repairs += [f"{name}: {repair}"] if repair else []
        masks.append(organ_mask(organ, inside))
    labels = [rules.scheme.label_of(organ) for organ in annotated]
    voxels, contested = merge_masks(masks, labels, grid.shape, rules.overlap)
    if contested and rules.overlap == "error":
        (a, b), count = next(iter(contested.items()))
        raise DataError(
            f"case {case.case_id}: the masks of {a} and {b} overlap in {count} voxels"
            f" ({len(contested)} such pairs); correct them, or let the smaller or the first organ"
            " win with --ingest.overlap smaller or first"
        )
    label_map = LabelMap(voxels.astype(rules.scheme.label_type, copy=False), grid, rules.scheme)
    return Reference(label_map, contested, "; ".join(repairs))


def _read_mask(path: Path, where: str) -> tuple[np.ndarray, Grid]:
    """Return a binary mask, bool `[i, j, k]`, and its grid.

    Raises:
        DataError: it has more than one value besides 0.
    """
    voxels, grid, _ = read_labels(path)
    inside = np.asarray(voxels != 0, dtype=np.bool_, order="F")
    value = voxels.max() or voxels.min()
    if not np.array_equal(voxels == value, inside) and inside.any():
        raise DataError(
            f"{where}: values {sorted(distinct_values(voxels))[:5]}, expected 0 and one other;"
            " this is no binary mask"
        )
    return inside, grid


def _on_grid(
    voxels: np.ndarray, own: Grid, grid: Grid, where: str, rules: ReferenceRules
) -> tuple[np.ndarray, str]:
    """Return a map on the image's grid, and what was done to it, nothing in most cases.

    Raises:
        DataError: the grids differ and may not be repaired, or nothing of the map lies in the
            image.
    """
    if same_grid(grid, own):
        return voxels, ""
    if not rules.repairs_grid:
        require_same_grid(grid, own, where, _REMEDY)
    moved, told = repaired(voxels, own, grid, where)
    everywhere = np.broadcast_to(np.uint8(1), own.shape)
    outside = 1 - np.count_nonzero(resample_nearest(everywhere, own, grid)) / moved.size
    if outside >= _WORTH_SAYING:
        told += f"; {outside:.1%} of the image lie outside of it and count as background"
    return moved, told
