"""Cohorts described by a JSON, from the files on disk to the manifest."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from sacl.cohort.manifest import read_cohort
from sacl.errors import ConfigError, DataError
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings
from sacl.stages.ingest import ingest, inputs

SHAPE = (8, 7, 6)


def scan(path, seed=0, air=True):
    voxels = np.random.default_rng(seed).normal(40, 20, SHAPE).astype(np.int16)
    voxels[0] = -1000 if air else 0
    save(path, voxels)


def label_map(path, highest=2):
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[2:5, 2:5, 2:4] = np.arange(1, highest + 1)[np.arange(18) % highest].reshape(3, 3, 2)
    save(path, voxels)


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 5.0, 1.0])), path)


def cohort_of(tmp_path, **settings):
    return read_cohort(ingest(IngestSettings(**settings), Workspace(tmp_path / "work")))


def splits(cohort):
    return {case.case_id: (case.split, case.reference is not None) for case in cohort.cases}


def nnunet(root):
    for n in range(4):
        scan(root / f"imagesTr/c{n}_0000.nii.gz", n)
        label_map(root / f"labelsTr/c{n}.nii.gz")
    labels = {"background": 0, "liver": 1, "spleen": 2}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}}))
    folds = [{"train": ["c0", "c1"], "val": ["c2", "c3"]}, {"train": ["c2", "c3"], "val": ["c0"]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    return root


def test_a_fold_of_nnunet_is_held_out_for_validation(tmp_path, capsys):
    data = nnunet(tmp_path / "data")
    cohort = cohort_of(tmp_path, data=data, fold=1)
    assert splits(cohort) == {
        "c0": ("validation", True),
        "c1": ("train", True),
        "c2": ("train", True),
        "c3": ("train", True),
    }
    assert "fold 1 holds 1 training scans out" in capsys.readouterr().err
    everybody = cohort_of(tmp_path / "unset", data=data)
    assert {split for split, _ in splits(everybody).values()} == {"train"}
    assert "none is used; choose one by ingest.fold" in capsys.readouterr().err


def test_another_splits_file_makes_the_cohort_out_of_date(tmp_path):
    data = nnunet(tmp_path / "data" / "Dataset001")
    beside = (data / "splits_final.json").rename(data.parent / "splits_final.json")
    workspace = Workspace(tmp_path / "work")
    before = inputs(IngestSettings(data=data, fold=0), workspace)
    beside.write_text(json.dumps([{"train": ["c1"], "val": ["c0"]}]))
    assert inputs(IngestSettings(data=data, fold=0), workspace) != before
    assert "fold" not in inputs(IngestSettings(data=data), workspace)


def test_a_fold_that_tears_a_subject_apart_is_refused(tmp_path):
    data = nnunet(tmp_path / "data")
    (data / "scan_labels.csv").write_text("case_id,subject_id\nc0,anna\nc1,anna\n")
    with pytest.raises(DataError, match=r"subject anna is in two splits, .* \(fold 1\)"):
        cohort_of(tmp_path, data=data, fold=1)
    with pytest.raises(ConfigError, match=r"ingest\.fold: expected integer >= 0"):
        IngestSettings(fold=-1)


def test_a_datalist_is_ingested_with_its_fold(tmp_path):
    for n in range(3):
        scan(tmp_path / f"data/s{n}/image.nii.gz", n)
        label_map(tmp_path / f"data/s{n}/label.nii.gz")
    document = {
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [
            {"image": f"s{n}/image.nii.gz", "label": f"s{n}/label.nii.gz", "fold": n}
            for n in range(2)
        ],
        "testing": [{"image": "s2/image.nii.gz", "label": ["s2/label.nii.gz"]}],
    }
    (tmp_path / "data" / "list.json").write_text(json.dumps(document))
    cohort = cohort_of(tmp_path, data=tmp_path / "data" / "list.json", fold=0)
    assert splits(cohort) == {
        "s0_image": ("validation", True),
        "s1_image": ("train", True),
        "s2_image": ("test", True),
    }
    assert [case.scan_label("fold") for case in cohort.cases] == ["0", "1", "unknown"]
    assert cohort.scheme.names == ("liver", "spleen")


def test_amos_is_ingested_one_modality_at_a_time(tmp_path):
    for number in ("0001", "0002", "0507", "0508"):
        scan(tmp_path / f"data/imagesTr/amos_{number}.nii.gz", int(number), number < "0500")
        label_map(tmp_path / f"data/labelsTr/amos_{number}.nii.gz", 15)
    ct = cohort_of(tmp_path, data=tmp_path / "data", modality="ct")
    assert list(splits(ct)) == ["amos_0001", "amos_0002"]
    assert ct.scheme.names[7:9] == ("aorta", "inferior_vena_cava")
    mr = cohort_of(tmp_path / "mr", data=tmp_path / "data", modality="mr")
    assert (list(splits(mr)), mr.modality) == (["amos_0507", "amos_0508"], "mr")


def test_a_collection_of_nnssl_is_ingested_as_unlabeled_scans(tmp_path):
    scan(tmp_path / "data/a.nii.gz")
    image = {"name": "a.nii.gz", "image_path": "a.nii.gz", "modality": "CT"}
    subject = {"subject_info": {"phase": "native"}, "sessions": {"s": {"images": [image]}}}
    document = {"datasets": {"d": {"dataset_index": "d", "subjects": {"anna": subject}}}}
    (tmp_path / "data" / "pretrain_data.json").write_text(json.dumps(document))
    cohort = cohort_of(tmp_path, data=tmp_path / "data", organs=("liver",))
    assert splits(cohort) == {"a": ("train", False)}
    assert cohort.cases[0].subject_id == "anna"
    assert cohort.cases[0].scan_label("phase") == "native"
