"""What a run will take: disk, memory and time, from the cohort's facts and a few timed steps.

Stages that train take steps x seconds per step on this machine; the others take counts x seconds
known from measured runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sacl.check.cohort_checks import CohortFacts
from sacl.check.scan_facts import Geometry, ScanFacts
from sacl.networks.memory import prediction_gb
from sacl.organs import match
from sacl.patches.query import round_to_even
from sacl.patches.store import StoreCounts, StoreMeta, bytes_needed
from sacl.settings import RunConfig
from sacl.training.forecast_locate import FORWARD, VOXEL_CLASS_S, VOXEL_S, Counts, locate_s
from sacl.training.step_costs import StepCosts

_UNSEEN_EXTENT_MM = 80.0
"""Extent along z of an organ that no reference shows."""
_MAP_BYTES_PER_VOXEL = 0.04
"""Of a compressed label map: measured on phantoms, ACDC and hippocampus."""
_READ_BYTES, _READ_BASE_GB = 6, 0.3
"""Memory of two scans while they are ingested, in units of one's voxels' own bytes; and of the
program."""
_IN_MEMORY_GB = 4.0
"""Training patches up to this size are held in memory."""
_COPY = 1.25
"""A copy's prediction, of a plain one: it is turned there and back."""
_CUT_PER_S = 2500.0
_EVALUATE_S, _REPORT_S = 0.004, 5.0


@dataclass(frozen=True)
class Forecast:
    """The estimate: counts, disk in GB by what it is for, memory in GB and seconds by stage.

    `seconds` is None where no step was timed.
    """

    counts: Counts
    disk_gb: Mapping[str, float]
    memory_gb: Mapping[str, float]
    seconds: Mapping[str, float] | None
    steps: Mapping[str, int]


def forecast(config: RunConfig, cohort: CohortFacts, costs: StepCosts | None) -> Forecast:
    """Return what `sacl run` will take for a cohort with these settings."""
    counts = count(config, cohort)
    arms = arm_steps(config, counts.training_patches)
    meta = _meta(config, organs_of(config, cohort))
    rows = StoreCounts(
        counts.patches, counts.labeled_patches, counts.dense_slices, counts.labeled_slices
    )
    store = bytes_needed(meta, rows) / 1e9
    images = sum(
        _voxels(scan.geometry) * scan.image.bytes_per_voxel
        for scan in cohort.scans
        if scan.geometry and scan.image
    )
    maps = counts.voxels * (2 + len(arms)) * _MAP_BYTES_PER_VOXEL
    networks = {"locate": config.locate.folds + 1, "pretrain": 1, "finetune": len(arms)}
    weights = 4 * sum(n * costs.parameters[name] for name, n in networks.items()) if costs else 0
    pixels = counts.training_patches * meta.stored_size**2 * 3 / 1e9
    return Forecast(
        counts=counts,
        disk_gb={
            "canonical volumes": images / 1e9,
            "label maps": maps / 1e9,
            "patch store": store,
            "weights": weights / 1e9,
        },
        memory_gb=_memory(cohort, counts, pixels, costs),
        seconds=_seconds(config, cohort, counts, costs) if costs else None,
        steps={
            "locate": (config.locate.steps + config.locate.teacher_steps)
            * (config.locate.folds + 1),
            **arms,
        },
    )


def organs_of(config: RunConfig, cohort: CohortFacts) -> list[str]:
    """Return the organs of the cohort that the settings keep."""
    wanted = config.ingest.organs
    return sorted(match(cohort.organs, wanted)) if wanted else list(cohort.organs)


def usual_spacing_mm(cohort: CohortFacts) -> tuple[float, float, float]:
    """Return the median spacing of a cohort along x, y and z."""
    spacings = [scan.geometry.spacing_mm for scan in cohort.scans if scan.geometry]
    x, y, z = np.median(spacings, axis=0) if spacings else (1.0, 1.0, 1.0)
    return float(x), float(y), float(z)


def labeled_scans(config: RunConfig, scans: Sequence[ScanFacts]) -> tuple[list[ScanFacts], int]:
    """Return training scans that stand for those that stay labeled, and their number of subjects.

    Which subjects are held out or stay labeled is drawn by the run; here they are the first ones.
    """
    ingest = config.ingest
    labeled = [scan for scan in scans if scan.split == "train" and scan.reference]
    subjects = sorted({scan.subject_id for scan in labeled})
    subjects = subjects[: max(0, len(subjects) - ingest.validation_subjects - ingest.test_subjects)]
    kept = set(subjects[: ingest.labeled_subjects])
    return [scan for scan in labeled if scan.subject_id in kept], len(kept)


def count(config: RunConfig, cohort: CohortFacts) -> Counts:
    """Return how many scans, patches and slices there will be."""
    organs = organs_of(config, cohort)
    scans = [scan for scan in cohort.scans if scan.geometry]
    labeled, subjects = labeled_scans(config, scans)
    extents_mm = _extents_mm(scans, organs)
    patches = {s.case_id: _patches(s, extents_mm, config.extract.slice_margin) for s in scans}
    train = [s for s in scans if s.split == "train"]
    held = config.ingest.validation_subjects + config.ingest.test_subjects
    share = 1 - held / max(1, len({s.subject_id for s in train}))
    slices = {s.case_id: s.geometry.shape[2] for s in scans if s.geometry}
    dense = {s.case_id: _dense_slices(config, s, extents_mm) for s in scans}
    sizes = [_voxels(s.geometry) for s in scans if s.geometry]
    return Counts(
        scans=len(scans),
        labeled_scans=len(labeled),
        labeled_subjects=subjects,
        organs=len(organs),
        patches=sum(patches.values()),
        training_patches=round(max(0.0, share) * sum(patches[s.case_id] for s in train)),
        labeled_patches=sum(patches[s.case_id] for s in labeled),
        labeled_slices=sum(dense[s.case_id] for s in labeled),
        dense_slices=sum(
            dense[s.case_id] for s in (train if config.extract.dense_unlabeled else labeled)
        ),
        slices=sum(slices.values()),
        voxels=sum(sizes),
        largest_voxels=max(sizes, default=0),
    )


