"""A cohort of boxes in six small scans, ingested and located: what the patch stages start from."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sacl.cohort.manifest import write_cohort
from sacl.files.nifti import write_label_map, write_volume
from sacl.run.record import recorded
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings, LocateSettings
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

SCHEME = LabelScheme("toy", ("liver", "aorta"))
SHAPE, SPACING_MM = (48, 40, 12), (2.0, 2.0, 5.0)
WINDOW = (-175.0, 275.0)
LABELED = (0, 1, 5)
"""Cases with a reference: two of training, of which the second annotates the liver only."""


def toy_grid() -> Grid:
    """Return the grid of every scan."""
    return Grid(SHAPE, np.diag([*SPACING_MM, 1.0]))


def toy_scan(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and labels of one scan; the aorta is bright in every other one."""
    rng = np.random.default_rng(number)
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:30, 8:30, 2:9] = 1
    labels[32:38, 10:17, 1:11] = 2
    image = rng.normal(0, 20, SHAPE)
    image[labels == 1] += 60
    image[labels == 2] += 40 + 100 * (number % 2)
    return image.astype(np.int16), labels


def locate_toy_cohort(root: Path, phases: bool = True, empty_maps: bool = False) -> Workspace:
    """Return a work directory with the stages ingest and locate done by hand."""
    workspace = Workspace(root, device="cpu")
    with (
        recorded(workspace, "ingest", IngestSettings(), {}) as (folder, _),
        recorded(workspace, "locate", LocateSettings(), {}) as (coarse, _),
    ):
        cases = []
        for number in range(6):
            image, labels = toy_scan(number)
            name = f"case-{number}"
            write_volume(folder / "images" / f"{name}.nii", Volume(image, toy_grid()))
            reference = f"references/{name}.nii.gz" if number in LABELED else None
            if reference:
                write_label_map(folder / reference, LabelMap(labels, toy_grid(), SCHEME))
            found = np.zeros_like(labels) if empty_maps else labels
            write_label_map(coarse / "maps" / f"{name}.nii.gz", LabelMap(found, toy_grid(), SCHEME))
            cases.append(
                Case(
                    case_id=name,
                    subject_id=f"subject-{number}",
                    image=f"images/{name}.nii",
                    reference=reference,
                    split="train" if number < 4 else "test",
                    native=NativeFrame(toy_grid()),
                    window=WINDOW,
                    scan_labels={"phase": ("native", "portal_venous")[number % 2]}
                    if phases
                    else {},
                    annotated=("liver",) if number == 1 else ("liver", "aorta"),
                )
            )
        write_cohort(folder, Cohort("toy", SCHEME, tuple(cases)))
    return workspace


@contextmanager
def interrupted_at_step_two(views, monkeypatch):
    """Expect the body to be interrupted where its training draws the views of step 2."""
    draw = views.draw

    def dies_at_step_two(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return draw(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(views, "draw", dies_at_step_two)
        yield
