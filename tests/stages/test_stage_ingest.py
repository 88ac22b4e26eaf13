from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sacl.cohort.layouts.listing import PHANTOM
from sacl.cohort.manifest import read_cohort, read_image, read_reference
from sacl.errors import ConfigError
from sacl.files.nifti import read_label_table
from sacl.geometry import same_grid
from sacl.run.record import recorded, state_of
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings, PhantomSettings
from sacl.stages.ingest import ingest, inputs
from sacl.types import SPLITS

LPS = np.diag([-1.5, -1.5, 5.0, 1.0])
LPS[:3, 3] = (90.0, 60.0, -300.0)
ORGANS = {"background": 0, "right kidney": 2, "LK": 5, "postcava": 7}


def scan(seed):
    voxels = np.random.default_rng(seed).normal(40, 200, (8, 7, 6)).astype(np.int16)
    voxels[0] = -1000
    return voxels


def reference():
    voxels = np.zeros((8, 7, 6), np.uint8)
    voxels[1:3, 2:4] = 2
    voxels[5:7, 2:4] = 5
    voxels[4, 5, 1:4] = 7
    return voxels


def save(path, voxels, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def dataset(root, subjects=6, unlabeled=2, channel="CT"):
    """Write an nnU-Net dataset of two phases per subject, the last subjects without reference."""
    rows = ["case_id,subject_id,phase"]
    for n in range(subjects):
        for phase in ("native", "portal"):
            case = f"s{n}_{phase}"
            save(root / f"imagesTr/{case}_0000.nii.gz", scan(n))
            if n < subjects - unlabeled:
                save(root / f"labelsTr/{case}.nii.gz", reference())
            rows.append(f"{case},s{n},{phase}")
    (root / "scan_labels.csv").write_text("\n".join(rows))
    document = {"channel_names": {"0": channel}, "labels": ORGANS, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(document))
    return root


@pytest.fixture
def data(tmp_path):
    return dataset(tmp_path / "Dataset007_Kidneys")


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work", seed=1)


def test_scans_become_canonical_and_know_their_way_back(data, workspace):
    folder = ingest(IngestSettings(data=data), workspace)
    cohort = read_cohort(folder)
    assert len(cohort.cases) == 12
    assert cohort.scheme.names == ("kidney_right", "kidney_left", "inferior_vena_cava")
    case = next(c for c in cohort.cases if c.case_id == "s3_portal")
    image = read_image(folder, case)
    assert image.voxels.dtype == np.int16
    np.testing.assert_array_equal(image.voxels, scan(3)[::-1, ::-1])
    np.testing.assert_allclose(np.diag(image.grid.affine), (1.5, 1.5, 5, 1))
    np.testing.assert_array_equal(case.native.grid.affine, LPS)


def test_label_values_become_contiguous(data, workspace):
    folder = ingest(IngestSettings(data=data), workspace)
    cohort = read_cohort(folder)
    label_map = read_reference(folder, cohort.cases[0], cohort.scheme)
    expected = np.select([reference() == 2, reference() == 5, reference() == 7], [1, 2, 3])
    np.testing.assert_array_equal(label_map.voxels, expected[::-1, ::-1])
    assert same_grid(label_map.grid, read_image(folder, cohort.cases[0]).grid)
    names = read_label_table(folder / cohort.cases[0].reference)
    assert names == {"kidney_right": 1, "kidney_left": 2, "inferior_vena_cava": 3}


def test_organs_are_kept_by_alias_in_the_order_given(data, workspace):
    folder = ingest(IngestSettings(data=data, organs=("IVC", "left kidney")), workspace)
    cohort = read_cohort(folder)
    assert cohort.scheme.names == ("inferior_vena_cava", "kidney_left")
    label_map = read_reference(folder, cohort.cases[0], cohort.scheme)
    expected = np.select([reference() == 7, reference() == 5], [1, 2])
    np.testing.assert_array_equal(label_map.voxels, expected[::-1, ::-1])


def test_sides_merge_where_a_coarser_organ_is_wanted(data, workspace):
    folder = ingest(IngestSettings(data=data, organs=("kidneys",)), workspace)
    cohort = read_cohort(folder)
    label_map = read_reference(folder, cohort.cases[0], cohort.scheme)
    expected = np.isin(reference(), (2, 5))
    np.testing.assert_array_equal(label_map.mask("kidneys"), expected[::-1, ::-1])


def test_an_organ_that_is_not_annotated_is_refused(data, workspace):
    with pytest.raises(ConfigError, match="no organ 'spleen' in Dataset007_Kidneys; it has right"):
        ingest(IngestSettings(data=data, organs=("LK", "spleen")), workspace)


def test_unlabeled_scans_have_subject_and_scan_labels_but_no_reference(data, workspace):
    cohort = read_cohort(ingest(IngestSettings(data=data), workspace))
    case = next(c for c in cohort.cases if c.case_id == "s5_portal")
    assert (case.subject_id, case.reference) == ("s5", None)
    assert case.scan_label("phase") == "portal_venous"
    assert case.annotated == ()
    assert len(cohort.labeled) == 8
    assert cohort.labeled[0].annotated == cohort.scheme.names


def test_references_that_are_not_chosen_are_not_on_disk(data, workspace):
    folder = ingest(IngestSettings(data=data, labeled_subjects=1, validation_subjects=1), workspace)
    cohort = read_cohort(folder)
    assert len({case.subject_id for case in cohort.labeled}) == 1
    assert len(cohort.of_split("validation")) == 2
    written = {path.name for path in (folder / "references").iterdir()}
    seen = [*cohort.labeled, *cohort.of_split("validation")]
    assert written == {Path(case.reference).name for case in seen}
    assert all(c.reference is None for c in cohort.of_split("train") if c not in cohort.labeled)


def test_a_given_order_decides_who_is_labeled(data, workspace, tmp_path):
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"train_subjects_in_order": ["s3", "s0", "s1"]}))
    settings = IngestSettings(data=data, labeled_order=order, labeled_subjects=2)
    cohort = read_cohort(ingest(settings, workspace))
    assert {case.subject_id for case in cohort.labeled} == {"s3", "s0"}


