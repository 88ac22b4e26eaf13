from __future__ import annotations

import pytest

from sacl.organs import canonical_name, is_complete, match, side_pairs, snake_case, wholes


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("gall_bladder", "gallbladder"),
        ("Gall Bladder", "gallbladder"),
        ("postcava", "inferior_vena_cava"),
        ("IVC", "inferior_vena_cava"),
        ("right kidney", "kidney_right"),
        ("RK", "kidney_right"),
        ("kidney (left)", "kidney_left"),
        ("Kidney-L", "kidney_left"),
        ("kidney", "kidneys"),
        ("lungs", "lungs"),
        ("PSV", "portal_vein_and_splenic_vein"),
        ("portal vein & splenic vein", "portal_vein_splenic_vein"),
        ("RAD", "adrenal_gland_right"),
        ("left adrenal", "adrenal_gland_left"),
        ("oesophagus", "esophagus"),
        ("right_ventricle", "right_ventricle"),
        ("heart_ventricle_right", "right_ventricle"),
        ("heart_myocardium", "myocardium"),
        ("small_intestine", "small_bowel"),
        ("Left-Lateral-Ventricle", "lateral_ventricle_left"),
        ("myocardium", "myocardium"),
    ],
)
def test_aliases_have_one_spelling(written, canonical):
    assert canonical_name(written) == canonical_name(canonical)
    assert canonical_name(written) in (canonical, "portal_vein_and_splenic_vein")


@pytest.mark.parametrize("name", ["RK", "kidney", "left atrium", "rib_left_3", "PSV", "adrenals"])
def test_canonical_names_are_their_own_canonical_name(name):
    assert canonical_name(canonical_name(name)) == canonical_name(name)


def test_snake_case_keeps_letters_and_digits_only():
    assert snake_case(" End-diastole (ED) 2 ") == "end_diastole_ed_2"


def test_pairs_are_named_left_first_in_the_callers_own_words():
    names = ["liver", "RK", "adrenal_gland_left", "left kidney", "adrenal_gland_right", "lung_left"]
    assert side_pairs(names) == [
        ("adrenal_gland_left", "adrenal_gland_right"),
        ("left kidney", "RK"),
    ]


def test_a_side_within_the_name_makes_a_pair():
    assert side_pairs(["rib_left_1", "rib_right_1", "rib_right_2"]) == [
        ("rib_left_1", "rib_right_1")
    ]


def test_the_hearts_chambers_are_no_mirror_images():
    assert side_pairs(["left_ventricle", "right_ventricle", "left atrium", "right atrium"]) == []


def test_both_kidneys_merge_into_a_coarser_scheme():
    assert match(["kidney_left", "right kidney", "skin"], ["kidneys"]) == {
        "kidney_left": "kidneys",
        "right kidney": "kidneys",
    }


def test_merged_kidneys_do_not_become_a_left_one():
    assert match(["kidneys"], ["kidney_left", "kidney_right"]) == {}


def test_a_side_that_is_wanted_itself_is_not_merged():
    assert match(["LK", "RK"], ["kidneys", "kidney_left"]) == {"LK": "kidney_left", "RK": "kidneys"}


def test_a_part_with_another_name_is_not_merged():
    assert match(["kidney_cyst_left", "kidney_left"], ["kidneys"]) == {"kidney_left": "kidneys"}


def test_lobes_are_parts_of_a_lung_and_of_both():
    lobes = ["lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"]
    assert match([*lobes, "lung_left"], ["lungs"]) == dict.fromkeys([*lobes, "lung_left"], "lungs")
    assert match(lobes, ["lung_right"]) == dict.fromkeys(lobes, "lung_right")
    assert match(lobes, ["lung_left"]) == {}
    assert wholes("lung_middle_lobe_right") == ["lung_middle_lobe", "lung_right", "lungs"]


@pytest.mark.parametrize(
    ("organ", "names", "complete"),
    [
        ("kidneys", {"kidney_left", "kidney_right"}, True),
        ("kidneys", {"kidney_left"}, False),
        ("kidneys", {"kidneys"}, True),
        ("kidney_left", {"kidneys"}, False),
        ("LK", {"kidney_left"}, True),
        ("liver", {"spleen"}, False),
        ("lungs", {"lung_left", "lung_upper_lobe_right", "lung_lower_lobe_right"}, False),
        (
            "lungs",
            {
                "lung_left",
                "lung_upper_lobe_right",
                "lung_middle_lobe_right",
                "lung_lower_lobe_right",
            },
            True,
        ),
        ("ventricle", {"left_ventricle", "right_ventricle"}, False),
        ("femur", {"femur_left", "femur_right"}, True),
    ],
)
def test_a_whole_is_there_when_all_of_its_parts_are(organ, names, complete):
    assert is_complete(organ, names) is complete


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("RightParotid", "parotid_right"),
        ("Parotid_L", "parotid_left"),
        ("SpinalCord", "spinal_cord"),
        ("BrainStem", "brainstem"),
        ("Glnd_Submand_R", "submandibular_gland_right"),
        ("OpticNrv_L", "optic_nerve_left"),
        ("Bone_Mandible", "mandible"),
        ("R Kidney", "kidney_right"),
        ("kidney-L", "kidney_left"),
        ("LKidney", "kidney_left"),
        ("Rt Kidney", "kidney_right"),
        ("A_Aorta", "aorta"),
        ("vertebrae_L1", "vertebrae_l1"),
    ],
)
def test_camel_case_and_the_names_of_radiotherapy_are_understood(written, canonical):
    assert canonical_name(written) == canonical
    assert canonical_name(canonical) == canonical


def test_sides_in_camel_case_are_a_pair():
    assert side_pairs(["RightParotid", "LeftParotid", "SpinalCord"]) == [
        ("LeftParotid", "RightParotid")
    ]
