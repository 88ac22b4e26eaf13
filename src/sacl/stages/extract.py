"""extract: volumes and coarse maps -> a memory-mapped store of query patches and dense slices."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from sacl.cohort.manifest import read_cohort, with_phases
from sacl.errors import DataError
from sacl.patches.query import coverage, cut, round_to_even
from sacl.patches.region import Placement, dense_boxes, patch_boxes
from sacl.patches.scan_ranges import ScanMeasures, measures_of, ranges_of
from sacl.patches.store import (
    COVERAGE_SCALE,
    IMAGE_SCALE,
    StoredCase,
    StoreMeta,
    StoreSize,
    bytes_of,
    case_file,
    count_joined,
    join_cases,
    quantized,
    read_patches,
    row_of,
    writing_case,
)
from sacl.patches.window import WindowRule
from sacl.progress import say
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import ExtractSettings
from sacl.stages.scan import Scan, named_scans
from sacl.types import Box, Cohort

MARGIN = 1.5
"""The store keeps this many patch sides around the center."""
DENSE_MARGIN = 1.6
"""The same for dense slices."""
_SAY_ABOVE_BYTES = 1e9
_SAMPLED = 8
"""Scans whose boxes tell before all others are cut how large the store will be."""


@dataclass(frozen=True)
class Cut:
    """How much was cut of a scan, and what it is like where it is one of training."""

    size: StoreSize
    measures: ScanMeasures | None


def inputs(settings: ExtractSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    return {s: fingerprint(workspace.require(s)) for s in ("ingest", "locate")}


def extract(settings: ExtractSettings, workspace: Workspace) -> Path:
    """Cut a query patch per organ and axial slice of every scan, and return the store's folder.

    Dense slices of the training scans are stored too, for the dense head: whole, or the region
    around all organs, where a coarse map holds any. Refused where the disk has too little room.
    """
    with recorded(workspace, "extract", settings, inputs(settings, workspace)) as (folder, results):
        cohort = with_phases(read_cohort(workspace.require("ingest")), workspace.require("locate"))
        meta = _meta(cohort, settings)
        cuts = _cut_cases(meta, cohort, workspace)
        if not any(one.size.patches for one in cuts):
            say(
                "extract: WARNING, no coarse map holds any organ, so there are no patches, and"
                " slices are shown whole; with more time the coarse networks may find some"
            )
        cases = [
            StoredCase(
                case_id=case.case_id,
                subject_id=case.subject_id,
                split=case.split,
                size=one.size,
                scan_labels=case.scan_labels,
                annotated=case.annotated,
            )
            for case, one in zip(cohort.cases, cuts, strict=True)
        ]
        ranges = ranges_of([one.measures for one in cuts if one.measures])
        join_cases(folder, replace(meta, scans=ranges), cases)
        store = read_patches(folder)
        by_organ = store.index["organ"].value_counts()
        results.update(
            patches=len(store),
            patches_with_reference=len(store.references),
            dense_slices=len(store.dense_images),
            dense_slices_with_reference=len(store.dense_references),
            patches_per_organ={str(organ): int(n) for organ, n in by_organ.items() if n},
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


def _cut_cases(meta: StoreMeta, cohort: Cohort, workspace: Workspace) -> list[Cut]:
    """Cut the scans that are not cut, each into a file of its own, and return what all are."""
    folder, names = workspace.folder("extract"), [case.case_id for case in cohort.cases]
    joined = set(names[: count_joined(folder, len(names))])

    def is_there(name: str) -> bool:
        return name in joined or case_file(folder, name).is_file()

    shard = workspace.engine.shard
    left = [n for n in names if (shard is None or shard.holds(n)) and not is_there(n)]
    if left and not workspace.engine.merges:
        _require_room(left, meta, cohort, workspace)
    work = partial(_open_cutter, meta, workspace)
    cuts = workspace.engine.results_of(work, names, folder, Cut, "cut patches", is_there=is_there)
    return list(cuts.values())


def _require_room(
    names: Sequence[str], meta: StoreMeta, cohort: Cohort, workspace: Workspace
) -> None:
    """Say how much disk some scans will take, by the boxes of a few, and refuse too small a one."""
    scan_of, sizes = named_scans(cohort, workspace), []
    for name in names[:: math.ceil(len(names) / _SAMPLED)]:
        with contextlib.suppress(DataError):  # of a bad scan, which is told when it is its turn
            boxes = _boxes_of(scan_of(name), meta)
            sizes.append(bytes_of(meta, boxes.size))
    need = len(names) * sum(sizes) / max(1, len(sizes))
    free = shutil.disk_usage(workspace.folder("extract")).free
    if need > free:
        raise DataError(
            f"extract: the patch store needs about {math.ceil(need / 1e6)} MB, the disk has"
            f" {free // 10**6} MB left; free some, or lower extract.patch_size or"
            " extract.dense_size"
        )
    if need > _SAY_ABOVE_BYTES:
        say(f"  patches and slices of {len(names)} scans take about {need / 1e9:.1f} GB of disk")


def _open_cutter(meta: StoreMeta, workspace: Workspace) -> Callable[[str], Cut]:
    """Return what cuts a scan into its file."""
    scan_of = named_scans(read_cohort(workspace.require("ingest")), workspace)

    def cut_case(name: str) -> Cut:
        scan = scan_of(name)
        boxes = _boxes_of(scan, meta)
        with writing_case(case_file(workspace.folder("extract"), name), meta, boxes.size) as arrays:
            _fill_patches(scan, meta, boxes, arrays)
            _fill_dense(scan, meta, boxes, arrays)
        is_training = scan.case.split == "train"
        return Cut(boxes.size, measures_of(scan.image) if is_training else None)

    return cut_case


@dataclass(frozen=True)
class _Boxes:
    """What is cut of a scan: patches, of which some have a reference, and dense slices."""

    patches: Sequence[tuple[str, Box]]
    known: Sequence[bool]
    slices: Sequence[Box]
    is_labeled: bool

    @property
    def size(self) -> StoreSize:
        slices = len(self.slices)
        return StoreSize(len(self.patches), sum(self.known), slices, slices * self.is_labeled)


def _boxes_of(scan: Scan, meta: StoreMeta) -> _Boxes:
    is_training = scan.case.split == "train"
    is_labeled = is_training and scan.case.reference is not None
    patches = list(patch_boxes(meta.placement, scan.coarse))
    known = [is_labeled and organ in scan.case.annotated for organ, _ in patches]
    slices = dense_boxes(meta.placement, scan.image.grid, scan.coarse) if is_training else []
    return _Boxes(patches, known, slices, is_labeled)


def _fill_patches(
    scan: Scan, meta: StoreMeta, boxes: _Boxes, arrays: Mapping[str, np.ndarray]
) -> None:
    """Cut slice by slice, so that each is read and windowed once."""
    size, scale = meta.patch_size, meta.stored_size / meta.patch_size
    reference_row = np.cumsum(boxes.known) - 1
    slice_of = [box.start[2] for _, box in boxes.patches]
    in_order = sorted(range(len(slice_of)), key=slice_of.__getitem__)
    for k, rows in groupby(in_order, key=slice_of.__getitem__):
        plane, coarse = scan.plane(k), scan.coarse.voxels[:, :, k]
        for row in rows:
            organ, box = boxes.patches[row]
            label = scan.cohort.scheme.label_of(organ)
            pixel_mm = box.shape[0] * scan.coarse.grid.spacing_mm[0] / size
            arrays["index"][row] = (*row_of(box), pixel_mm, label - 1, boxes.known[row])
            arrays["images"][row] = quantized(cut(plane, box, size, scale), IMAGE_SCALE)
            attention = coverage(coarse, label, box, size, scale)
            arrays["attention"][row] = quantized(attention, COVERAGE_SCALE)
            if boxes.known[row]:
                reference = coverage(scan.reference.voxels[:, :, k], label, box, size, scale)
                arrays["references"][reference_row[row]] = quantized(reference, COVERAGE_SCALE)


def _fill_dense(
    scan: Scan, meta: StoreMeta, boxes: _Boxes, arrays: Mapping[str, np.ndarray]
) -> None:
    size, scale = meta.dense_size, meta.dense_stored_size / meta.dense_size
    maps = {"dense_coarse": scan.coarse}
    if boxes.is_labeled:
        maps["dense_references"] = scan.reference
    for row, box in enumerate(boxes.slices):
        k = box.start[2]
        holds_organ = scan.coarse.voxels[:, :, k].any()
        arrays["dense_index"][row] = (*row_of(box), holds_organ, boxes.is_labeled)
        arrays["dense_images"][row] = quantized(cut(scan.plane(k), box, size, scale), IMAGE_SCALE)
        for name, of in maps.items():
            arrays[name][row] = cut(of.voxels[:, :, k], box, size, scale, nearest=True)