def test_other_seeds_label_other_subjects(data, tmp_path):
    chosen = set()
    for seed in range(8):
        workspace = Workspace(tmp_path / f"work{seed}", seed=seed)
        cohort = read_cohort(ingest(IngestSettings(data=data, labeled_subjects=1), workspace))
        chosen.add(cohort.labeled[0].subject_id)
    assert len(chosen) > 1


def test_ct_is_windowed_in_hu(data, workspace):
    cohort = read_cohort(ingest(IngestSettings(data=data, window_hu=(-100, 200)), workspace))
    assert cohort.modality == "ct"
    assert {case.window for case in cohort.cases} == {(-100.0, 200.0)}


def test_mr_is_windowed_by_percentiles_of_what_is_not_background(tmp_path, workspace):
    data = dataset(tmp_path / "mr", channel="MRI")
    voxels = np.zeros((8, 7, 6), np.int16)
    voxels[2:6] = np.arange(100, 268).reshape(4, 7, 6)
    save(data / "imagesTr/s0_native_0000.nii.gz", voxels)
    cohort = read_cohort(ingest(IngestSettings(data=data), workspace))
    assert cohort.modality == "mr"
    assert cohort.cases[0].window == pytest.approx((100.835, 266.165))


def test_a_binary_mr_image_is_windowed_from_end_to_end(tmp_path, workspace):
    data = dataset(tmp_path / "mr", channel="MRI")
    save(data / "imagesTr/s0_native_0000.nii.gz", (reference() > 0).astype(np.int16))
    cohort = read_cohort(ingest(IngestSettings(data=data), workspace))
    assert cohort.cases[0].window == (0.0, 1.0)


@pytest.mark.parametrize(("shift", "modality"), [(0, "ct"), (1000, "mr")])
def test_the_modality_is_guessed_by_air_and_told(tmp_path, workspace, capsys, shift, modality):
    save(tmp_path / "scans/a.nii.gz", (scan(0).clip(-1000) + shift).astype(np.int16))
    settings = IngestSettings(data=tmp_path / "scans", organs=("liver", "IVC"))
    cohort = read_cohort(ingest(settings, workspace))
    assert cohort.modality == modality
    assert f"taken as {modality.upper()}" in capsys.readouterr().err


def test_a_plain_folder_needs_the_organs_named(tmp_path, workspace):
    save(tmp_path / "scans/a.nii.gz", scan(0))
    with pytest.raises(ConfigError, match="scans names no organs; list those to segment"):
        ingest(IngestSettings(data=tmp_path / "scans"), workspace)
    settings = IngestSettings(data=tmp_path / "scans", organs=("liver", "IVC"))
    cohort = read_cohort(ingest(settings, workspace))
    assert cohort.scheme.names == ("liver", "inferior_vena_cava")
    assert [(case.case_id, case.split, case.reference) for case in cohort.cases] == [
        ("a", "train", None)
    ]


