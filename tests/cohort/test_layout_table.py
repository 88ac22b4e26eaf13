from __future__ import annotations

import nibabel
import numpy as np
import pytest
from listed_layout import summary, touch, write_json

from sacl.cohort.layouts.listing import find
from sacl.errors import DataError
from sacl.files.nifti import write_label_map
from sacl.types import Grid, LabelMap, LabelScheme


def table(root, text, labels=None):
    touch(root, "ct/a.nii.gz", "ct/b.nii.gz", "maps/a.nii.gz")
    (root / "cohort.csv").write_text(text)
    if labels:
        write_json(root, labels, "labels.json")
    return root


def test_a_table_says_everything_itself(tmp_path):
    rows = (
        "Case_ID;subject_id;image;label;split;Phase;Scanner\n"
        "a;s1;ct/a.nii.gz;maps/a.nii.gz;;Portal venous;\n"
        "b;s2;ct/b.nii.gz;;test;native;X-1\n"
    )
    found, _ = find(table(tmp_path, rows, {"1": "liver"}))
    assert found.layout == "table"
    assert found.organs == {1: "liver"}
    assert summary(found) == {
        "a": ("a.nii.gz", "a.nii.gz", "train"),
        "b": ("b.nii.gz", None, "test"),
    }
    assert [case.subject_id for case in found.cases] == ["s1", "s2"]
    assert found.cases[0].scan_labels == {"phase": "portal_venous", "scanner": "unknown"}
    assert found.cases[1].scan_labels == {"phase": "native", "scanner": "x_1"}


def test_a_table_may_be_named_itself(tmp_path):
    table(tmp_path, "case_id,image\na,ct/a.nii.gz\n")
    (tmp_path / "cohort.csv").rename(tmp_path / "mine.csv")
    assert summary(find(tmp_path / "mine.csv")[0]) == {"a": ("a.nii.gz", None, "train")}


def test_a_table_takes_the_names_in_its_label_maps(tmp_path):
    root = table(tmp_path, "case_id,image,label\na,ct/a.nii.gz,maps/a.nii.gz\n")
    grid = Grid((2, 2, 2), np.eye(4))
    label_map = LabelMap(np.ones((2, 2, 2), np.uint8), grid, LabelScheme("x", ("liver", "spleen")))
    write_label_map(root / "maps" / "a.nii.gz", label_map)
    assert find(root)[0].organs == {1: "liver", 2: "spleen"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "case_id,image\na,ct/gone.nii.gz\n",
            "case a names gone.nii.gz, but there is no such file",
        ),
        ("case_id,label\na,maps/a.nii.gz\n", "case a has no image"),
        ("case_id,image\na,ct/a.nii.gz\na,ct/b.nii.gz\n", "case a appears twice"),
        ("name,image\na,ct/a.nii.gz\n", "line 2 has no case_id"),
        ("case_id,image,split\na,ct/a.nii.gz,fold_1\n", "the split 'fold_1', expected train"),
        ("case_id,image\n../a,ct/a.nii.gz\n", "cannot be a file name"),
        ("case_id,image\n", "no row"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        find(table(tmp_path, text))


def test_label_values_without_names_are_called_by_number(tmp_path):
    root = table(tmp_path, "case_id,image,label\na,ct/a.nii.gz,maps/a.nii.gz\n")
    nibabel.save(
        nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), root / "maps/a.nii.gz"
    )
    found, _ = find(root)
    assert found.organs == {1: "label_1"}
    assert "the label values have no names and are called label_1; write" in found.notes[-1]


def test_a_plain_folder_is_unlabeled_scans_by_name(tmp_path):
    touch(tmp_path, "b.nii", "a.nii.gz", "._a.nii.gz", "notes.txt")
    found, _ = find(tmp_path)
    assert (found.layout, found.organs, found.modality) == ("folder", {}, None)
    assert summary(found) == {"a": ("a.nii.gz", None, "train"), "b": ("b.nii", None, "train")}


def test_a_folder_without_scans_or_with_two_of_one_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="not in the layout folder"):
        find(tmp_path, "folder")
    touch(tmp_path, "a.nii", "a.nii.gz")
    with pytest.raises(DataError, match="case a appears twice"):
        find(tmp_path)
