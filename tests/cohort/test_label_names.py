"""Tables of label values: both ways to write them, and what is refused."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from listed_layout import touch, write_json

from sacl.cohort.label_names import LabelNames, label_names, scheme_of_folders
from sacl.cohort.layouts.listing import find
from sacl.errors import DataError
from sacl.files.documents import read_json, read_rows


def test_values_of_one_organ_are_laid_together_where_that_is_said():
    names = label_names({"background": 0, "kidneys": [2, 3], "liver": 1}, "dataset.json")
    assert names == LabelNames({1: "liver", 2: "kidneys", 3: "kidneys"})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"1": "liver", "2": "liver"},
            r'named by the values 1 and 2; .* write {"liver": \[1, 2\]}',
        ),
        ({"1": "left kidney", "2": "kidney_left"}, "named by the values 1 and 2"),
        ({"liver": 1, "spleen": [1, 2]}, "has the value 1, and so has 'liver'"),
        ({"²": "liver", "spleen": 1}, "'²' has the value 'liver', expected a whole number"),
        ({"liver": "²"}, "'liver' has the value '²', expected a whole number from 0 to 65535"),
        ({"liver": 50_000_000}, "expected a whole number from 0 to 65535"),
        ({"liver": -1}, "expected a whole number"),
        ({"liver": True}, "expected a whole number"),
        ({"1": "n" * 300}, "is no text of 1 to 100 letters"),
        ({"1": None}, "is no text"),
        ({"1": ""}, "is no text"),
        ([1], "no table 'labels'"),
    ],
)
def test_a_table_that_is_not_one_to_one_is_refused(labels, message):
    with pytest.raises(DataError, match=message) as error:
        label_names(labels, "dataset.json")
    assert "\n" not in str(error.value)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"labels": {"1": "liver", "1": "spleen"}}')
    with pytest.raises(DataError, match="the key '1' appears twice"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "9" * 5000, "\ud800"])
def test_json_that_cannot_be_read_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(DataError, match=r"^a\.json: ") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("channels", [3, "CT", ["CT"], None])
def test_channel_names_of_another_kind_are_refused(tmp_path, channels):
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    write_json(tmp_path, {"channel_names": channels, "labels": {"liver": 1}})
    with pytest.raises(DataError, match=r"dataset\.json: 'channel_names' is"):
        find(tmp_path)


def test_a_huge_cell_is_refused_in_one_line(tmp_path):
    (tmp_path / "cohort.csv").write_text(f"case_id,image\na,{'x' * 200_000}\n")
    with pytest.raises(DataError, match=r"cohort\.csv: not readable as a table \(field larger"):
        read_rows(tmp_path / "cohort.csv")


def test_a_cell_in_quotes_may_hold_a_line_break(tmp_path):
    (tmp_path / "cohort.csv").write_text('case_id,note\na,"two\nlines"\nb,one\n')
    assert list(read_rows(tmp_path / "cohort.csv")) == ["a", "b"]


def test_one_voxel_of_fifty_million_makes_no_list_of_names(tmp_path):
    voxels = np.zeros((3, 3, 3), np.int32)
    voxels[1, 1, 1] = 50_000_000
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii\.gz: label values 0 to 50000000, expected 0 to"):
        scheme_of_folders(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ('<Label Key="300000000">liver</Label>', "the value 300000000 of 'liver', expected 0 to"),
        ('<Label Key="1">liver</Label><Label Key="2">liver</Label>', "'liver' has the values 1"),
    ],
)
def test_a_label_table_with_impossible_values_is_refused(tmp_path, labels, message):
    image = nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4))
    table = f"<CaretExtension><LabelTable>{labels}</LabelTable></CaretExtension>".encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(30, table))
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=message):
        scheme_of_folders(tmp_path)


@pytest.mark.parametrize("sessions", [3, [3], "x", {"q": {"images": 7}}])
def test_a_collection_of_another_kind_is_refused_in_one_line(tmp_path, sessions):
    document = {"datasets": {"d": {"subjects": {"s": {"sessions": sessions}}}}}
    write_json(tmp_path, document, "pretrain_data.json")
    with pytest.raises(DataError, match="no scan in this nnssl dataset"):
        find(tmp_path)


def test_half_of_a_surrogate_pair_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "\\ud800"}')
    with pytest.raises(DataError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")
