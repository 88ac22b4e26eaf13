"""Several datasets in one cohort: ids, subjects, organs, splits, scan-wise labels."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from sacl.cohort.manifest import read_cohort, read_reference
from sacl.errors import ConfigError
from sacl.run.record import state_of
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings
from sacl.stages.ingest import ingest, inputs

SHAPE = (8, 7, 6)
KIDNEY_RIGHT, KIDNEY_LEFT = (slice(1, 3),), (slice(5, 7),)
SPLEEN = (slice(4, 5), slice(0, 3))


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 5.0, 1.0])), path)


def nnunet(root, labels, parts, channel="CT", cases=("0001", "0002", "0003")):
    """Write a dataset whose label map has the given value at each part."""
    voxels = np.zeros(SHAPE, np.uint8)
    for value, part in parts.items():
        voxels[part] = value
    for n, case in enumerate(cases):
        image = np.random.default_rng(n).normal(40, 200, SHAPE).astype(np.int16)
        save(root / f"imagesTr/{case}_0000.nii.gz", image)
        save(root / f"labelsTr/{case}.nii.gz", voxels)
    document = {"channel_names": {"0": channel}, "labels": {"background": 0, **labels}}
    (root / "dataset.json").write_text(json.dumps(document))
    return root


@pytest.fixture
def coarse(tmp_path):
    parts = {1: KIDNEY_RIGHT, 2: SPLEEN}
    root = nnunet(tmp_path / "Coarse", {"Kidneys": 1, "spleen": 2}, parts)
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[KIDNEY_RIGHT] = voxels[KIDNEY_LEFT] = 1
    voxels[SPLEEN] = 2
    for case in ("0001", "0002", "0003"):
        save(root / f"labelsTr/{case}.nii.gz", voxels)
    (root / "scan_labels.csv").write_text(
        "case_id,subject_id,phase,split\n0001,1,native,train\n0002,2,portal,test\n"
    )
    return root


@pytest.fixture
def fine(tmp_path):
    root = nnunet(
        tmp_path / "Fine",
        {"right kidney": 3, "LK": 7, "aorta": 9},
        {3: KIDNEY_RIGHT, 7: KIDNEY_LEFT, 9: (slice(3, 4), slice(3, 4))},
        cases=("0001", "x"),
    )
    (root / "scan_labels.csv").write_text("case_id,subject_id\n0001,1\nx,9\n")
    return root


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work", seed=1)


def test_two_datasets_are_one_cohort(coarse, fine, workspace, capsys):
    settings = IngestSettings(data=(coarse, fine))
    folder = ingest(settings, workspace)
    cohort = read_cohort(folder)
    assert cohort.name == "Coarse+Fine"
    assert [(c.case_id, c.subject_id, c.split) for c in cohort.cases] == [
        ("Coarse_0001", "Coarse_1", "train"),
        ("0002", "2", "test"),
        ("0003", "0003", "train"),
        ("Fine_0001", "Fine_1", "train"),
        ("x", "9", "train"),
    ]
    labels = {case.case_id: dict(case.scan_labels) for case in cohort.cases}
    assert labels["0002"] == {"dataset": "coarse", "phase": "portal_venous"}
    assert labels["x"] == {"dataset": "fine"}
    told = capsys.readouterr().err
    assert "Coarse: layout nnunet" in told
    assert "Fine: layout nnunet" in told
    assert "dataset: coarse 3, fine 2" in told
    assert "2 cases that shared a name now have their dataset's name in front" in told
    assert state_of(workspace, "ingest", settings, inputs(settings, workspace)) == "current"


def test_organs_are_merged_to_the_coarser_and_missing_ones_are_unknown(
    coarse, fine, workspace, capsys
):
    folder = ingest(IngestSettings(data=(coarse, fine)), workspace)
    cohort = read_cohort(folder)
    assert cohort.scheme.names == ("kidneys", "spleen", "aorta")
    annotated = {case.case_id: case.annotated for case in cohort.cases}
    assert annotated["0003"] == ("kidneys", "spleen")
    assert annotated["x"] == ("kidneys", "aorta")
    told = capsys.readouterr().err
    assert "kidney_right and kidney_left are merged into kidneys" in told
    assert "unknown in the others: spleen 3, aorta 2" in told
    maps = {c.case_id: read_reference(folder, c, cohort.scheme) for c in cohort.cases}
    for case in ("0003", "x"):
        assert maps[case].mask("kidneys")[KIDNEY_RIGHT].all()
        assert maps[case].mask("kidneys")[KIDNEY_LEFT].all()
    assert maps["0003"].mask("spleen")[SPLEEN].all()
    assert maps["x"].mask("aorta").sum() == 6


def test_where_single_kidneys_are_wanted_merged_ones_are_unknown(coarse, fine, workspace):
    settings = IngestSettings(data=(coarse, fine), organs=("LK", "spleen"))
    folder = ingest(settings, workspace)
    cohort = read_cohort(folder)
    annotated = {case.case_id: case.annotated for case in cohort.cases}
    assert (annotated["0003"], annotated["x"]) == (("spleen",), ("kidney_left",))
    case = next(case for case in cohort.cases if case.case_id == "0003")
    assert set(np.unique(read_reference(folder, case, cohort.scheme).voxels)) == {0, 2}


def test_a_table_for_the_whole_cohort_is_read_beside_the_datasets_own(
    coarse, fine, workspace, tmp_path
):
    table = tmp_path / "mine.csv"
    table.write_text("case_id,subject_id,site\nFine_0001,2,a\n0002,2,b\nx,,\n")
    (coarse / "scan_labels.csv").write_text("case_id,phase\n0002,native\n")
    settings = IngestSettings(data=(coarse, fine), scan_labels=table)
    cohort = read_cohort(ingest(settings, workspace))
    cases = {case.case_id: case for case in cohort.cases}
    assert cases["Fine_0001"].subject_id == cases["0002"].subject_id == "2"
    assert cases["0002"].scan_labels["phase"] == "native"
    assert [cases[c].scan_label("site") for c in ("0002", "x")] == ["b", "unknown"]


def test_datasets_of_two_modalities_need_a_choice(coarse, tmp_path, workspace, capsys):
    other = nnunet(tmp_path / "Other", {"spleen": 1}, {1: SPLEEN}, channel="T2", cases=("m",))
    with pytest.raises(ConfigError, match=r"Coarse\+Other has 3 CT and 1 MR scans"):
        ingest(IngestSettings(data=(coarse, other)), workspace)
    cohort = read_cohort(ingest(IngestSettings(data=(coarse, other), modality="mr"), workspace))
    assert [case.case_id for case in cohort.cases] == ["m"]
    assert "1 MR scans are kept, 3 left out" in capsys.readouterr().err


def test_a_list_of_one_folder_is_that_folder(fine, workspace):
    cohort = read_cohort(ingest(IngestSettings(data=(fine,)), workspace))
    assert cohort.name == "Fine"
    assert all("dataset" not in case.scan_labels for case in cohort.cases)


def test_any_of_the_folders_makes_the_stage_stale(coarse, fine, workspace):
    settings = IngestSettings(data=(coarse, fine))
    ingest(settings, workspace)
    (fine / "scan_labels.csv").write_text("case_id,phase\nx,native\n")
    assert state_of(workspace, "ingest", settings, inputs(settings, workspace)) == "stale"


def test_a_column_says_what_is_annotated_in_a_scan(fine, workspace, tmp_path):
    (fine / "scan_labels.csv").write_text("case_id,annotated\n0001,aorta; right kidney\nx,\n")
    folder = ingest(IngestSettings(data=fine), workspace)
    cohort = read_cohort(folder)
    first, second = cohort.cases
    assert first.annotated == ("kidney_right", "aorta")
    assert second.annotated == ("kidney_right", "kidney_left", "aorta")
    label_map = read_reference(folder, first, cohort.scheme)
    assert set(np.unique(label_map.voxels)) == {0, 1, 3}
    assert "annotated" not in first.scan_labels


@pytest.mark.real_data
def test_two_real_datasets_are_one_cohort(real_data, workspace):
    names = ("Dataset027_ACDC", "Dataset004_Hippocampus")
    folder = ingest(IngestSettings(data=tuple(real_data / name for name in names)), workspace)
    cohort = read_cohort(folder)
    assert cohort.scheme.names[:3] == ("right_ventricle", "myocardium", "left_ventricle")
    assert cohort.scheme.names[3:] == ("anterior", "posterior")
    annotated = {c.scan_label("dataset"): c.annotated for c in cohort.cases if c.annotated}
    assert annotated["acdc"] == cohort.scheme.names[:3]
    assert annotated["hippocampus"] == cohort.scheme.names[3:]
    assert len({case.case_id for case in cohort.cases}) == 280
