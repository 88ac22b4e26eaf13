from __future__ import annotations

import zipfile
from pathlib import Path
from typing import get_args

import pytest
from listed_layout import summary, touch, write_json

from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.layouts.listing import LAYOUTS, find
from sacl.cohort.layouts.nnunet import modality_of
from sacl.errors import DataError
from sacl.settings import Layout

V2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "spleen": 2},
    "file_ending": ".nii.gz",
}


def nnunet(root, document=V2):
    write_json(root, document)
    touch(root, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz")
    touch(root, "imagesTs/c_0000.nii.gz", "imagesVa/d_0000.nii.gz", "labelsVa/d.nii.gz")
    touch(root, "imagesTr/._a_0000.nii.gz", "labelsTr/._a.nii.gz")
    return root


def test_nnunet_raw_is_listed_by_split_with_unlabeled_scans(tmp_path):
    found, reason = find(nnunet(tmp_path / "Dataset001_Two"))
    assert "a_0000.nii.gz" in reason
    assert (found.layout, found.name, found.modality) == ("nnunet", "Dataset001_Two", "ct")
    assert found.organs == {1: "liver", 2: "spleen"}
    assert summary(found) == {
        "a": ("a_0000.nii.gz", "a.nii.gz", "train"),
        "b": ("b_0000.nii.gz", None, "train"),
        "d": ("d_0000.nii.gz", "d.nii.gz", "validation"),
        "c": ("c_0000.nii.gz", None, "test"),
    }


def test_nnunet_version_1_names_labels_the_other_way_round(tmp_path):
    document = {
        "name": "Old",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    }
    found, _ = find(nnunet(tmp_path, document))
    assert (found.layout, found.name, found.modality) == ("nnunet", "Old", "mr")
    assert found.organs == {1: "liver", 2: "spleen"}


def test_nnunet_takes_the_first_channel_and_says_so(tmp_path):
    root = nnunet(tmp_path, V2 | {"channel_names": {"0": "T1", "1": "T2"}})
    touch(root, "imagesTr/a_0001.nii.gz", "imagesTr/b_0001.nii.gz")
    found, _ = find(root)
    assert len(found.cases) == 4
    assert found.modality == "mr"
    assert found.notes == ("the first of 2 channels is used, T1",)


def test_nnunet_keeps_the_value_to_be_ignored(tmp_path):
    found, _ = find(nnunet(tmp_path, V2 | {"labels": V2["labels"] | {"ignore": 3}}))
    assert found.ignore == 3
    assert found.organs == {1: "liver", 2: "spleen"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": [2]}}, "overlapping regions"),
        (
            {"labels": {"background": 0, "liver": 1, "spleen": 1}},
            "1, and so has 'liver'",
        ),
        ({"labels": {"background": 0, "liver": 1.5}}, "expected a whole number"),
        ({"labels": {"liver": 0}}, "'liver' has the value 0, which is background"),
        ({"labels": {}}, "no table 'labels'"),
        ({"file_ending": ".png"}, "file_ending '.png', expected one of .nii.gz, .nii, .nrrd"),
    ],
)
def test_nnunet_refuses_what_it_cannot_keep(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        find(nnunet(tmp_path, V2 | change))


def test_a_damaged_dataset_json_is_refused_in_one_line(tmp_path):
    root = nnunet(tmp_path)
    (root / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json: not readable as JSON"):
        find(root)
    (root / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object, got a list"):
        find(root)


def test_a_label_map_without_an_image_is_refused(tmp_path):
    root = nnunet(tmp_path)
    touch(root, "labelsTr/x.nii.gz")
    with pytest.raises(DataError, match=r"imagesTr: x.nii.gz has no image \(1 such files\)"):
        find(root)


def test_a_case_in_two_files_is_refused(tmp_path):
    root = nnunet(tmp_path)
    touch(root, "imagesTr/a_0000.nii")
    with pytest.raises(DataError, match=r"case a appears twice, a_0000.nii and a_0000.nii.gz"):
        find(root)


def test_a_case_in_two_parts_is_refused(tmp_path):
    root = nnunet(tmp_path)
    touch(root, "imagesTs/a_0000.nii.gz")
    with pytest.raises(DataError, match="case a appears twice"):
        find(root)


def test_the_decathlon_is_listed_from_its_json(tmp_path):
    touch(tmp_path, "imagesTr/s_1.nii.gz", "labelsTr/s_1.nii.gz", "imagesTs/s_2.nii.gz")
    touch(tmp_path, "imagesTr/._s_1.nii.gz", "labelsTr/._s_1.nii.gz")
    write_json(
        tmp_path,
        {
            "name": "Spleen",
            "modality": {"0": "CT"},
            "labels": {"0": "background", "1": "spleen"},
            "training": [
                {"image": "./imagesTr/s_1.nii.gz", "label": "./labelsTr/s_1.nii.gz"},
                {"image": "./imagesTr/._s_1.nii.gz", "label": "./labelsTr/._s_1.nii.gz"},
            ],
            "test": ["./imagesTs/s_2.nii.gz"],
        },
    )
    found, _ = find(tmp_path)
    assert (found.layout, found.name, found.modality) == ("decathlon", "Spleen", "ct")
    assert found.organs == {1: "spleen"}
    assert summary(found) == {
        "s_1": ("s_1.nii.gz", "s_1.nii.gz", "train"),
        "s_2": ("s_2.nii.gz", None, "test"),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"image": "imagesTr/gone.nii.gz"},
            "an entry of 'training' names gone.nii.gz, but",
        ),
        ({"label": "labelsTr/a.nii.gz"}, "an entry of 'training' has no image"),
    ],
)
def test_the_decathlon_refuses_entries_without_a_file(tmp_path, row, message):
    write_json(tmp_path, {"labels": {"1": "spleen"}, "training": [row]})
    with pytest.raises(DataError, match=message):
        find(tmp_path)


