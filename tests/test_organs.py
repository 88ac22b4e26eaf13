from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sacl.organs import (
    BTCV_ORGANS,
    canonical_name,
    is_complete,
    match,
    shared_organs,
    side_pairs,
    snake_case,
    wholes,
)


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


# -- what two schemes share ----------------------------------------------------------------------

FLARE = ("liver", "kidneys", "spleen", "pancreas")
LOBES_LEFT = ("lung_upper_lobe_left", "lung_lower_lobe_left")
LOBES_RIGHT = ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right")
PIECES = {
    "liver": {"liver"},
    "kidney_left": {"kidney_left"},
    "kidney_right": {"kidney_right"},
    "kidneys": {"kidney_left", "kidney_right"},
    "lung_left": {*LOBES_LEFT},
    "lung_right": {*LOBES_RIGHT},
    "lungs": {*LOBES_LEFT, *LOBES_RIGHT},
    **{lobe: {lobe} for lobe in (*LOBES_LEFT, *LOBES_RIGHT)},
}
"""What cannot be divided of each organ."""


def test_merged_kidneys_are_compared_with_both_sides_together_whichever_side_merges():
    kidneys = ("kidney_right", "kidney_left")
    assert shared_organs({"run": BTCV_ORGANS, "data": FLARE}).parts == {
        "spleen": {"run": ("spleen",), "data": ("spleen",)},
        "liver": {"run": ("liver",), "data": ("liver",)},
        "pancreas": {"run": ("pancreas",), "data": ("pancreas",)},
        "kidneys": {"run": kidneys, "data": ("kidneys",)},
    }
    turned = shared_organs({"run": FLARE, "data": BTCV_ORGANS})
    assert turned.parts["kidneys"] == {"run": ("kidneys",), "data": kidneys}
    assert set(turned.alone["data"]) == {
        *("gallbladder", "esophagus", "stomach", "aorta", "inferior_vena_cava"),
        *("portal_vein_and_splenic_vein", "adrenal_gland_right", "adrenal_gland_left"),
    }


def test_three_schemes_share_what_all_of_them_have():
    named = {"a": ["LK", "RK", "liver"], "b": ["kidneys", "spleen"], "c": ["lkid", "rkid"]}
    shared = shared_organs(named)
    assert shared.parts == {
        "kidneys": {"a": ("LK", "RK"), "b": ("kidneys",), "c": ("lkid", "rkid")}
    }
    assert shared.alone == {"a": {"liver": "b has none"}, "b": {"spleen": "a has none"}, "c": {}}


def test_one_side_alone_is_not_compared_with_both_and_it_says_why():
    shared = shared_organs({"run": ["kidney_left", "liver"], "data": ["kidneys", "liver"]})
    assert list(shared.parts) == ["liver"]
    assert shared.alone == {
        "run": {"kidney_left": "data does not divide kidneys"},
        "data": {"kidneys": "run has only kidney_left of it"},
    }


def test_an_organ_that_a_third_scheme_lacks_says_which():
    shared = shared_organs({"a": ["LK", "RK"], "b": ["liver"], "c": ["kidneys", "liver"]})
    assert shared.parts == {}
    assert shared.alone["c"] == {"kidneys": "b has none", "liver": "a has none"}
    assert shared.alone["a"] == {"LK": "b has none", "RK": "b has none"}


def test_a_misspelled_organ_is_met_with_the_nearest_name():
    shared = shared_organs({"run": ["liver", "Milz", "pancreas"], "data": ["livver", "pancraes"]})
    assert shared.parts == {}
    assert list(shared.lines()) == [
        "left out of run: liver (is it livver? use that name), pancreas (is it pancraes? use that"
        " name), Milz",
        "left out of data: livver (is it liver? use that name), pancraes (is it pancreas? use that"
        " name)",
    ]


def test_of_many_names_those_with_a_hint_are_said_first():
    vertebrae = [f"vertebrae_t{n}" for n in range(1, 13)]
    shared = shared_organs({"run": ["liver", "spleen"], "data": [*vertebrae, "livver", "spleen"]})
    said = "livver (is it liver? use that name), " + ", ".join(vertebrae)
    assert list(shared.lines())[-1] == f"left out of data: {said}"
    shared = shared_organs({"run": ["spleen"], "data": ["spleen", *vertebrae, "sacrum", "skull"]})
    said = ", ".join([*vertebrae, "sacrum"])
    assert list(shared.lines())[-1] == f"left out of data: {said} and 1 more"


def test_the_other_side_is_not_suggested():
    shared = shared_organs({"run": ["kidney_left", "kidney_right"], "data": ["kidney_left"]})
    assert shared.alone == {"run": {"kidney_right": ""}, "data": {}}
    assert shared_organs({"run": ["lung_left"], "data": ["lung_right"]}).alone["run"] == {
        "lung_left": ""
    }


def schemes():
    """Return schemes of organs that do not overlap, as those of label maps."""
    names = st.lists(st.sampled_from(sorted(PIECES)), unique=True)
    return names.map(
        lambda drawn: [
            n for k, n in enumerate(drawn) if not any(PIECES[n] & PIECES[m] for m in drawn[:k])
        ]
    )


@given(schemes(), schemes())
def test_shared_organs_are_the_finest_that_both_can_be_merged_into(ours, theirs):
    def made_of(organ, scheme):
        """Return the names that together are exactly an organ, by trying all of them."""
        return next(
            (
                names
                for size in range(1, len(scheme) + 1)
                for names in itertools.combinations(scheme, size)
                if set().union(*(PIECES[n] for n in names)) == PIECES[organ]
            ),
            None,
        )

    both = [n for n in {*ours, *theirs} if made_of(n, ours) and made_of(n, theirs)]
    finest = [n for n in both if not any(PIECES[m] < PIECES[n] for m in both)]
    named = {"ours": ours, "theirs": theirs}
    shared = shared_organs(named)
    assert shared.parts == {n: {s: made_of(n, own) for s, own in named.items()} for n in finest}
    for name, scheme in named.items():
        assert set(shared.alone[name]) == {
            n for n in scheme if not any(PIECES[n] <= PIECES[m] for m in finest)
        }
