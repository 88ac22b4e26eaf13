"""A cohort of two bright blocks per scan, ingested and located: what fine-tuning starts from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from sacl.cohort.manifest import write_cohort
from sacl.files.nifti import write_label_map, write_volume
from sacl.run.record import recorded
from sacl.run.workspace import Workspace
from sacl.settings import (
    DenseSettings,
    FinetuneSettings,
    IngestSettings,
    LocateSettings,
    QuerySettings,
)
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

SCHEME = LabelScheme("two", ("liver", "spleen"))
SHAPE = (40, 36, 5)
NATIVE = np.array([[-2.0, 0, 0, 39], [0, 2, 0, -36], [0, 0, 5, 7], [0, 0, 0, 1]])


def write_case(folder: Path, number: int) -> Case:
    """Write one scan of two bright blocks, of which the file was stored right to left."""
    rng = np.random.default_rng(number)
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:17, 8 + number % 4 : 22, 0:4] = 1
    labels[24:34, 14 : 24 + number % 3, 1:5] = 2
    image = (100.0 * labels + rng.normal(0, 20, SHAPE)).astype(np.int16)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[:3, 3] = (-39, -36, 7)
    grid = Grid(SHAPE, affine)
    case_id, split = f"case-{number}", "train" if number < 3 else "test"
    write_volume(folder / f"images/{case_id}.nii", Volume(image, grid))
    write_label_map(folder / f"references/{case_id}.nii.gz", LabelMap(labels, grid, SCHEME))
    coarse = np.roll(labels, 1, axis=0)
    write_label_map(
        folder.parent / f"2-coarse/maps/{case_id}.nii.gz", LabelMap(coarse, grid, SCHEME)
    )
    return Case(
        case_id=case_id,
        subject_id=case_id,
        image=f"images/{case_id}.nii",
        reference=f"references/{case_id}.nii.gz" if number != 2 else None,
        split=split,
        native=NativeFrame(Grid(SHAPE, NATIVE)),
        window=(-50.0, 250.0),
        scan_labels={"phase": "native"},
        annotated=SCHEME.names,
    )


def locate_blocks(root: Path) -> Workspace:
    """Return a work directory with five scans and their coarse maps, two of them held out."""
    workspace = Workspace(root, seed=1, device="cpu")
    settings = IngestSettings(window_hu=(-50.0, 250.0))
    with (
        recorded(workspace, "locate", LocateSettings(), {}) as (_, located),
        recorded(workspace, "ingest", settings, {}) as (folder, _),
    ):
        located["given"] = {}
        cases = tuple(write_case(folder, number) for number in range(5))
        cohort = Cohort("blocks", SCHEME, cases, window_hu=settings.window_hu)
        write_cohort(folder, cohort)
    return workspace


def copy_of(workspace: Workspace, path: Path) -> Workspace:
    """Return a copy of a work directory, to be changed."""
    shutil.copytree(workspace.root, path)
    return Workspace(path, seed=workspace.seed, device="cpu")


def settings_of(head: str, steps: int = 2, teacher_steps: int = 0, **changes) -> FinetuneSettings:
    """Return settings of a very short fine-tuning."""
    block = DenseSettings(teacher_steps=teacher_steps) if head == "dense" else QuerySettings()
    given = {head: block, **changes}
    return FinetuneSettings(steps=steps, batch=4, augment="mild", **given)
