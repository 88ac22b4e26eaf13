from __future__ import annotations

import pytest
from listed_layout import touch, write_json

from sacl.cohort.layouts.listing import find
from sacl.errors import DataError


@pytest.fixture
def root(tmp_path):
    data = tmp_path / "Totalsegmentator_dataset"
    touch(data, "s0000/ct.nii.gz", "s0000/segmentations/liver.nii.gz")
    touch(data, "s0000/segmentations/kidney_left.nii.gz", "s0000/segmentations/._liver.nii.gz")
    touch(data, "s0001/ct.nii.gz", "s0001/segmentations/liver.nii.gz")
    touch(data, "s0002/ct.nii.gz", ".cache/ct.nii.gz", "notes/readme.txt")
    return data


def test_a_folder_per_scan_with_a_mask_per_organ_is_recognized(root):
    found, reason = find(root)
    assert reason == "folders like s0000 with ct.nii.gz and segmentations"
    assert (found.layout, found.name) == ("totalsegmentator", "Totalsegmentator_dataset")
    assert found.organs == {1: "kidney_left", 2: "liver"}
    assert {case.case_id: sorted(case.masks) for case in found.cases} == {
        "s0000": ["kidney_left", "liver"],
        "s0001": ["liver"],
        "s0002": [],
    }
    assert [case.has_reference for case in found.cases] == [True, True, False]
    assert found.cases[0].image.name == "ct.nii.gz"
    assert found.cases[0].masks["liver"].name == "liver.nii.gz"
    assert {case.split for case in found.cases} == {"train"}


def test_abdomen_atlas_has_the_same_layout_and_other_names(tmp_path):
    for n in (1, 2):
        touch(tmp_path, f"BDMAP_0000000{n}/ct.nii.gz")
        for organ in ("postcava", "gall_bladder", "kidney_left"):
            touch(tmp_path, f"BDMAP_0000000{n}/segmentations/{organ}.nii.gz")
    found, _ = find(tmp_path)
    assert [case.case_id for case in found.cases] == ["BDMAP_00000001", "BDMAP_00000002"]
    assert set(found.organs.values()) == {"postcava", "gall_bladder", "kidney_left"}


def test_mr_scans_say_that_they_are(root):
    touch(root, "s0003/mri.nii.gz", "s0004/mri.nii")
    found, _ = find(root)
    assert [case.modality for case in found.cases] == ["ct", "ct", "ct", "mr", "mr"]


def test_splits_and_scan_labels_come_from_the_meta_table(root):
    (root / "meta.csv").write_text(
        "image_id;age;study_type;split;phase\n"
        "s0000;65.0;ct abdomen;train;portal venous\n"
        "s0001;;ct thorax;val;\n"
        "s0002;40;polytrauma;test;native\n"
        "s9999;1;not here;test;native\n"
    )
    found, _ = find(root)
    assert [case.split for case in found.cases] == ["train", "validation", "test"]
    labels = [dict(case.scan_labels) for case in found.cases]
    assert labels[0] == {"age": "65_0", "study_type": "ct_abdomen", "phase": "portal_venous"}
    assert labels[1]["age"] == labels[1]["phase"] == "unknown"
    assert [case.origin for case in found.cases] == ["meta.csv"] * 3
    assert found.notes == ()


def test_a_scan_without_a_row_is_told_and_is_for_training(root):
    (root / "meta.csv").write_text("image_id;split\ns0000;test\n")
    found, _ = find(root)
    assert [case.split for case in found.cases] == ["test", "train", "train"]
    assert found.notes[0].startswith("2 scans have no row in meta.csv")


def test_the_phase_is_read_from_the_file_that_total_segmentator_writes(root):
    write_json(root / "s0000", {"pi_time": 70.1, "phase": "portal_venous"}, "contrast_phase.json")
    (root / "meta.csv").write_text("image_id;phase\ns0000;native\ns0001;native\n")
    found, _ = find(root)
    assert [c.scan_labels.get("phase") for c in found.cases] == ["portal_venous", "native", None]


def test_two_scans_in_one_folder_are_refused(root):
    touch(root, "s0001/mri.nii.gz")
    with pytest.raises(DataError, match=r"s0001: two scans, ct\.nii\.gz and mri\.nii\.gz"):
        find(root)


def test_a_split_that_is_none_is_refused(root):
    (root / "meta.csv").write_text("image_id;split\ns0000;holdout\n")
    with pytest.raises(DataError, match=r"meta\.csv: case s0000 has the split 'holdout'"):
        find(root)


def test_a_label_map_beside_the_scan_is_not_of_this_layout(tmp_path):
    touch(tmp_path, "a/ct.nii.gz", "b/ct.nii.gz")
    assert find(tmp_path)[0].layout == "totalsegmentator"
    touch(tmp_path, "b/label.nii.gz")
    write_json(tmp_path, {"liver": 1}, "labels.json")
    assert find(tmp_path)[0].layout == "folders"
