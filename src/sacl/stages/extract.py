"""extract: volumes and coarse maps -> a memory-mapped store of query patches and dense slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from sacl.cohort.manifest import read_cohort, read_image, read_reference, with_phases
from sacl.errors import DataError
from sacl.files.nifti import read_label_map
from sacl.geometry import require_same_grid
from sacl.patches.query import coverage, cut, organ_regions, plan_boxes, round_to_even
from sacl.patches.region import Placement, dense_boxes
from sacl.patches.scan_ranges import measures_of, ranges_of
from sacl.patches.store import (
    COVERAGE_SCALE,
    IMAGE_SCALE,
    LABEL_PREFIX,
    StoreArrays,
    StoreMeta,
    bytes_needed,
    counts_of,
    quantized,
    writing_patches,
)
from sacl.patches.window import WindowRule, normalize
from sacl.progress import say, track
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import ExtractSettings
from sacl.types import Box, Case, Cohort, LabelMap, Volume

MARGIN = 1.5
"""The store keeps this many patch sides around the center."""
DENSE_MARGIN = 1.6
"""The same for dense slices."""
_SAY_ABOVE_BYTES = 1e9


class PatchRow(NamedTuple):
    """A query patch in the index; scan-wise labels and rows in the arrays are added to it."""

    case_id: str
    subject_id: str
    split: str
    organ: str
    slice: int
    i0: int
    j0: int
    i1: int
    j1: int
    pixel_mm: float
    annotated: bool


class SliceRow(NamedTuple):
    """A dense slice in its index; rows in the arrays are added to it."""

    case_id: str
    subject_id: str
    slice: int
    i0: int
    j0: int
    i1: int
    j1: int
    annotated: str
    holds_organ: bool


@dataclass(frozen=True)
class StorePlan:
    """What a store will hold: both index tables, and what the training scans are like."""

    index: pd.DataFrame
    dense_index: pd.DataFrame
    meta: StoreMeta


def inputs(settings: ExtractSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    return {s: fingerprint(workspace.require(s)) for s in ("ingest", "locate")}


def extract(settings: ExtractSettings, workspace: Workspace) -> Path:
    """Cut a query patch per organ and axial slice of every scan, and return the store's folder.

    Dense slices of the training scans are stored too, for the dense head: whole, or the region
    around all organs.

    Raises:
        DataError: no coarse map holds an organ, a map is missing, or the disk has too little room.
    """
    with recorded(workspace, "extract", settings, inputs(settings, workspace)) as (folder, results):
        cohort = read_cohort(workspace.require("ingest"))
        cohort = with_phases(cohort, workspace.require("locate"))
        plan = _plan(cohort, workspace, _meta(cohort, settings))
        counts = counts_of(plan.index, plan.dense_index)
        need = bytes_needed(plan.meta, counts)
        if need > _SAY_ABOVE_BYTES:
            say(f"  {len(plan.index)} patches take {need / 1e9:.1f} GB of disk")
        with writing_patches(folder, plan.meta, plan.index, plan.dense_index) as arrays:
            for case in track(cohort.cases, "cut patches"):
                scan = _Scan(cohort, case, workspace)
                _fill_patches(scan, plan, arrays)
                _fill_dense(scan, plan, arrays)
        by_organ = plan.index["organ"].value_counts()
        results.update(
            patches=len(plan.index),
            patches_with_reference=counts.references,
            dense_slices=counts.slices,
            dense_slices_with_reference=counts.dense_references,
            patches_per_organ={str(organ): int(n) for organ, n in by_organ.items()},
            stored_mb=round(need / 1e6, 1),
        )
    return folder


class _Scan:
    """A scan with its maps, each read when it is first asked for, all on the image's grid."""

    def __init__(self, cohort: Cohort, case: Case, workspace: Workspace) -> None:
        self.cohort, self.case = cohort, case
        self._source, self._coarse = workspace.folder("ingest"), workspace.folder("locate")

    @cached_property
    def image(self) -> Volume:
        return read_image(self._source, self.case)

    @cached_property
    def coarse(self) -> LabelMap:
        path = self._coarse / "maps" / f"{self.case.case_id}.nii.gz"
        if not path.is_file():
            raise DataError(f"case {self.case.case_id}: no coarse map; run `sacl locate` again")
        coarse, _ = read_label_map(path, self.cohort.scheme)
        require_same_grid(self.image.grid, coarse.grid, f"case {self.case.case_id}, coarse map")
        return coarse

    @cached_property
    def reference(self) -> LabelMap:
        reference = read_reference(self._source, self.case, self.cohort.scheme)
        if reference is None:
            raise DataError(f"case {self.case.case_id}: no reference; run `sacl ingest` again")
        require_same_grid(self.image.grid, reference.grid, f"case {self.case.case_id}, reference")
        return reference

    def plane(self, k: int) -> Float[np.ndarray, "i j"]:
        """Return an axial slice with the window's ends at 0 and 1."""
        return normalize(self.image.voxels[:, :, k], self.case.window)


def _meta(cohort: Cohort, settings: ExtractSettings) -> StoreMeta:
    return StoreMeta(
        patch_size=settings.patch_size,
        stored_size=round_to_even(settings.patch_size * MARGIN),
        dense_size=settings.dense_size,
        dense_stored_size=round_to_even(settings.dense_size * DENSE_MARGIN),
        organs=cohort.scheme.names,
        scan_labels=tuple(sorted({name for case in cohort.cases for name in case.scan_labels})),
        scheme=cohort.scheme.name,
        window=WindowRule(cohort.modality, cohort.window_hu),
        placement=Placement(context=settings.context, region=settings.region),
    )


