"""Write a generated cohort to disk as a stranger's data would lie there: nnU-Net raw layout."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sacl.files.atomic import write_text
from sacl.files.nifti import write_label_map, write_volume
from sacl.types import Grid, NativeFrame, Split, Volume
from sacl_phantom.anatomy import ORGANS
from sacl_phantom.contrast import PHASES, Phase
from sacl_phantom.scan import make_scan

NOISE_HU = 18.0
"""Standard deviation of the image noise; a low-dose CT has about 20."""
_SUFFIX: dict[Split, str] = {"train": "Tr", "validation": "Va", "test": "Ts"}
STORED_FLIPS: tuple[tuple[int, ...], ...] = ((), (0,), (0, 1))
"""Axes stored backward: RAS, LAS and LPS order, all met in hospital exports."""
_MANY_VOXELS = 20_000_000


@dataclass(frozen=True)
class PlannedScan:
    """One scan that is to be generated."""

    case_id: str
    subject: int
    phase: Phase
    split: Split
    number: int


def plan_cohort(scans: int, seed: int) -> list[PlannedScan]:
    """Plan subjects of one to three phases each, a quarter of them for testing, an eighth to tune.

    Within every split each further scan takes a phase that the split has least of.
    """
    rng = np.random.default_rng((seed, 900))
    counts: list[int] = []
    while sum(counts) < scans:
        counts.append(min(int(rng.choice((1, 2, 3), p=(0.5, 0.3, 0.2))), scans - sum(counts)))
    splits = _split_subjects(len(counts), rng)
    used: dict[Split, Counter[Phase]] = {split: Counter() for split in _SUFFIX}
    planned: list[PlannedScan] = []
    for subject, (count, split) in enumerate(zip(counts, splits, strict=True)):
        ordered = sorted(PHASES, key=lambda phase: (used[split][phase], rng.random()))
        for phase in ordered[:count]:
            used[split][phase] += 1
            number = len(planned)
            planned.append(PlannedScan(f"phantom_{number:04d}", subject, phase, split, number))
    return planned


def _split_subjects(count: int, rng: np.random.Generator) -> list[Split]:
    test = round(count / 4) or int(count > 1)
    validation = round(count / 8) or int(count > 2)
    rank = rng.permutation(count)
    return [
        "test" if n < test else "validation" if n < test + validation else "train" for n in rank
    ]


def write_scans(
    root: Path,
    planned: Sequence[PlannedScan],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    seed: int,
) -> Iterator[None]:
    """Write all scans but those that lie there, each with its label file; yield after every one."""
    # Numpy leaves the interpreter lock while it computes, so threads fill the cores.
    large = int(np.prod(shape)) > _MANY_VOXELS
    pool = ThreadPoolExecutor(1 if large else min(4, os.cpu_count() or 1))
    try:
        jobs = [pool.submit(_generate, root, one, shape, spacing_mm, seed) for one in planned]
        for job in jobs:
            yield job.result()
    finally:  # also when interrupted: scans under way are finished, no other is begun
        pool.shutdown(cancel_futures=True)


def _generate(
    root: Path,
    scan: PlannedScan,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    seed: int,
) -> None:
    """Generate one scan and write it, its label map first; a scan that lies there is kept."""
    suffix = _SUFFIX[scan.split]
    image_path = root / f"images{suffix}" / f"{scan.case_id}_0000.nii.gz"
    if image_path.exists():
        return
    seeds = seed * 10_000 + scan.number, seed * 10_000 + scan.subject
    made = make_scan(seeds[0], scan.phase, shape, spacing_mm, NOISE_HU, seeds[1])
    flips = STORED_FLIPS[scan.number % len(STORED_FLIPS)]
    native = flipped(made.image.grid, flips)
    label_path = root / f"labels{suffix}" / f"{scan.case_id}.nii.gz"
    write_label_map(label_path, made.labels, NativeFrame(native))
    write_volume(image_path, Volume(np.flip(made.image.voxels, flips), native))


def flipped(grid: Grid, axes: tuple[int, ...]) -> Grid:
    """Return the grid of the same voxels stored backward along some axes."""
    affine = grid.affine.copy()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (grid.shape[axis] - 1)
        affine[:3, axis] *= -1
    return Grid(grid.shape, affine)


def write_tables(root: Path, planned: Sequence[PlannedScan]) -> None:
    """Write `dataset.json` and the scan-wise labels."""
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {organ: n for n, organ in enumerate(ORGANS, start=1)},
        "numTraining": sum(scan.split == "train" for scan in planned),
        "file_ending": ".nii.gz",
        "name": "Phantom",
        "description": "Generated abdominal CT: no patient's data",
    }
    write_text(root / "dataset.json", json.dumps(dataset, indent=1) + "\n")
    rows = [f"{scan.case_id},subject_{scan.subject:03d},{scan.phase}\n" for scan in planned]
    write_text(root / "scan_labels.csv", "".join(["case_id,subject_id,phase\n", *rows]))
