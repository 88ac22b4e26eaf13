"""extract: volumes and coarse maps -> a memory-mapped store of query patches."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sacl.cohort.manifest import read_cohort, read_image, read_reference, with_phases
from sacl.errors import DataError
from sacl.files.nifti import read_label_map
from sacl.geometry import require_same_grid
from sacl.patches.query import coverage, cut, organ_regions, plan_boxes, round_to_even
from sacl.patches.region import Placement, dense_boxes
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

Row = dict[Hashable, Any]
"""One line of an index table."""

MARGIN = 1.5
"""The store keeps this many patch sides around the center."""
DENSE_MARGIN = 1.6
"""The like of it for dense slices."""
_SAY_ABOVE_BYTES = 1e9
_DENSE_COLUMNS = (
    "slice_row",
    "reference_row",
    "case_id",
    "subject_id",
    "slice",
    "i0",
    "j0",
    "i1",
    "j1",
    "annotated",
    "holds_organ",
)


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
        meta = _meta(cohort, settings)
        index, dense_index = _plan(cohort, workspace, settings)
        counts = counts_of(index, dense_index)
        need = bytes_needed(meta, counts)
        if need > _SAY_ABOVE_BYTES:
            say(f"  {len(index)} patches take {need / 1e9:.1f} GB of disk")
        with writing_patches(folder, meta, index, dense_index) as arrays:
            for case in track(cohort.cases, "cut patches"):
                scan = _Scan(cohort, case, workspace)
                _fill_patches(scan, _rows(index, case), meta, arrays)
                _fill_dense(scan, _rows(dense_index, case), meta, arrays)
        results.update(
            patches=len(index),
            patches_with_reference=counts.references,
            dense_slices=counts.slices,
            dense_slices_with_reference=counts.dense_references,
            patches_per_organ={str(o): int(n) for o, n in index["organ"].value_counts().items()},
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

    def plane(self, k: int) -> np.ndarray:
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
        placement=_placement(settings),
    )


def _placement(settings: ExtractSettings) -> Placement:
    return Placement(context=settings.context, region=settings.region)


def _plan(
    cohort: Cohort, workspace: Workspace, settings: ExtractSettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the index of all patches and of all dense slices.

    Boxes are cheap: with their number known first, the store is allocated once, in its full size.
    """
    rows: list[dict[str, Any]] = []
    dense: list[dict[str, Any]] = []
    labeled = {case.case_id for case in cohort.labeled}
    for case in track(cohort.cases, "plan patches"):
        scan = _Scan(cohort, case, workspace)
        rows += _patch_rows(scan, settings)
        if case.case_id in labeled or case.split == "train":
            dense += _dense_rows(scan, settings)
    if not rows:
        raise DataError(
            "extract: no coarse map holds any organ; look at 2-coarse/coverage.csv, and train the"
            " coarse network longer or give better maps"
        )
    index = pd.DataFrame(rows)
    index.insert(0, "patch", np.arange(len(index)))
    has = index["case_id"].isin(labeled) & index.pop("annotated")
    index.insert(1, "reference_row", np.where(has, np.cumsum(has) - 1, -1))
    dense_index = pd.DataFrame(dense, columns=_DENSE_COLUMNS)
    dense_index["slice_row"] = np.arange(len(dense_index))
    has = dense_index["case_id"].isin(labeled)
    dense_index["reference_row"] = np.where(has, np.cumsum(has) - 1, -1)
    return index, dense_index


def _patch_rows(scan: _Scan, settings: ExtractSettings) -> Iterator[dict[str, Any]]:
    """Yield an index row per organ and axial slice of a scan."""
    case = scan.case
    names = {name for other in scan.cohort.cases for name in other.scan_labels}
    labels = {LABEL_PREFIX + name: case.scan_label(name) for name in sorted(names)}
    placement = _placement(settings)
    rules = (placement.context, placement.min_side_mm, placement.slice_margin)
    for organ, region in organ_regions(scan.coarse).items():
        for box in plan_boxes(scan.coarse, organ, *rules, region):
            yield {
                "case_id": case.case_id,
                "subject_id": case.subject_id,
                "split": case.split,
                "organ": organ,
                **_place(box),
                "pixel_mm": box.shape[0] * scan.coarse.grid.spacing_mm[0] / settings.patch_size,
                "annotated": organ in case.annotated,
                **labels,
            }


def _dense_rows(scan: _Scan, settings: ExtractSettings) -> Iterator[dict[str, Any]]:
    """Yield an index row per axial slice of a training scan."""
    for box in dense_boxes(_placement(settings), scan.image.grid, scan.coarse):
        yield {
            "case_id": scan.case.case_id,
            "subject_id": scan.case.subject_id,
            "annotated": ";".join(scan.case.annotated),
            "holds_organ": bool(scan.coarse.voxels[:, :, box.start[2]].any()),
            **_place(box),
        }


def _place(box: Box) -> dict[str, int]:
    (i0, j0, k), (i1, j1, _) = box.start, box.stop
    return {"slice": k, "i0": i0, "j0": j0, "i1": i1, "j1": j1}


def _box(line: Row) -> Box:
    k = line["slice"]
    return Box((line["i0"], line["j0"], k), (line["i1"], line["j1"], k + 1))


def _rows(table: pd.DataFrame, case: Case) -> list[Row]:
    """Return a case's rows by rising slice, so that each slice is read and windowed once."""
    mine = table[table["case_id"] == case.case_id].sort_values("slice", kind="stable")
    return mine.to_dict("records")


def _fill_patches(scan: _Scan, rows: list[Row], meta: StoreMeta, arrays: StoreArrays) -> None:
    """Cut the patches of one scan out of its image, its coarse map and its reference."""
    size, scale = meta.patch_size, meta.stored_size / meta.patch_size
    for k, of_slice in groupby(rows, key=lambda line: int(line["slice"])):
        plane, coarse = scan.plane(k), scan.coarse.voxels[:, :, k]
        for line in of_slice:
            row, reference_row = line["patch"], line["reference_row"]
            box, label = _box(line), scan.cohort.scheme.label_of(line["organ"])
            arrays.images[row] = quantized(cut(plane, box, size, scale), IMAGE_SCALE)
            attention = coverage(coarse, label, box, size, scale)
            arrays.attention[row] = quantized(attention, COVERAGE_SCALE)
            if reference_row >= 0:
                reference = coverage(scan.reference.voxels[:, :, k], label, box, size, scale)
                arrays.references[reference_row] = quantized(reference, COVERAGE_SCALE)


def _fill_dense(scan: _Scan, rows: list[Row], meta: StoreMeta, arrays: StoreArrays) -> None:
    """Resample the dense slices of one training scan."""
    size, scale = meta.dense_size, meta.dense_stored_size / meta.dense_size
    for line in rows:
        k, row, box = int(line["slice"]), line["slice_row"], _box(line)
        image = cut(scan.plane(k), box, size, scale)
        arrays.dense_images[row] = quantized(image, IMAGE_SCALE)
        coarse = scan.coarse.voxels[:, :, k]
        arrays.dense_coarse[row] = cut(coarse, box, size, scale, nearest=True)
        if line["reference_row"] >= 0:
            labels = scan.reference.voxels[:, :, k]
            reference = cut(labels, box, size, scale, nearest=True)
            arrays.dense_references[line["reference_row"]] = reference
