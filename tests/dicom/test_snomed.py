from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from sacl.dicom import snomed
from sacl.dicom.snomed import SnomedCode, code_of
from sacl.organs import BTCV_ORGANS, readable


@pytest.fixture(scope="module")
def listed() -> dict[str, set[str]]:
    """Return all meanings of every SNOMED CT code that pydicom lists, by code value."""
    meanings: dict[str, set[str]] = {}
    for code in codes.SCT.concepts.values():
        meanings.setdefault(code.value, set()).add(code.meaning)
    return meanings


@pytest.mark.parametrize("organ", sorted(snomed._KEYWORDS))
def test_every_code_stands_in_the_dicom_standard_with_this_meaning(organ, listed):
    code = code_of(organ)
    assert code is not None
    assert code.meaning in listed[code.value]


@pytest.mark.parametrize("organ", sorted(snomed._KEYWORDS))
def test_every_organ_of_the_table_stands_under_its_canonical_name(organ):
    expected = getattr(codes.SCT, snomed._KEYWORDS[organ])
    assert code_of(organ) == SnomedCode(expected.value, expected.meaning, None)


@pytest.mark.parametrize(
    ("organ", "keyword", "laterality"),
    [
        ("RK", "Kidney", "right"),
        ("left kidney", "Kidney", "left"),
        ("kidneys", "Kidney", None),
        ("lungs", "Lung", None),
        ("adrenal_gland_left", "AdrenalGland", "left"),
        ("postcava", "InferiorVenaCava", None),
        ("gall_bladder", "Gallbladder", None),
        ("bladder", "Bladder", None),
        ("oesophagus", "Esophagus", None),
        ("prostate", "Prostate", None),
        ("duodenum", "Duodenum", None),
        ("right_ventricle", "RightVentricle", None),
        ("left_ventricle", "LeftVentricle", None),
        ("heart_ventricle_left", "LeftVentricle", None),
        ("heart_atrium_right", "RightAtrium", None),
        ("myocardium", "LeftVentricleMyocardium", None),
        ("heart_myocardium", "LeftVentricleMyocardium", None),
        ("hippocampus_anterior", "Hippocampus", None),
        ("hippocampus_left", "Hippocampus", "left"),
        ("hippocampus_anterior_left", "Hippocampus", "left"),
        ("rib_left_13", "Rib", "left"),
        ("ribs", "Rib", None),
        ("lung_upper_lobe_left", "UpperLobeOfLung", "left"),
        ("lung_middle_lobe_right", "MiddleLobeOfRightLung", None),
        ("vertebrae_L3", "L3Vertebra", None),
        ("vertebrae_T11", "T11Vertebra", None),
        ("hip_left", "Hip", "left"),
        ("kidney_cyst_right", "Cyst", "right"),
    ],
)
def test_a_name_or_alias_has_the_code_of_its_organ(organ, keyword, laterality):
    expected = getattr(codes.SCT, keyword)
    assert code_of(organ) == SnomedCode(expected.value, expected.meaning, laterality)


def test_all_organs_of_btcv_have_a_code():
    assert all(code_of(organ) is not None for organ in BTCV_ORGANS)


@pytest.mark.parametrize("organ", ["skin", "anterior", "left", "", "s"])
def test_an_organ_that_is_not_listed_has_no_code(organ):
    assert code_of(organ) is None


@pytest.mark.parametrize(
    ("organ", "value", "meaning", "laterality"),
    [
        ("autochthon_left", "244849004", "Deep muscle of back", "left"),
        ("gluteus_maximus_right", "206007", "Gluteus maximus muscle", "right"),
        ("gluteus_medius_left", "78333006", "Gluteus medius muscle", "left"),
        ("gluteus_minimus_right", "75297007", "Gluteus minimus muscle", "right"),
        ("iliopsoas_left", "68455001", "Iliopsoas muscle", "left"),
        ("vertebrae_S1", "65985001", "First sacral vertebra", None),
        ("rib_left_1", "48535007", "First rib", "left"),
        ("rib_right_11", "58830002", "Eleventh rib", "right"),
    ],
)
def test_organs_that_dicom_does_not_list_have_the_code_of_snomed(
    organ, value, meaning, laterality, listed
):
    assert code_of(organ) == SnomedCode(value, meaning, laterality)
    assert value not in listed


@pytest.fixture(scope="module")
def totalsegmentator():
    pairs = (
        "kidney adrenal_gland lung_upper_lobe lung_lower_lobe kidney_cyst subclavian_artery"
        " common_carotid_artery brachiocephalic_vein iliac_artery iliac_vena humerus scapula"
        " clavicula femur hip gluteus_maximus gluteus_medius gluteus_minimus autochthon iliopsoas"
    )
    single = (
        "spleen gallbladder liver stomach pancreas lung_middle_lobe_right esophagus trachea"
        " thyroid_gland small_bowel duodenum colon urinary_bladder prostate sacrum heart aorta"
        " pulmonary_vein brachiocephalic_trunk atrial_appendage_left superior_vena_cava"
        " inferior_vena_cava portal_vein_and_splenic_vein spinal_cord brain skull sternum"
        " costal_cartilages"
    )
    spine = {"C": 7, "T": 12, "L": 5, "S": 1}
    names = [
        *single.split(),
        *(f"{name}_{side}" for name in pairs.split() for side in ("left", "right")),
        *(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)),
        *(f"vertebrae_{part}{n}" for part, last in spine.items() for n in range(1, last + 1)),
    ]
    assert len(names) == 117
    return names


def test_every_class_of_totalsegmentator_has_a_code_of_its_own(totalsegmentator):
    assert len(set(map(code_of, totalsegmentator)) - {None}) == 117


def test_every_class_of_totalsegmentator_has_a_name_of_its_own_for_people(totalsegmentator):
    names = set(map(readable, totalsegmentator))
    assert len(names) == 117
    assert {"Right kidney", "Left rib 1", "Vertebra L5", "Inferior vena cava"} < names
    assert {"Left lung upper lobe", "Right iliac vein", "Left deep back muscles"} < names


@pytest.mark.parametrize("organ", sorted(snomed._LISTED["others"]))
def test_codes_that_dicom_does_not_list_have_the_check_digit_of_snomed(organ):
    """Verhoeff's: products in the group of the pentagon's symmetries, digits permuted by place."""

    def times(a, b):
        if a < 5:
            return (a + b) % 5 + 5 * (b > 4)
        return (a - b) % 5 + 5 * (b < 5)

    shuffle, check = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4), 0
    for place, digit in enumerate(map(int, reversed(snomed._LISTED["others"][organ][0]))):
        for _ in range(place):
            digit = shuffle[digit]  # noqa: PLW2901
        check = times(check, digit)
    assert check == 0


def test_a_cyst_is_no_organ():
    assert code_of("kidney_cyst_left").is_abnormal
    assert not code_of("kidney_left").is_abnormal
