"""A work directory with everything that evaluation and the report read, made up in a second."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from sacl.cohort.manifest import write_cohort
from sacl.files.nifti import write_label_map, write_volume
from sacl.run.record import recorded
from sacl.run.workspace import Workspace
from sacl.settings import (
    FinetuneSettings,
    IngestSettings,
    LocateSettings,
    PredictSettings,
    PretrainSettings,
)
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

ORGANS = {
    "spleen": ((-90, -40, 40), (35, 45, 40), 110),
    "kidney_right": ((60, -50, -10), (25, 25, 45), 150),
    "kidney_left": ((-60, -50, 0), (25, 25, 45), 150),
    "gallbladder": ((45, 40, 10), (14, 18, 16), 10),
    "esophagus": ((-5, 0, 80), (10, 9, 25), 45),
    "liver": ((60, 10, 40), (70, 70, 60), 105),
    "stomach": ((-45, 45, 35), (35, 35, 35), 35),
    "aorta": ((-8, -25, 10), (11, 11, 90), 180),
    "inferior_vena_cava": ((18, -15, 10), (12, 10, 85), 140),
    "portal_vein_and_splenic_vein": ((15, 10, 15), (30, 8, 8), 160),
    "pancreas": ((-10, 30, 0), (45, 14, 12), 95),
    "adrenal_gland_right": ((30, -30, 35), (9, 8, 10), 60),
    "adrenal_gland_left": ((-35, -30, 35), (9, 8, 10), 60),
}
"""Center and radii in mm (x, y, z) and HU."""
SHAPE, SPACING = (48, 40, 16), (7.0, 7.0, 14.0)
QUALITY = {"semantic": 0.5, "pooled": 0.5, "scratch": 0.9, "scratch-long": 0.75}
"""How far each arm's organs are displaced, relative to the others."""


def fake_work(
    root: Path,
    *,
    organs: tuple[str, ...] = ("liver", "spleen", "gallbladder"),
    test_subjects: int = 4,
    arms: tuple[str, ...] = ("semantic", "scratch"),
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING,
) -> Workspace:
    """Write a cohort of ellipsoids with predictions that err, and the records of all stages."""
    workspace = Workspace(root, "fake", seed=3)
    generator = np.random.default_rng(0)
    grid = _grid(shape, spacing_mm)
    scheme = LabelScheme("fake", organs)
    subjects = [f"subject-{n:02d}" for n in range(4 + test_subjects)]
    with recorded(workspace, "ingest", IngestSettings(), {}) as (folder, _):
        cases = []
        for n, subject in enumerate(subjects):
            offset = generator.normal(0, 6, size=(len(organs), 3))
            reference = _labels(grid, scheme, offset, generator.normal(1, 0.1, len(organs)))
            case = _write_case(folder, subject, reference, n, generator)
            cases.append((case, offset))
        write_cohort(folder, Cohort("fake", scheme, tuple(case for case, _ in cases)))
    shown = [pair for pair in cases if pair[0].reference is not None]
    with recorded(workspace, "locate", LocateSettings(), {}) as (folder, _):
        for case, offset in cases:
            error = offset + generator.normal(0, 8, offset.shape)
            coarse = _labels(grid, scheme, error, np.ones(len(organs)))
            write_label_map(folder / "maps" / f"{case.case_id}.nii.gz", coarse)
        _write_coverage(folder / "coverage.csv", [case for case, _ in cases], organs)
        _write_losses(folder / "losses.csv", ("fold-0", "fold-1"), generator)
    with recorded(workspace, "pretrain", PretrainSettings(), {}) as (folder, _):
        _write_losses(folder / "losses.csv", (), generator)
    with recorded(workspace, "finetune", FinetuneSettings(), {}) as (folder, results):
        for arm in arms:
            _write_losses(folder / arm / "losses.csv", (), generator)
        results["arms"] = list(arms)
    with recorded(workspace, "predict", PredictSettings(), {}) as (folder, results):
        results["scans"] = dict.fromkeys(arms, len(shown))
        for arm in arms:
            for case, offset in cases if arm == arms[0] else shown:
                error = offset + QUALITY[arm] * generator.normal(0, 7, offset.shape)
                predicted = _labels(grid, scheme, error, np.ones(len(organs)))
                path = folder / arm / f"{case.case_id}.nii.gz"
                write_label_map(path, predicted, case.native)
    return workspace


def _grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Grid:
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-s * (n - 1) / 2 for s, n in zip(spacing_mm, shape, strict=True)]
    return Grid(shape, affine)


def _inside(grid: Grid, center: np.ndarray, radius: np.ndarray) -> np.ndarray:
    axes = [
        (grid.affine[a, 3] + grid.spacing_mm[a] * np.arange(n) - center[a]) / radius[a]
        for a, n in enumerate(grid.shape)
    ]
    i, j, k = np.ix_(*axes)
    return np.asarray(i**2 + j**2 + k**2 < 1)


def _labels(grid: Grid, scheme: LabelScheme, offset: np.ndarray, size: np.ndarray) -> LabelMap:
    voxels = np.zeros(grid.shape, np.uint8)
    for n, organ in enumerate(scheme.names):
        center, radius, _ = ORGANS[organ]
        voxels[_inside(grid, center + offset[n], np.array(radius) * size[n])] = n + 1
    return LabelMap(voxels, grid, scheme)


def _write_case(
    folder: Path, subject: str, reference: LabelMap, n: int, generator: np.random.Generator
) -> Case:
    grid, scheme = reference.grid, reference.scheme
    voxels = np.where(_inside(grid, np.zeros(3), np.array([150, 115, 1000])), 30.0, -1000.0)
    for value, organ in enumerate(scheme.names, start=1):
        voxels[reference.voxels == value] = ORGANS[organ][2]
    voxels += generator.normal(0, 20, grid.shape)
    case_id, split = f"{subject}-a", "train" if n < 4 else "test"
    image, path = f"images/{case_id}.nii", f"references/{case_id}.nii.gz"
    write_volume(folder / image, Volume(voxels.astype(np.int16), grid))
    labeled = n != 3
    if labeled:
        write_label_map(folder / path, reference)
    # The native file is stored with i to the left, as most CT is.
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = grid.shape[0] - 1
    return Case(
        case_id=case_id,
        subject_id=subject,
        image=image,
        reference=path if labeled else None,
        split=split,
        native=NativeFrame(Grid(grid.shape, grid.affine @ flip)),
        window=(-175.0, 275.0),
        scan_labels={"phase": ("native", "portal_venous", "unknown")[n % 3]},
        annotated=scheme.names if labeled else (),
    )


def _write_coverage(path: Path, cases: list[Case], organs: tuple[str, ...]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "organ", "found", "volume_ml", "dice"])
        for n, case in enumerate(cases):
            for organ in organs:
                found = not (organ == "gallbladder" and n % 3 == 0)
                dice = 0.71 if n < 3 and found else ""
                writer.writerow([case.case_id, organ, found, 12.5 if found else 0.0, dice])


def _write_losses(path: Path, networks: tuple[str, ...], generator: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(("network",) if networks else ()), "step", "loss"])
        for network in networks or ("",):
            for step in range(300):
                loss = 0.3 + np.exp(-step / 80) + 0.05 * generator.standard_normal()
                writer.writerow([*((network,) if networks else ()), step, loss])
