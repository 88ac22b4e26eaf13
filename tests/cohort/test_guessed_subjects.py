"""Scans of one person stay in one split, also where no table says who is who."""

from __future__ import annotations

import pytest
from listed_layout import touch, write_json

from sacl.cohort.layouts.listing import Sources, list_sources
from sacl.cohort.merging import person_in
from sacl.cohort.splits import SplitRules, choose_splits
from sacl.errors import DataError
from sacl.types import SPLITS


@pytest.mark.parametrize(
    ("case_id", "person"),
    [
        ("patient003_frame01", "patient003"),
        ("patient003_ED", "patient003"),
        ("patient003-es", "patient003"),
        ("case12_t0", "case12"),
        ("p7_visit2_left", "p7"),
        ("knee_0031_R", "knee_0031"),
        ("sub-01_ses-02_T1w", "sub-01"),
        ("S12_20190430", "S12"),
        ("P01_baseline", "P01"),
        ("P01_followup1", "P01"),
    ],
)
def test_marks_of_frame_visit_side_and_date_are_not_of_the_person(case_id, person):
    assert person_in(case_id) == person


@pytest.mark.parametrize(
    "case_id",
    [
        "hippocampus_003",
        "okbp_001",
        "amos_0001",
        "s0001",
        "liver_left",
        "scan_2",
        "img0007",
        "t_1",
        "train_000",
        "colon_t1",
        "phantom_0007",
        "case_00012",
        "LUNG1-001",
        "BRATS_485",
        "A_T1",
        "S12_20191345",
    ],
)
def test_plain_numbers_speak_of_different_people(case_id):
    assert person_in(case_id) == case_id


def frames(root, people=6):
    write_json(root, {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}})
    for n in range(people):
        for frame in ("frame01", "frame02"):
            name = f"patient{n:03d}_{frame}"
            touch(root, f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz")
    return root


def test_frames_of_a_person_never_stand_in_two_splits(tmp_path):
    dataset, _ = list_sources(Sources((frames(tmp_path),)))
    (note,) = (note for note in dataset.notes if "guessed" in note)
    assert "12 scans are of 6 subjects, such as patient000_frame01 and patient000_frame02" in note
    assert "--ingest.scan_labels" in note
    held_out, labeled = choose_splits(dataset, SplitRules(2, 1, 2), seed=0)
    people = [{c.subject for c in held_out.cases if c.split == split} for split in SPLITS]
    assert [len(each) for each in people] == [3, 2, 1]
    assert len(set.union(*people)) == 6
    assert len(labeled) == 2


def test_a_table_says_better_than_the_names(tmp_path):
    root = frames(tmp_path, people=1)
    (root / "subjects.csv").write_text(
        "case_id,subject_id\npatient000_frame01,anna\npatient000_frame02,otto\n"
    )
    dataset, _ = list_sources(Sources((root,)))
    assert [case.subject for case in dataset.cases] == ["anna", "otto"]
    assert not any("guessed" in note for note in dataset.notes)


def test_a_person_whom_the_data_itself_parts_is_refused(tmp_path):
    root = frames(tmp_path, people=2)
    touch(root, "imagesTs/patient000_frame03_0000.nii.gz")
    with pytest.raises(DataError, match=r"patient000 is in two splits.*name the subjects in a tab"):
        list_sources(Sources((root,)))


def test_equal_names_in_two_datasets_are_different_people(tmp_path):
    for name in ("one", "two"):
        root = frames(tmp_path / name, people=1)
        for path in [*root.rglob("*.nii.gz")]:
            path.rename(path.with_name(path.name.replace("frame0", f"t{len(name + name[0])}")))
    touch(tmp_path / "two", "imagesTr/patient000_t9_0000.nii.gz")
    dataset, _ = list_sources(Sources((tmp_path / "one", tmp_path / "two")))
    subjects = {case.subject for case in dataset.cases}
    assert len(subjects) == 2


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "subjects"),
    [("Dataset027_ACDC", 80), ("Dataset004_Hippocampus", 100), ("Dataset061_OpenKBP", 100)],
)
def test_no_person_of_a_real_cohort_is_in_two_splits(real_data, folder, subjects):
    dataset, _ = list_sources(Sources((real_data / folder,)))
    assert len({case.subject for case in dataset.cases}) == subjects
    assert not any("guessed" in note for note in dataset.notes)
    validation = 0 if any(case.split == "validation" for case in dataset.cases) else 20
    held_out, _ = choose_splits(dataset, SplitRules(validation, 10, 5), seed=3)
    people = [{c.subject for c in held_out.cases if c.split == split} for split in SPLITS]
    assert sum(map(len, people)) == subjects


@pytest.mark.real_data
def test_acdc_without_its_table_is_guessed_right(real_data, tmp_path):
    source = real_data / "Dataset027_ACDC"
    for part in ("dataset.json", "imagesTr", "labelsTr", "imagesVa", "labelsVa"):
        (tmp_path / part).symlink_to(source / part)
    dataset, _ = list_sources(Sources((tmp_path,)))
    assert len({case.subject for case in dataset.cases}) == 80
