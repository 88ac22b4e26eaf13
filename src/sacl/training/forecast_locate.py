"""What the coarse stage of a run will take: training its networks, running them over all scans."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sacl.check.cohort_checks import CohortFacts
from sacl.check.scan_facts import Geometry
from sacl.settings import RunConfig
from sacl.training.step_costs import StepCosts

FORWARD = 1 / 3
"""A forward pass, of a training step."""
VOXEL_CLASS_S, VOXEL_S = 2e-8, 1e-7
"""Seconds for bringing a class back to a voxel of the scan, and for reading or writing one."""


@dataclass(frozen=True)
class Counts:
    """What there will be: scans to train on, patches, slices and voxels."""

    scans: int
    labeled_scans: int
    labeled_subjects: int
    organs: int
    patches: int
    training_patches: int
    labeled_patches: int
    labeled_slices: int
    dense_slices: int
    slices: int
    voxels: int
    largest_voxels: int


def locate_s(config: RunConfig, cohort: CohortFacts, counts: Counts, costs: StepCosts) -> float:
    """Return the seconds of training the coarse networks and of running them over all scans."""
    settings = config.locate
    if settings.source is not None:
        return counts.voxels * VOXEL_S
    networks = min(settings.folds, max(2, counts.labeled_subjects)) + 1
    steps = settings.steps + settings.teacher_steps
    if settings.network == "slices":
        read, batch = counts.slices, settings.slice_batch
    else:
        read = sum(_windows(config, scan.geometry) for scan in cohort.scans if scan.geometry)
        batch = settings.batch
    forward_s = read * costs.locate_s * FORWARD / batch
    back_s = counts.voxels * (VOXEL_S + VOXEL_CLASS_S * (counts.organs + 1))
    return networks * (steps * costs.locate_s + forward_s) + back_s


def _windows(config: RunConfig, geometry: Geometry) -> int:
    """Return how many half-overlapping crops cover a scan on the coarse grid."""
    settings = config.locate
    sizes = [
        math.ceil(n * s / target)
        for n, s, target in zip(
            geometry.shape, geometry.spacing_mm, settings.spacing_mm, strict=True
        )
    ]
    if settings.in_plane_size is not None:
        sizes = [settings.in_plane_size, settings.in_plane_size, geometry.shape[2]]
    steps = [
        max(0, math.ceil((size - crop) / max(1, crop // 2))) + 1
        for size, crop in zip(sizes, settings.crop, strict=True)
    ]
    return math.prod(steps)
