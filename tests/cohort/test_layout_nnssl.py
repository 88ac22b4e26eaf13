from __future__ import annotations

import pytest
from listed_layout import summary, touch, write_json

from sacl.cohort.layouts.listing import find
from sacl.cohort.layouts.nnssl import NNSSL, anatomy_masks
from sacl.errors import DataError


def image(path, name=None, modality="CT", mask=None, **info):
    return {
        "name": name or path.rsplit("/", 1)[-1],
        "image_path": path,
        "modality": modality,
        "image_info": info,
        "associated_masks": {"anonymization_mask": None, "anatomy_mask": mask},
    }


def collection(*subjects, name="Dataset745_OpenMind"):
    """Return what nnssl writes: the sessions of some subjects in one dataset."""
    return {
        "collection_index": 745,
        "collection_name": name,
        "datasets": {
            "ds1": {
                "dataset_index": "ds1",
                "name": None,
                "dataset_info": None,
                "subjects": {s["subject_id"]: s for s in subjects},
            }
        },
    }


def subject(subject_id, *images, info=None, session_info=None):
    return {
        "subject_id": subject_id,
        "subject_info": info,
        "sessions": {
            "ses-1": {"session_id": "ses-1", "session_info": session_info, "images": list(images)}
        },
    }


def test_a_collection_is_unlabeled_training_scans_with_all_that_is_said_of_them(tmp_path):
    touch(tmp_path, "a/x.nii.gz", "b/y.nii.gz")
    document = collection(
        subject(
            "anna",
            image("a/x.nii.gz", Phase="Portal Venous", age=31, echo=[1, 2]),
            info={"age": 30, "sex": "F", "bmi": None},
        ),
        subject("bert", image("b/y.nii.gz"), session_info={"scanner": "X 1"}),
    )
    write_json(tmp_path, document, "pretrain_data.json")
    found, reason = find(tmp_path)
    assert reason == "pretrain_data.json is a collection of nnssl"
    assert (found.layout, found.name, found.modality) == ("nnssl", "Dataset745_OpenMind", "ct")
    assert found.organs == {}
    assert summary(found) == {
        "x": ("x.nii.gz", None, "train"),
        "y": ("y.nii.gz", None, "train"),
    }
    assert [case.subject_id for case in found.cases] == ["anna", "bert"]
    assert found.cases[0].scan_labels == {
        "age": "31",
        "sex": "f",
        "bmi": "unknown",
        "phase": "portal_venous",
    }
    assert found.cases[1].scan_labels == {"scanner": "x_1"}


def test_modalities_are_kept_by_scan_where_they_differ(tmp_path):
    touch(tmp_path, "x.nii.gz", "y.nii.gz", "z.nii.gz")
    pictures = (image("x.nii.gz"), image("y.nii.gz", modality="T1w"))
    write_json(tmp_path, collection(subject("s", *pictures)), "pretrain_data.json")
    found = find(tmp_path)[0]
    assert found.modality is None
    assert [case.modality for case in found.cases] == ["ct", "mr"]
    bare = {"datasets": [{"subjects": [{"sessions": [{"images": [{"image_path": "z.nii.gz"}]}]}]}]}
    write_json(tmp_path, bare, "mine.json")
    assert find(tmp_path / "mine.json")[0].cases[0].modality is None


def test_names_that_occur_twice_are_told_apart_by_their_place(tmp_path):
    document = collection(subject("s1", image("a/t1.nii.gz")), subject("s2", image("b/t1.nii.gz")))
    document["datasets"]["ds2"] = {"subjects": {"s1": subject("s1", image("c/t2.nii.gz"))}}
    touch(tmp_path, "a/t1.nii.gz", "b/t1.nii.gz", "c/t2.nii.gz")
    write_json(tmp_path, document, "pretrain_data.json")
    found = find(tmp_path)[0]
    assert [case.case_id for case in found.cases] == [
        "ds1__s1__ses-1__t1",
        "ds1__s2__ses-1__t1",
        "t2",
    ]
    assert [case.subject_id for case in found.cases] == ["ds1__s1", "s2", "ds2__s1"]


def test_a_path_may_begin_with_a_variable(tmp_path, monkeypatch):
    home = tmp_path / "Dataset745"
    touch(tmp_path, "Dataset745/x.nii.gz", "elsewhere/x.nii.gz", "Dataset745/y.nii.gz")
    pictures = (image("$nnssl_raw/Dataset745/x.nii.gz"), image("$nnssl_raw/y.nii.gz"))
    write_json(home, collection(subject("s", *pictures)), "pretrain_data.json")
    monkeypatch.delenv("nnssl_raw", raising=False)
    assert [case.image for case in find(home)[0].cases] == [home / "x.nii.gz", home / "y.nii.gz"]
    monkeypatch.setenv("nnssl_raw", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"set \$nnssl_raw to the folder it stands for"):
        find(home)
    write_json(home, collection(subject("s", image("$nnssl_raw/x.nii.gz"))), "pretrain_data.json")
    assert find(home)[0].cases[0].image == tmp_path / "elsewhere" / "x.nii.gz"


def test_anatomy_masks_are_found_by_case(tmp_path):
    touch(tmp_path, "x.nii.gz", "y.nii.gz", "masks/x.nii.gz")
    pictures = (image("x.nii.gz", mask="masks/x.nii.gz"), image("y.nii.gz"))
    write_json(tmp_path, collection(subject("s", *pictures)), "pretrain_data.json")
    assert anatomy_masks(tmp_path) == {"x": tmp_path / "masks/x.nii.gz"}
    assert anatomy_masks(tmp_path / "pretrain_data.json") == anatomy_masks(tmp_path)
    (tmp_path / "masks/x.nii.gz").unlink()
    with pytest.raises(DataError, match=r"the 'anatomy_mask' of x names x.nii.gz, but there is no"):
        anatomy_masks(tmp_path)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (
            image("gone.nii.gz"),
            "the 'image_path' of gone names gone.nii.gz, but there is no such file",
        ),
        (
            image("x.png"),
            "of x names x.png, which is no NIfTI, NRRD or MetaImage file; convert it",
        ),
        ({"name": "x"}, "image x has no 'image_path'"),
        ({"modality": "CT"}, "subject s has an image without a name"),
    ],
)
def test_an_image_that_cannot_be_read_is_refused_in_one_line(tmp_path, picture, message):
    touch(tmp_path, "x.png")
    write_json(tmp_path, collection(subject("s", picture)), "pretrain_data.json")
    with pytest.raises(DataError, match=message) as error:
        find(tmp_path)
    assert str(tmp_path) not in str(error.value)


def test_other_json_is_no_collection(tmp_path):
    write_json(tmp_path, {"training": []}, "pretrain_data.json")
    assert NNSSL.recognize(tmp_path) is None
    assert NNSSL.recognize(tmp_path / "gone.json") is None