def test_how_the_data_was_read_is_told(data, workspace, capsys):
    ingest(IngestSettings(data=data), workspace)
    told = capsys.readouterr().err
    assert "Dataset007_Kidneys: layout nnunet, recognized by dataset.json" in told
    assert "the data's own scan_labels.csv" in told
    assert "train 12 scans, 8 with reference" in told


def test_no_file_holds_a_path_outside_the_work_directory(data, workspace, tmp_path):
    folder = ingest(IngestSettings(data=data, scan_labels=data / "scan_labels.csv"), workspace)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".gz":
            assert str(tmp_path).encode() not in path.read_bytes()


def test_the_stage_is_current_until_data_or_settings_change(data, workspace):
    settings = IngestSettings(data=data)
    ingest(settings, workspace)
    assert state_of(workspace, "ingest", settings, inputs(settings, workspace)) == "current"
    (data / "scan_labels.csv").write_text("case_id,phase\ns0_native,native\n")
    assert state_of(workspace, "ingest", settings, inputs(settings, workspace)) == "stale"


def test_a_phantom_in_the_work_directory_is_the_data(workspace):
    phantom = workspace.folder("phantom")
    with pytest.raises(ConfigError, match="no data to read"):
        inputs(IngestSettings(), workspace)
    with recorded(workspace, "phantom", PhantomSettings(scans=12), {}):
        dataset(phantom / PHANTOM)
    assert list(inputs(IngestSettings(), workspace)) == ["phantom"]
    assert len(read_cohort(ingest(IngestSettings(), workspace)).cases) == 12


def test_the_records_counts_are_those_of_the_cohort(data, workspace):
    folder = ingest(IngestSettings(data=data, labeled_subjects=2, test_subjects=1), workspace)
    results = json.loads((folder / "run.json").read_text())["results"]
    assert results["train"] == {"cases": 10, "subjects": 5, "with_reference": 4}
    assert results["test"] == {"cases": 2, "subjects": 1, "with_reference": 2}
    assert len(results["labeled_subjects"]) == 2


@pytest.mark.real_data
def test_acdc_is_read_with_its_own_labeled_subjects(real_data, workspace):
    data = real_data / "Dataset027_ACDC"
    settings = IngestSettings(
        data=data, labeled_order=data / "few_label_split.json", labeled_subjects=3
    )
    folder = ingest(settings, workspace)
    cohort = read_cohort(folder)
    assert cohort.modality == "mr"
    assert (len(cohort.of_split("train")), len(cohort.of_split("validation"))) == (140, 20)
    assert {c.subject_id for c in cohort.labeled} == {"patient099", "patient038", "patient050"}
    assert {c.scan_label("phase") for c in cohort.cases} == {"end_diastole", "end_systole"}
    label_map = read_reference(folder, cohort.labeled[0], cohort.scheme)
    assert set(np.unique(label_map.voxels)) == {0, 1, 2, 3}


@pytest.mark.real_data
def test_hippocampus_holds_out_validation_subjects(real_data, workspace):
    settings = IngestSettings(
        data=real_data / "Dataset004_Hippocampus", validation_subjects=40, labeled_subjects=6
    )
    cohort = read_cohort(ingest(settings, workspace))
    subjects = {split: {c.subject_id for c in cohort.of_split(split)} for split in SPLITS}
    assert {split: len(people) for split, people in subjects.items()} == {
        "train": 60,
        "validation": 40,
        "test": 0,
    }
    assert len({case.subject_id for case in cohort.labeled}) == 6
    assert all(case.reference for case in cohort.of_split("validation"))


@pytest.mark.real_data
def test_a_real_ct_is_read_from_a_table(real_data, tmp_path, workspace):
    source = real_data / "TotalSegmentator_CT"
    rows = f"case_id,image,label\nct,{source}/ct_3mm.nii.gz,{source}/segmentation_3mm.nii.gz\n"
    (tmp_path / "cohort.csv").write_text(rows)
    (tmp_path / "labels.json").write_text((source / "labels.json").read_text())
    settings = IngestSettings(data=tmp_path / "cohort.csv", organs=("liver", "kidneys", "spleen"))
    folder = ingest(settings, workspace)
    cohort = read_cohort(folder)
    assert cohort.modality == "ct"
    label_map = read_reference(folder, cohort.cases[0], cohort.scheme)
    assert set(np.unique(label_map.voxels)) == {0, 1, 2, 3}
