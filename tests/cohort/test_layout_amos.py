from __future__ import annotations

import pytest
from listed_layout import summary, touch, write_json

from sacl.cohort.layouts.listing import find
from sacl.errors import DataError
from sacl.organs import canonical_name

OWN = {
    "name": "AMOS",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "spleen", "8": "arota"},
    "training": [{"image": "./imagesTr/amos_0001.nii.gz", "label": "./labelsTr/amos_0001.nii.gz"}],
}


def amos(root, *numbers):
    write_json(root, OWN)
    for number in numbers:
        touch(root, f"imagesTr/amos_{number}.nii.gz", f"labelsTr/amos_{number}.nii.gz")
    return root


def test_amos_is_listed_by_split_with_the_modality_of_each_scan(tmp_path):
    root = amos(tmp_path, "0001", "0500", "0501", "0600")
    touch(root, "imagesVa/amos_0008.nii.gz", "labelsVa/amos_0008.nii.gz")
    touch(root, "imagesTs/amos_0002.nii.gz", "imagesTr/._amos_0001.nii.gz")
    found, reason = find(root)
    assert reason == "imagesTr with 4 scans like amos_0001.nii.gz"
    assert (found.layout, found.name, found.modality) == ("amos", "AMOS22", None)
    assert summary(found) == {
        "amos_0001": ("amos_0001.nii.gz", "amos_0001.nii.gz", "train"),
        "amos_0500": ("amos_0500.nii.gz", "amos_0500.nii.gz", "train"),
        "amos_0501": ("amos_0501.nii.gz", "amos_0501.nii.gz", "train"),
        "amos_0600": ("amos_0600.nii.gz", "amos_0600.nii.gz", "train"),
        "amos_0008": ("amos_0008.nii.gz", "amos_0008.nii.gz", "validation"),
        "amos_0002": ("amos_0002.nii.gz", None, "test"),
    }
    assert [case.modality for case in found.cases] == ["ct", "ct", "mr", "mr", "ct", "ct"]
    assert found.notes == ("4 CT scans and 2 MR scans, by their numbers",)


def test_amos_has_fifteen_organs_with_the_aorta_spelled_right(tmp_path):
    organs = find(amos(tmp_path, "0001"))[0].organs
    assert list(organs) == list(range(1, 16))
    assert canonical_name(organs[8]) == "aorta"
    assert canonical_name(organs[9]) == "inferior_vena_cava"
    assert canonical_name(organs[12]) == "adrenal_gland_left"
    assert canonical_name(organs[14]) == "urinary_bladder"


@pytest.mark.parametrize(("number", "modality"), [("0001", "ct"), ("0507", "mr")])
def test_a_part_of_amos_has_one_modality(tmp_path, number, modality):
    found, _ = find(amos(tmp_path, number))
    assert (found.modality, found.notes) == (modality, ())


def test_amos_in_the_layout_of_nnunet_is_not_taken_for_it(tmp_path):
    touch(tmp_path, "imagesTr/amos_0001_0000.nii.gz", "labelsTr/amos_0001.nii.gz")
    write_json(tmp_path, {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}})
    assert find(tmp_path)[0].layout == "nnunet"


def test_a_label_map_without_its_image_is_refused(tmp_path):
    root = amos(tmp_path, "0001")
    touch(root, "labelsTr/amos_0002.nii.gz")
    with pytest.raises(DataError, match=r"imagesTr: amos_0002\.nii\.gz has no image"):
        find(root)