@pytest.mark.parametrize("above", ["Training", "RawData/Training", "Abdomen/RawData/Training", "."])
def test_btcv_is_found_wherever_its_training_folder_is(tmp_path, above):
    training = tmp_path / above
    touch(training, "img/img0001.nii.gz", "label/label0001.nii.gz", "img/img0002.nii.gz")
    found, _ = find(tmp_path)
    assert (found.layout, found.modality) == ("btcv", "ct")
    assert found.organs[4] == "gallbladder"
    assert found.organs[13] == "adrenal_gland_left"
    assert summary(found) == {
        "0001": ("img0001.nii.gz", "label0001.nii.gz", "train"),
        "0002": ("img0002.nii.gz", None, "train"),
    }


def test_btcv_testing_scans_are_test_without_reference(tmp_path):
    touch(
        tmp_path, "RawData/Training/img/img0001.nii.gz", "RawData/Training/label/label0001.nii.gz"
    )
    touch(tmp_path, "RawData/Testing/img/img0061.nii.gz")
    assert summary(find(tmp_path)[0])["0061"] == ("img0061.nii.gz", None, "test")


@pytest.mark.parametrize("mask", ["TrainingMask", "TrainingMask/TrainingMask"])
def test_flare_2021_is_found_also_where_a_mirror_nests_it(tmp_path, mask):
    touch(tmp_path, "TrainingImg/train_000_0000.nii.gz", f"{mask}/train_000.nii.gz")
    touch(tmp_path, "ValidationImg/validation_001_0000.nii.gz")
    found, _ = find(tmp_path)
    assert (found.layout, found.modality) == ("flare2021", "ct")
    assert found.organs == {1: "liver", 2: "kidneys", 3: "spleen", 4: "pancreas"}
    assert summary(found) == {
        "train_000": ("train_000_0000.nii.gz", "train_000.nii.gz", "train"),
        "validation_001": ("validation_001_0000.nii.gz", None, "validation"),
    }


def test_data_of_no_known_layout_is_refused_with_the_path_as_typed(tmp_path):
    touch(tmp_path / "mine", "scan.dcm")
    with pytest.raises(DataError, match=f"data '{tmp_path}/mine': unknown layout"):
        find(tmp_path / "mine")
    with pytest.raises(DataError, match="/gone': no such file or directory"):
        find(tmp_path / "gone")


def test_a_zip_without_dicom_is_named_where_no_layout_is_known(tmp_path):
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}", b"")
    with pytest.raises(DataError, match=r"unknown layout .*; export\.zip: no DICOM file in it;"):
        find(tmp_path)


def test_a_named_layout_that_the_data_does_not_have_is_refused(tmp_path):
    touch(tmp_path, "a.nii.gz")
    with pytest.raises(DataError, match="not in the layout flare2021; expected FLARE 2021"):
        find(tmp_path, "flare2021")


@pytest.mark.parametrize(
    ("channel", "modality"),
    [("CT", "ct"), ("cineMRI", "mr"), ("T2w", "mr"), ("FLAIR", "mr"), ("PET", None), ("", None)],
)
def test_the_modality_is_read_from_the_first_channels_name(channel, modality):
    assert modality_of({"0": channel}) == modality
    assert modality_of(None) is None


def test_a_dataset_without_scans_is_refused():
    with pytest.raises(DataError, match="no scan in this"):
        Dataset("nnunet", "none", {}, ())


def test_a_case_listed_twice_is_refused():
    twice = (SourceCase("a", Path("a.nii")), SourceCase("a", Path("b.nii")))
    with pytest.raises(DataError, match=r"case a appears twice, a.nii and b.nii"):
        Dataset("table", "t", {}, twice)


def test_every_layout_can_be_named_in_the_settings():
    assert {"auto", *LAYOUTS} == set(get_args(Layout))
