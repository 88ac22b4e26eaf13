from __future__ import annotations

import json

import pytest
from listed_layout import touch, write_json

from sacl.cohort.layouts.listing import find
from sacl.cohort.splits import with_fold
from sacl.errors import ConfigError, DataError

FOLDS = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a", "c"], "val": ["b"]}]


def nnunet(root, validation=False):
    write_json(root, {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}})
    touch(root, *(f"imagesTr/{n}_0000.nii.gz" for n in "abcd"))
    touch(root, *(f"labelsTr/{n}.nii.gz" for n in "abc"), "imagesTs/t_0000.nii.gz")
    if validation:
        touch(root, "imagesVa/v_0000.nii.gz", "labelsVa/v.nii.gz")
    return find(root)[0]


def splits(found):
    return {case.case_id: case.split for case in found.cases}


@pytest.mark.parametrize(
    "place", ["nnUNet_raw/D1", "nnUNet_raw", "nnUNet_preprocessed/D1"], ids=["in", "beside", "pp"]
)
def test_the_held_out_cases_of_a_fold_become_validation(tmp_path, place):
    root = tmp_path / "nnUNet_raw" / "D1"
    found = nnunet(root)
    write_json(tmp_path / place, FOLDS, "splits_final.json")
    folded = with_fold(found, root, 1)
    assert splits(folded) == splits(found) | {"b": "validation"}
    assert folded.notes == ("fold 1 holds 1 training scans out for validation",)
    assert [case.origin for case in folded.cases if case.case_id == "b"] == ["fold 1"]


def test_folds_are_only_mentioned_where_none_is_asked_for(tmp_path):
    found = nnunet(tmp_path)
    assert with_fold(found, tmp_path, None) is found
    write_json(tmp_path, FOLDS, "splits_final.json")
    same = with_fold(found, tmp_path, None)
    assert splits(same) == splits(found)
    assert same.notes == (
        "splits_final.json has folds and none is used; choose one by ingest.fold",
    )


def test_a_datalist_folds_by_its_own_label(tmp_path):
    rows = [
        {"image": f"{n}.nii.gz", "fold": fold} for n, fold in zip("abc", (0, 1, 0), strict=True)
    ]
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz")
    write_json(tmp_path, {"training": [*rows, {"image": "d.nii.gz"}]}, "list.json")
    found = with_fold(find(tmp_path)[0], tmp_path / "list.json", 0)
    assert splits(found) == {"a": "validation", "b": "train", "c": "validation", "d": "train"}
    with pytest.raises(ConfigError, match=r"expected one of \['0', '1'\]"):
        with_fold(find(tmp_path)[0], tmp_path, 2)


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (FOLDS, ConfigError, "2 asked for, but splits_final.json has 2, from 0 on"),
        ([*FOLDS, {"train": [], "val": ["t"]}], DataError, "names 't', no training case"),
        ([*FOLDS, {"train": [], "val": ["x", "y"]}], DataError, r"names 'x', .* \(2 such\)"),
        ([*FOLDS, {"val": ["a"]}], DataError, "missing required field `train`"),
        ([*FOLDS, {"train": "b", "val": "a"}], DataError, "with lists of cases"),
        ({"train": ["a"]}, DataError, "expected a list of {train, val}"),
        (3, DataError, "expected a list of {train, val}"),
    ],
)
def test_folds_that_do_not_fit_are_refused(tmp_path, document, error, message):
    found = nnunet(tmp_path)
    (tmp_path / "splits_final.json").write_text(json.dumps(document))
    with pytest.raises(error, match=message):
        with_fold(found, tmp_path, 2)


def test_data_without_folds_or_with_its_own_validation_part_has_no_fold(tmp_path):
    with pytest.raises(ConfigError, match=r"no splits_final\.json and its scans no label 'fold'"):
        with_fold(nnunet(tmp_path / "a"), tmp_path / "a", 0)
    with pytest.raises(ConfigError, match="has validation scans of its own"):
        with_fold(nnunet(tmp_path / "b", validation=True), tmp_path / "b", 0)


def test_a_folder_of_unlabeled_scans_has_nothing_to_hold_out(tmp_path):
    touch(tmp_path, "scans/a.nii.gz")
    found, _ = find(tmp_path / "scans")
    assert with_fold(found, tmp_path / "scans", 3) is found
