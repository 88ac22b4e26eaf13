"""The phantom stage: a cohort on disk in nnU-Net raw layout."""

import csv
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import sacl_phantom.cohort
from sacl.errors import ConfigError
from sacl.files.nifti import read_label_map, read_label_table, read_volume
from sacl.geometry import orientation_of
from sacl.run.record import state_of
from sacl.run.workspace import Workspace
from sacl.settings import PhantomSettings
from sacl.stages.phantom import inputs, phantom
from sacl_phantom import ORGANS, PHASES, SCHEME, make_scan
from sacl_phantom.cohort import plan_cohort

SETTINGS = PhantomSettings(scans=7, shape=(40, 32, 12))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("work"), seed=3)
    phantom(SETTINGS, workspace)
    return workspace


@pytest.fixture(scope="module")
def root(workspace) -> Path:
    return workspace.folder("phantom") / "Dataset900_Phantom"


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "scan_labels.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_scan_has_its_image_label_map_and_row(root):
    images = {path.name.removesuffix("_0000.nii.gz") for path in root.glob("images*/*.nii.gz")}
    labels = {path.name.removesuffix(".nii.gz") for path in root.glob("labels*/*.nii.gz")}
    assert images == labels == {row["case_id"] for row in rows(root)}
    assert len(images) == 7
    assert {row["phase"] for row in rows(root)} <= set(PHASES)


def test_the_dataset_file_names_organs_in_the_order_of_btcv(root):
    dataset = json.loads((root / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "CT"}
    assert dataset["labels"] == {"background": 0} | {o: n for n, o in enumerate(ORGANS, 1)}
    assert dataset["file_ending"] == ".nii.gz"
    assert dataset["numTraining"] == len(list((root / "imagesTr").iterdir()))


def test_files_read_back_as_the_scan_that_was_generated(root):
    scan = next(s for s in plan_cohort(7, 3) if s.number == 2)
    suffix = {"train": "Tr", "validation": "Va", "test": "Ts"}[scan.split]
    volume, _ = read_volume(root / f"images{suffix}" / f"{scan.case_id}_0000.nii.gz")
    path = root / f"labels{suffix}" / f"{scan.case_id}.nii.gz"
    labels, _ = read_label_map(path, SCHEME)
    made = make_scan(
        30_002, scan.phase, SETTINGS.shape, SETTINGS.spacing_mm, 18.0, 30_000 + scan.subject
    )
    assert np.array_equal(volume.voxels, made.image.voxels)
    assert np.array_equal(labels.voxels, made.labels.voxels)
    assert volume.grid.affine == pytest.approx(made.image.grid.affine, abs=1e-4)
    assert read_label_table(path) is not None


def test_files_are_stored_in_several_orientations(root):
    frames = [read_volume(path)[1] for path in sorted(root.glob("images*/*.nii.gz"))]
    flips = {tuple(flip for _, flip in orientation_of(frame.grid)) for frame in frames}
    assert flips == {(False, False, False), (True, False, False), (True, True, False)}


def test_stage_is_up_to_date_afterward(workspace):
    assert inputs(SETTINGS, workspace) == {}
    assert state_of(workspace, "phantom", SETTINGS, {}) == "current"


def test_refuses_an_empty_cohort_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="scans is 0"):
        phantom(PhantomSettings(scans=0), Workspace(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("scans", [1, 2, 9, 40, 150])
def test_a_plan_has_as_many_scans_as_asked_and_no_subject_in_two_splits(scans):
    planned = plan_cohort(scans, 1)
    assert len(planned) == scans == len({scan.case_id for scan in planned})
    split_of = {}
    for scan in planned:
        assert split_of.setdefault(scan.subject, scan.split) == scan.split
    assert "train" in split_of.values()
    assert max(Counter((s.subject, s.phase) for s in planned).values()) == 1


def test_a_plan_is_balanced():
    planned = plan_cohort(150, 1)
    subjects = {scan.subject: scan.split for scan in planned}
    share = {split: n / len(subjects) for split, n in Counter(subjects.values()).items()}
    assert share["test"] == pytest.approx(0.25, abs=0.02)
    assert share["validation"] == pytest.approx(0.125, abs=0.02)
    for split in share:
        phases = Counter(scan.phase for scan in planned if scan.split == split)
        assert max(phases.values()) - min(phases[phase] for phase in PHASES) <= 2
    assert set(Counter(scan.subject for scan in planned).values()) == {1, 2, 3}


def test_a_plan_is_the_seed_s():
    assert plan_cohort(20, 4) == plan_cohort(20, 4)
    assert plan_cohort(20, 4) != plan_cohort(20, 5)


def test_an_interrupt_waits_for_the_scans_under_way_only(tmp_path, monkeypatch):
    begun = []

    def dies_at_the_second(_root, scan, *_):
        begun.append(scan.number)
        if scan.number == 1:
            raise KeyboardInterrupt
        time.sleep(0.1)

    monkeypatch.setattr(sacl_phantom.cohort, "_generate", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        phantom(PhantomSettings(scans=40), Workspace(tmp_path))
    assert len(begun) <= 10