def _plan(cohort: Cohort, workspace: Workspace, meta: StoreMeta) -> StorePlan:
    """Return the index of all patches and of all dense slices.

    Boxes are cheap: with their number known first, the store is allocated once, in its full size.
    """
    rows: list[PatchRow] = []
    dense: list[SliceRow] = []
    measures = []
    for case in track(cohort.cases, "plan patches"):
        scan = _Scan(cohort, case, workspace)
        rows += _patch_rows(scan, meta)
        if case.split == "train":
            dense += _slice_rows(scan, meta.placement)
            measures.append(measures_of(scan.image))
    if not rows:
        raise DataError(
            "extract: no coarse map holds any organ; look at 2-coarse/coverage.csv, and train the"
            " coarse network longer or give better maps"
        )
    labeled = {case.case_id for case in cohort.labeled}
    index = pd.DataFrame(rows, columns=PatchRow._fields)
    has = index["case_id"].isin(labeled) & index.pop("annotated")
    _number(index, "patch", has)
    cases = {case.case_id: case for case in cohort.cases}
    for name in meta.scan_labels:
        index[LABEL_PREFIX + name] = [cases[c].scan_label(name) for c in index["case_id"]]
    dense_index = pd.DataFrame(dense, columns=SliceRow._fields)
    _number(dense_index, "slice_row", dense_index["case_id"].isin(labeled))
    return StorePlan(index, dense_index, replace(meta, scans=ranges_of(measures)))


def _number(table: pd.DataFrame, name: str, has_reference: pd.Series) -> None:
    """Put in front where each line stands in the arrays; -1 where it has no reference."""
    numbers = np.where(has_reference, np.cumsum(has_reference) - 1, -1)
    table.insert(0, name, np.arange(len(table)))
    table.insert(1, "reference_row", numbers)


def _patch_rows(scan: _Scan, meta: StoreMeta) -> Iterator[PatchRow]:
    """Yield an index row per organ and axial slice of a scan."""
    case, placement = scan.case, meta.placement
    rules = (placement.context, placement.min_side_mm, placement.slice_margin)
    for organ, region in organ_regions(scan.coarse).items():
        for box in plan_boxes(scan.coarse, organ, *rules, region):
            yield PatchRow(
                case.case_id,
                case.subject_id,
                case.split,
                organ,
                *_place(box),
                box.shape[0] * scan.coarse.grid.spacing_mm[0] / meta.patch_size,
                organ in case.annotated,
            )


def _slice_rows(scan: _Scan, placement: Placement) -> Iterator[SliceRow]:
    """Yield an index row per axial slice of a training scan."""
    case = scan.case
    for box in dense_boxes(placement, scan.image.grid, scan.coarse):
        holds_organ = bool(scan.coarse.voxels[:, :, box.start[2]].any())
        annotated = ";".join(case.annotated)
        yield SliceRow(case.case_id, case.subject_id, *_place(box), annotated, holds_organ)


def _place(box: Box) -> tuple[int, int, int, int, int]:
    """Return slice, i0, j0, i1 and j1 of a box."""
    return (box.start[2], *box.start[:2], *box.stop[:2])


def _box(row: PatchRow | SliceRow) -> Box:
    return Box((row.i0, row.j0, row.slice), (row.i1, row.j1, row.slice + 1))


def _rows(table: pd.DataFrame, case: Case) -> Iterator[Any]:
    """Yield a case's rows by rising slice, so that each slice is read and windowed once."""
    of_case = table[table["case_id"] == case.case_id]
    yield from of_case.sort_values("slice", kind="stable").itertuples()


def _fill_patches(scan: _Scan, plan: StorePlan, arrays: StoreArrays) -> None:
    """Cut the patches of one scan out of its image, its coarse map and its reference."""
    size, scale = plan.meta.patch_size, plan.meta.stored_size / plan.meta.patch_size
    for k, of_slice in groupby(_rows(plan.index, scan.case), key=lambda row: int(row.slice)):
        plane, coarse = scan.plane(k), scan.coarse.voxels[:, :, k]
        for row in of_slice:
            box, label = _box(row), scan.cohort.scheme.label_of(row.organ)
            arrays.images[row.patch] = quantized(cut(plane, box, size, scale), IMAGE_SCALE)
            attention = coverage(coarse, label, box, size, scale)
            arrays.attention[row.patch] = quantized(attention, COVERAGE_SCALE)
            if row.reference_row >= 0:
                reference = coverage(scan.reference.voxels[:, :, k], label, box, size, scale)
                arrays.references[row.reference_row] = quantized(reference, COVERAGE_SCALE)


def _fill_dense(scan: _Scan, plan: StorePlan, arrays: StoreArrays) -> None:
    """Resample the dense slices of one training scan."""
    size, scale = plan.meta.dense_size, plan.meta.dense_stored_size / plan.meta.dense_size
    for row in _rows(plan.dense_index, scan.case):
        k, box = int(row.slice), _box(row)
        image = cut(scan.plane(k), box, size, scale)
        arrays.dense_images[row.slice_row] = quantized(image, IMAGE_SCALE)
        coarse = scan.coarse.voxels[:, :, k]
        arrays.dense_coarse[row.slice_row] = cut(coarse, box, size, scale, nearest=True)
        if row.reference_row >= 0:
            labels = scan.reference.voxels[:, :, k]
            reference = cut(labels, box, size, scale, nearest=True)
            arrays.dense_references[row.reference_row] = reference
