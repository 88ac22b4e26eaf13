"""extract: volumes and coarse maps -> a memory-mapped store of query patches and dense slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sacl.cohort.manifest import read_cohort, with_phases
from sacl.errors import DataError
from sacl.patches.query import coverage, cut, round_to_even
from sacl.patches.region import Placement, dense_boxes, patch_boxes
from sacl.patches.scan_ranges import measures_of, ranges_of
from sacl.patches.store import (
    COVERAGE_SCALE,
    IMAGE_SCALE,
    LABEL_PREFIX,
    PatchStore,
    StoreMeta,
    quantized,
    writing_patches,
)
from sacl.patches.window import WindowRule
from sacl.progress import say, track
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import ExtractSettings
from sacl.stages.scan import Scan
from sacl.types import Box, Case, Cohort

MARGIN = 1.5
"""The store keeps this many patch sides around the center."""
DENSE_MARGIN = 1.6
"""The same for dense slices."""
_SAY_ABOVE_BYTES = 1e9
_PLACE = ("slice", "i0", "j0", "i1", "j1")
_DENSE_COLUMNS = ("case_id", "subject_id", *_PLACE, "annotated", "holds_organ")


Row = dict[str, object]
"""A row of an index table, by column."""
Plan = tuple[StoreMeta, pd.DataFrame, pd.DataFrame]
"""What a store will hold: its description and both index tables."""


def inputs(settings: ExtractSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    return {s: fingerprint(workspace.require(s)) for s in ("ingest", "locate")}


def extract(settings: ExtractSettings, workspace: Workspace) -> Path:
    """Cut a query patch per organ and axial slice of every scan, and return the store's folder.

    Dense slices of the training scans are stored too, for the dense head: whole, or the region
    around all organs. Refused where no coarse map holds an organ, or the disk has too little room.
    """
    with recorded(workspace, "extract", settings, inputs(settings, workspace)) as (folder, results):
        cohort = read_cohort(workspace.require("ingest"))
        cohort = with_phases(cohort, workspace.require("locate"))
        plan = _plan(cohort, workspace, _meta(cohort, settings))
        with writing_patches(folder, *plan) as store:
            if store.nbytes > _SAY_ABOVE_BYTES:
                say(f"  {len(store)} patches take {store.nbytes / 1e9:.1f} GB of disk")
            for case in track(cohort.cases, "cut patches"):
                scan = Scan(case, cohort, workspace)
                _fill_patches(scan, store)
                _fill_dense(scan, store)
        by_organ = store.index["organ"].value_counts()
        results.update(
            patches=len(store),
            patches_with_reference=len(store.references),
            dense_slices=len(store.dense_images),
            dense_slices_with_reference=len(store.dense_references),
            patches_per_organ={str(organ): int(n) for organ, n in by_organ.items()},
            stored_mb=round(store.nbytes / 1e6, 1),
        )
    return folder


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
        placement=Placement(region=settings.region),
    )


def _plan(cohort: Cohort, workspace: Workspace, meta: StoreMeta) -> Plan:
    """Return the index of all patches and of all dense slices.

    Boxes are cheap: with their number known first, the store is allocated once, in its full size.
    """
    rows: list[Row] = []
    dense: list[Row] = []
    measures = []
    for case in track(cohort.cases, "plan patches"):
        scan = Scan(case, cohort, workspace)
        rows += _patch_rows(scan, meta)
        if case.split == "train":
            dense += _slice_rows(scan, meta)
            measures.append(measures_of(scan.image))
    if not rows:
        raise DataError(
            "extract: no coarse map holds any organ; look at 2-coarse/coverage.csv, and train the"
            " coarse network longer or give better maps"
        )
    index, dense_index = pd.DataFrame(rows), pd.DataFrame(dense, columns=_DENSE_COLUMNS)
    labeled = [case.case_id for case in cohort.labeled]
    _number(index, "patch", index["case_id"].isin(labeled) & index.pop("annotated"))
    _number(dense_index, "slice_row", dense_index["case_id"].isin(labeled))
    return replace(meta, scans=ranges_of(measures)), index, dense_index


def _number(table: pd.DataFrame, name: str, has_reference: pd.Series) -> None:
    """Put in front where each line stands in the arrays; -1 where it has no reference."""
    table.insert(0, name, np.arange(len(table)))
    table.insert(1, "reference_row", np.where(has_reference, np.cumsum(has_reference) - 1, -1))


def _patch_rows(scan: Scan, meta: StoreMeta) -> Iterator[Row]:
    case = scan.case
    for organ, box in patch_boxes(meta.placement, scan.coarse):
        yield {
            "case_id": case.case_id,
            "subject_id": case.subject_id,
            "split": case.split,
            "organ": organ,
            **_place(box),
            "pixel_mm": box.shape[0] * scan.coarse.grid.spacing_mm[0] / meta.patch_size,
            "annotated": organ in case.annotated,
            **{LABEL_PREFIX + name: case.scan_label(name) for name in meta.scan_labels},
        }


def _slice_rows(scan: Scan, meta: StoreMeta) -> Iterator[Row]:
    for box in dense_boxes(meta.placement, scan.image.grid, scan.coarse):
        yield {
            "case_id": scan.case.case_id,
            "subject_id": scan.case.subject_id,
            **_place(box),
            "annotated": ";".join(scan.case.annotated),
            "holds_organ": bool(scan.coarse.voxels[:, :, box.start[2]].any()),
        }


def _place(box: Box) -> dict[str, int]:
    return dict(zip(_PLACE, (box.start[2], *box.start[:2], *box.stop[:2]), strict=True))


def _slices(table: pd.DataFrame, case: Case) -> Iterator[tuple[int, list[tuple[Any, Box]]]]:
    """Yield a case's rows slice by slice, so that each is read and windowed once."""
    of_case = table[table["case_id"] == case.case_id].sort_values("slice", kind="stable")
    rows: Iterator[Any] = of_case.itertuples()
    for k, of_slice in groupby(rows, key=lambda row: int(row.slice)):
        yield k, [(row, Box((row.i0, row.j0, k), (row.i1, row.j1, k + 1))) for row in of_slice]


def _fill_patches(scan: Scan, store: PatchStore) -> None:
    size, scale = store.meta.patch_size, store.margin
    for k, rows in _slices(store.index, scan.case):
        plane, coarse = scan.plane(k), scan.coarse.voxels[:, :, k]
        for row, box in rows:
            label = scan.cohort.scheme.label_of(row.organ)
            store.images[row.patch] = quantized(cut(plane, box, size, scale), IMAGE_SCALE)
            attention = coverage(coarse, label, box, size, scale)
            store.attention[row.patch] = quantized(attention, COVERAGE_SCALE)
            if row.reference_row >= 0:
                reference = coverage(scan.reference.voxels[:, :, k], label, box, size, scale)
                store.references[row.reference_row] = quantized(reference, COVERAGE_SCALE)


def _fill_dense(scan: Scan, store: PatchStore) -> None:
    size, scale = store.meta.dense_size, store.meta.dense_stored_size / store.meta.dense_size
    for k, [(row, box)] in _slices(store.dense_index, scan.case):
        image = cut(scan.plane(k), box, size, scale)
        store.dense_images[row.slice_row] = quantized(image, IMAGE_SCALE)
        maps = [(store.dense_coarse, row.slice_row, scan.coarse)]
        if row.reference_row >= 0:
            maps.append((store.dense_references, row.reference_row, scan.reference))
        for array, place, label_map in maps:
            array[place] = cut(label_map.voxels[:, :, k], box, size, scale, nearest=True)
