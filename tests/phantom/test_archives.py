"""Cohorts that are generated as the paper's would lie on a disk."""

import json

import nibabel
import numpy as np
import pytest

from sacl.cohort.layouts.listing import find
from sacl.files.nifti import read_labels, read_volume
from sacl.organs import BTCV_ORGANS, canonical_name
from sacl_phantom.__main__ import main
from sacl_phantom.archives import LAYOUTS, ArchiveRequest, write_archive

SHAPE = (32, 28, 18)
SMALL = {"shape": SHAPE, "spacing_mm": (12.0, 12.0, 18.0)}
WORDS = (
    *("--scans", "3", "--unlabeled", "1", "--shape", *map(str, SHAPE)),
    *("--spacing-mm", *map(str, SMALL["spacing_mm"])),
)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Return a small archive of each layout: three labeled scans and a further one."""
    root = tmp_path_factory.mktemp("archives")
    for layout in LAYOUTS:
        assert main([layout, "--out", str(root / layout), *WORDS]) == 0
    return root


def pairs(root, layout):
    """Return voxels and labels of a layout's labeled scans, as the program reads them."""
    dataset = find(root / layout)[0]
    labeled = [case for case in dataset.cases if case.reference]
    return dataset, [(read_volume(c.image)[0], read_labels(c.reference)[0]) for c in labeled]


@pytest.mark.parametrize(
    ("layout", "read_as", "first", "unlabeled"),
    [
        ("btcv", "btcv", "0001", "test"),
        ("flare21", "flare2021", "train_000", "validation"),
        ("hospital", "table", "ct_0000_nc", "train"),
    ],
)
def test_each_is_recognized_and_lies_as_the_original(roots, layout, read_as, first, unlabeled):
    dataset = find(roots / layout)[0]
    assert (dataset.layout, dataset.modality) == (read_as, None if layout == "hospital" else "ct")
    assert dataset.cases[0].case_id == first
    without = [case.split for case in dataset.cases if not case.has_reference]
    assert (without, len(dataset.cases)) == ([unlabeled], 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_label_values_lie_where_the_organs_are(roots, layout):
    dataset, scans = pairs(roots, layout)
    value = {canonical_name(organ): number for number, organ in dataset.organs.items()}
    for volume, labels in scans:
        assert set(np.unique(labels)) <= {0, *dataset.organs}
        assert volume.voxels.dtype == np.int16
        assert -1024 <= volume.voxels.min() < -900
        liver = labels == value["liver"]
        assert np.median(volume.voxels[liver]) == pytest.approx(80, abs=70)
        assert volume.grid.spacing_mm == pytest.approx(SMALL["spacing_mm"])
        # Canonical voxels run from the person's left to the right, where the liver lies.
        assert np.argwhere(liver)[:, 0].mean() > SHAPE[0] / 2


def test_kidneys_and_adrenal_glands_are_merged_where_the_originals_merge_them(roots):
    assert find(roots / "btcv")[0].organs == dict(enumerate(BTCV_ORGANS, start=1))
    assert find(roots / "flare21")[0].organs[2] == "kidneys"
    assert find(roots / "hospital")[0].organs[12] == "adrenal_glands"
    assert len(find(roots / "hospital")[0].organs) == 12


def test_traps_are_there(roots):
    images = sorted((roots / "btcv").rglob("img0*.nii.gz"))
    loaded = [nibabel.load(path) for path in images]
    assert {"".join(nibabel.aff2axcodes(image.affine)) for image in loaded} >= {"RAS", "LPS"}
    assert {float(image.dataobj.inter) for image in loaded} == {0.0, -1024.0}
    assert len({image.shape[2] for image in loaded}) > 1
    assert (roots / "flare21" / "TrainingMask" / "TrainingMask" / "train_000.nii.gz").is_file()


def test_a_person_of_the_hospital_has_two_phases(roots):
    cases = find(roots / "hospital")[0].cases
    by_subject = {}
    for case in cases:
        by_subject.setdefault(case.subject, set()).add(case.scan_labels["phase"])
    assert list(by_subject.values()) == [{"native", "portal_venous"}] * 2


def test_what_lies_there_is_kept_and_anything_else_is_refused(roots, tmp_path, capsys):
    request = ArchiveRequest(layout="btcv", scans=1, unlabeled=0, **SMALL)
    assert list(write_archive(tmp_path / "a", request)) == [None]
    [image] = (tmp_path / "a").rglob("img0001.nii.gz")
    image.write_bytes(b"kept")
    assert list(write_archive(tmp_path / "a", request)) == [None]
    assert image.read_bytes() == b"kept"
    assert main(["flare21", "--out", str(tmp_path / "a")]) == 2
    assert "holds something else" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    assert main(["btcv", "--out", str(tmp_path / "mine")]) == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_impossible_requests_are_refused_in_a_line(tmp_path, capsys):
    assert main(["btcv", "--out", str(tmp_path), "--scans", "0"]) == 2
    assert "expected one scan or more" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_fifty_scans_have_names_of_their_own():
    scans = LAYOUTS["btcv"](ArchiveRequest(layout="btcv", scans=60, unlabeled=20)).scans
    assert len({scan.image for scan in scans}) == 80
    names = {json.dumps(scan.image[-11:-7]) for scan in scans}
    assert len(names) == 80
