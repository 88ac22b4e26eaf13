from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from sacl import snomed
from sacl.organs import BTCV_ORGANS
from sacl.snomed import LATERALITY_CODES, SnomedCode, code_of


@pytest.fixture(scope="module")
def listed() -> dict[str, set[str]]:
    """Return all meanings of every SNOMED CT code that pydicom lists, by code value."""
    meanings: dict[str, set[str]] = {}
    for code in codes.SCT.concepts.values():
        meanings.setdefault(code.value, set()).add(code.meaning)
    return meanings


@pytest.mark.parametrize("organ", sorted(snomed._CODES))
def test_every_code_stands_in_the_dicom_standard_with_this_meaning(organ, listed):
    code = code_of(organ)
    assert code is not None
    assert code.meaning in listed[code.value]


@pytest.mark.parametrize("organ", sorted(snomed._CODES))
def test_every_organ_of_the_table_stands_under_its_canonical_name(organ):
    value, meaning = snomed._CODES[organ]
    assert code_of(organ) == SnomedCode(value, meaning, None)


def test_sides_have_the_codes_of_the_standard():
    assert LATERALITY_CODES["left"] == codes.SCT.Left.value
    assert LATERALITY_CODES["right"] == codes.SCT.Right.value


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
        ("rib_left_11", "Rib", "left"),
        ("rib_right_1", "Rib", "right"),
        ("lung_upper_lobe_left", "UpperLobeOfLung", "left"),
        ("lung_middle_lobe_right", "MiddleLobeOfRightLung", None),
        ("vertebrae_L3", "L3Vertebra", None),
        ("vertebrae_T11", "T11Vertebra", None),
    ],
)
def test_a_name_or_alias_has_the_code_of_its_organ(organ, keyword, laterality):
    expected = getattr(codes.SCT, keyword)
    assert code_of(organ) == SnomedCode(expected.value, expected.meaning, laterality)


def test_all_organs_of_btcv_have_a_code():
    assert all(code_of(organ) is not None for organ in BTCV_ORGANS)


@pytest.mark.parametrize(
    "organ", ["skin", "kidney_cyst_left", "vertebrae_S1", "anterior", "left", "", "s"]
)
def test_an_organ_that_is_not_listed_has_no_code(organ):
    assert code_of(organ) is None
