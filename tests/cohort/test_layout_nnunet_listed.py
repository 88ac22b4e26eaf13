from __future__ import annotations

import pytest
from listed_layout import summary, touch, write_json

from sacl.cohort.layouts.listing import find
from sacl.errors import DataError

LABELS = {"background": 0, "liver": 1}


def listed(root, cases):
    touch(root, "imagesTs/t_0000.nii.gz")
    document = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    write_json(root, document | {"dataset": cases})
    return root


def test_training_cases_are_found_wherever_the_json_says_they_lie(tmp_path, monkeypatch):
    touch(tmp_path, "far/a.nii.gz", "archive/a_map.nii.gz", "archive/b.nii.gz")
    monkeypatch.setenv("ARCHIVE", str(tmp_path / "archive"))
    cases = {
        "a": {"images": ["../far/a.nii.gz"], "label": "$ARCHIVE/a_map.nii.gz"},
        "b": {"images": [str(tmp_path / "archive/b.nii.gz"), "second.nii.gz"]},
    }
    found, reason = find(listed(tmp_path / "Dataset001", cases))
    assert reason == "dataset.json, which lists the files of 2 training cases"
    assert found.layout == "nnunet"
    assert summary(found) == {
        "a": ("a.nii.gz", "a_map.nii.gz", "train"),
        "b": ("b.nii.gz", None, "train"),
        "t": ("t_0000.nii.gz", None, "test"),
    }


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"images": ["gone.nii.gz"]}, "case a of 'dataset' names gone.nii.gz, but there"),
        ({"label": "x.nii.gz"}, "case a of 'dataset' has no list 'images'"),
        ("a.nii.gz", "case a of 'dataset' has no list 'images'"),
    ],
)
def test_a_listed_case_without_its_files_is_refused(tmp_path, case, message):
    with pytest.raises(DataError, match=message):
        find(listed(tmp_path, {"a": case}))