def arm_steps(config: RunConfig, training_patches: int) -> dict[str, int]:
    """Return the steps of pretraining and of every fine-tuning arm.

    `scratch-long` gets as many more steps as bring the pixels of pretraining.
    """
    pretrain, finetune, extract = config.pretrain, config.finetune, config.extract
    own = finetune.steps + finetune.teacher_steps
    if pretrain.strategy == "none":
        return {"fine-tuned": own}
    side = extract.dense_size if finetune.head == "dense" else extract.patch_size
    if pretrain.on_patches:
        views, seen = 2 * min(pretrain.batch, max(1, training_patches)), extract.patch_size
    else:
        views, seen = 2 * pretrain.slices, extract.dense_size
    pixels = pretrain.steps * views * seen**2
    added = math.ceil(pixels / (finetune.batch * side**2))
    steps = {"scratch": own, "scratch-long": own + added}
    return {pretrain.strategy: own} | {twin: steps[twin] for twin in finetune.twins}


def _meta(config: RunConfig, organs: Sequence[str]) -> StoreMeta:
    extract = config.extract
    return StoreMeta(
        patch_size=extract.patch_size,
        stored_size=round_to_even(extract.patch_size * extract.margin),
        dense_size=extract.dense_size,
        dense_stored_size=round_to_even(extract.dense_size * extract.dense_margin),
        organs=tuple(organs) or ("organ",),
    )


def _voxels(geometry: Geometry) -> int:
    return int(np.prod(geometry.shape))


def _extents_mm(scans: Sequence[ScanFacts], organs: Sequence[str]) -> dict[str, float]:
    """Return each organ's mean extent along z over the scans that were looked through for it."""
    found: dict[str, float] = {}
    for organ in organs:
        extents = [
            s.reference.present[organ].slices * s.geometry.spacing_mm[2]
            if organ in s.reference.present
            else 0.0
            for s in scans
            if s.reference and s.geometry and organ in s.reference.annotated
        ]
        found[organ] = float(np.mean(extents)) if extents else _UNSEEN_EXTENT_MM
    return found


def _patches(scan: ScanFacts, extents_mm: Mapping[str, float], margin: int) -> int:
    """Return how many slices of a scan hold an organ, summed over the organs."""
    assert scan.geometry is not None, "scans without a grid are left out"
    depth, spacing_mm = scan.geometry.shape[2], scan.geometry.spacing_mm[2]
    total = 0.0
    for organ, extent_mm in extents_mm.items():
        slices = extent_mm / spacing_mm
        if scan.reference and organ in scan.reference.annotated:
            facts = scan.reference.present.get(organ)
            slices = facts.slices if facts else 0.0
        total += min(slices + 2 * margin, depth) if slices else 0.0
    return round(total)


def _dense_slices(config: RunConfig, scan: ScanFacts, extents_mm: Mapping[str, float]) -> int:
    """Return how many dense slices a scan has: all, or those along its longest organ."""
    assert scan.geometry is not None, "scans without a grid are left out"
    depth, spacing_mm = scan.geometry.shape[2], scan.geometry.spacing_mm[2]
    if config.extract.dense_region == "slice":
        return depth
    return min(depth, round(max(extents_mm.values(), default=0.0) / spacing_mm))


def _memory(
    cohort: CohortFacts, counts: Counts, patches_gb: float, costs: StepCosts | None
) -> dict[str, float]:
    """Return the memory that the heaviest stages take; on a GPU, training's is the GPU's."""
    stored = max((s.image.bytes_per_voxel for s in cohort.scans if s.image), default=2)
    read_gb = counts.largest_voxels * stored * _READ_BYTES / 1e9
    memory = {
        "ingest the largest scans": _READ_BASE_GB + read_gb,
        "predict the largest scan": prediction_gb(counts.largest_voxels),
    }
    if costs is not None:
        memory["train"] = costs.peak_gb + patches_gb * (patches_gb < _IN_MEMORY_GB)
    return memory


def _seconds(
    config: RunConfig, cohort: CohortFacts, counts: Counts, costs: StepCosts
) -> dict[str, float]:
    """Return seconds by stage."""
    arms = arm_steps(config, counts.training_patches)
    classes = counts.organs + 1
    dense = config.finetune.head == "dense"
    images = counts.slices if dense else counts.patches
    forward_s = costs.finetune_s * FORWARD / config.finetune.batch
    copies = 1 + _COPY * config.predict.copies
    per_arm_s = images * copies * forward_s + counts.voxels * (
        VOXEL_S + VOXEL_CLASS_S * (classes if dense else 1)
    )
    held_out = sum(s.split != "train" and s.reference is not None for s in cohort.scans)
    held_out += config.ingest.validation_subjects + config.ingest.test_subjects
    twins_share = (len(arms) - 1) * held_out / max(1, counts.scans)
    return {
        "ingest": 1.5 * sum(scan.read_s for scan in cohort.scans),
        "locate": locate_s(config, cohort, counts, costs),
        "extract": counts.patches / _CUT_PER_S + counts.voxels * VOXEL_S,
        "pretrain": config.pretrain.steps * costs.pretrain_s,
        "finetune": sum(arms.values()) * costs.finetune_s,
        "predict": per_arm_s * (1 + twins_share),
        "evaluate": 1 + _EVALUATE_S * held_out * counts.organs * (len(arms) + 1),
        "report": _REPORT_S,
    }
