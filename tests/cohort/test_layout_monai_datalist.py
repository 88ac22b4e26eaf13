from __future__ import annotations

import nibabel
import numpy as np
import pytest
from listed_layout import summary, touch, write_json

from sacl.cohort.layouts.listing import find
from sacl.errors import DataError
from sacl.files.nifti import write_label_map
from sacl.types import Grid, LabelMap, LabelScheme

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def datalist(root, document, name="folds.json"):
    touch(root, *(f"data/{n}.nii.gz" for n in "abcde"), "data/a_map.nii.gz", "data/b_map.nii.gz")
    write_json(root, document, name)
    return root


def test_a_datalist_says_images_labels_folds_and_splits(tmp_path):
    document = {
        "name": "clinic",
        "modality": {"0": "CT"},
        "labels": LABELS,
        "training": [
            {"image": "data/a.nii.gz", "label": "./data/a_map.nii.gz", "fold": 0},
            {"image": ["data/b.nii.gz"], "label": ["data/b_map.nii.gz"], "fold": 1},
        ],
        "validation": [{"image": "data/c.nii.gz", "Phase": "Portal Venous", "subject_id": "s9"}],
        "testing": ["data/d.nii.gz"],
        "test": [{"image": "data/e.nii.gz"}],
    }
    found, reason = find(datalist(tmp_path, document))
    assert reason == "folds.json lists 2 images"
    assert (found.layout, found.name, found.modality) == ("monai_datalist", "clinic", "ct")
    assert found.organs == {1: "liver", 2: "spleen"}
    assert summary(found) == {
        "a": ("a.nii.gz", "a_map.nii.gz", "train"),
        "b": ("b.nii.gz", "b_map.nii.gz", "train"),
        "c": ("c.nii.gz", None, "validation"),
        "d": ("d.nii.gz", None, "test"),
        "e": ("e.nii.gz", None, "test"),
    }
    assert [case.scan_labels for case in found.cases[:3]] == [
        {"fold": "0"},
        {"fold": "1"},
        {"phase": "portal_venous"},
    ]
    assert found.cases[2].subject_id == "s9"
    assert found.notes == ()


def test_paths_are_beside_the_json_above_it_or_absolute(tmp_path):
    touch(tmp_path, "above/x.nii.gz", "lists/beside/y.nii.gz")
    touch(tmp_path / "far", "z.nii.gz")
    rows = ["above/x.nii.gz", "beside/y.nii.gz", str(tmp_path / "far" / "z.nii.gz")]
    write_json(tmp_path / "lists", {"training": [{"image": row} for row in rows]}, "any name.json")
    found, _ = find(tmp_path / "lists" / "any name.json")
    assert [case.image.relative_to(tmp_path).as_posix() for case in found.cases] == [
        "above/x.nii.gz",
        "lists/beside/y.nii.gz",
        "far/z.nii.gz",
    ]


def test_scans_that_are_named_alike_are_told_apart_by_their_folders(tmp_path):
    touch(tmp_path, "s1/image.nii.gz", "s2/image.nii.gz", "s2/other.nii.gz")
    rows = ["s1/image.nii.gz", "s2/image.nii.gz", "s2/other.nii.gz"]
    write_json(tmp_path, {"training": [{"image": row} for row in rows]}, "list.json")
    assert list(summary(find(tmp_path)[0])) == ["s1_image", "s2_image", "other"]


def test_what_is_not_read_is_said(tmp_path):
    document = {
        "training": [
            {"image": ["data/a.nii.gz", "data/b.nii.gz"]},
            {"image": "data/c.nii.gz", "seg": "data/a_map.nii.gz", "pseudo_label": "p.nii.gz"},
            {"image": "data/._d.nii.gz"},
        ]
    }
    found, _ = find(datalist(tmp_path, document))
    assert list(summary(found)) == ["a", "c"]
    assert found.cases[1].scan_labels == {}
    assert found.notes == (
        "1 entries list several images, the first is used",
        "1 entries have 'seg' and no 'label'; they count as unlabeled",
        "1 entries have 'pseudo_label' and no 'label'; they count as unlabeled",
    )


def labeled(root, labels=None):
    document = {"training": [{"image": "data/a.nii.gz", "label": "data/a_map.nii.gz"}]}
    root = datalist(root, document | ({"labels": labels} if labels else {}))
    image = nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4))
    nibabel.save(image, root / "data" / "a_map.nii.gz")
    return root


def test_label_values_are_named_by_the_json_labels_json_or_the_first_map(tmp_path):
    root = labeled(tmp_path, {"0": "background", "1": "aorta"})
    grid = Grid((2, 2, 2), np.eye(4))
    table = LabelMap(np.ones((2, 2, 2), np.uint8), grid, LabelScheme("x", ("liver", "spleen")))
    write_json(root, {"1": "pancreas"}, "labels.json")
    assert find(root)[0].organs == {1: "aorta"}
    labeled(root)
    assert find(root)[0].organs == {1: "pancreas"}
    write_label_map(root / "data" / "a_map.nii.gz", table)
    assert find(root)[0].organs == {1: "pancreas"}
    (root / "labels.json").unlink()
    assert find(root)[0].organs == {1: "liver", 2: "spleen"}


def test_label_values_that_nobody_names_are_called_by_number(tmp_path):
    found, _ = find(labeled(tmp_path))
    assert found.organs == {1: "label_1"}
    assert "the label values have no names and are called label_1; write" in found.notes[-1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "data/gone.nii.gz"}, "'training' names gone.nii.gz, but there is no such file"),
        ({"image": []}, "an entry of 'training' has no image"),
        (
            {"image": "data/x.png"},
            "'training' names x.png, which is no NIfTI, NRRD or MetaImage file; convert it",
        ),
        ({"image": "data/a.nii.gz", "label": "gone.nii.gz"}, "names gone.nii.gz"),
        (7, "an entry of 'training' is 7, expected image and label"),
    ],
)
def test_an_entry_that_cannot_be_read_is_refused_in_one_line(tmp_path, row, message):
    touch(tmp_path, "data/x.png")
    rows = [{"image": "data/b.nii.gz"}, row]
    with pytest.raises(DataError, match=message) as error:
        find(datalist(tmp_path, {"labels": LABELS, "training": rows}))
    assert str(tmp_path) not in str(error.value)


def test_two_datalists_in_a_folder_are_not_guessed_between(tmp_path):
    document = {"training": [{"image": "data/a.nii.gz"}]}
    write_json(datalist(tmp_path, document), document, "more.json")
    (tmp_path / "notes.json").write_text("{")
    with pytest.raises(DataError, match=r"2 datalists, folds\.json and more\.json; name the one"):
        find(tmp_path)
    assert list(summary(find(tmp_path / "more.json")[0])) == ["a"]


def test_a_decathlon_task_stays_one(tmp_path):
    document = {"training": [{"image": "data/a.nii.gz", "label": "data/a_map.nii.gz"}]}
    datalist(tmp_path, document | {"labels": {"1": "liver"}}, "dataset.json")
    assert find(tmp_path)[0].layout == "decathlon"
    assert find(tmp_path / "dataset.json")[0].layout == "monai_datalist"
    bare = datalist(tmp_path / "bare", {"training": [{"image": "data/a.nii.gz"}]}, "dataset.json")
    assert find(bare)[0].layout == "monai_datalist"
