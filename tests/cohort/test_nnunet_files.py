from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sacl.cohort.label_names import LabelNames, label_names
from sacl.cohort.layouts.nnunet import folds_of, modality_of, write_dataset
from sacl.types import Case, Grid, LabelScheme, NativeFrame

FRAME = NativeFrame(Grid((2, 2, 2), np.eye(4)))


def scan(case_id, subject_id, phase="native"):
    return Case(case_id, subject_id, "a.nii", None, "train", FRAME, (0.0, 1.0), {"phase": phase})


@given(
    subjects=st.lists(
        st.tuples(st.sampled_from(["native", "portal", "late"]), st.integers(1, 3)),
        min_size=2,
        max_size=30,
    ),
    count=st.integers(2, 7),
    seed=st.integers(0, 5),
)
def test_folds_keep_subjects_together_and_strata_even(subjects, count, seed):
    cases = [
        scan(f"{n}-{m}", f"s{n}", phase)
        for n, (phase, scans) in enumerate(subjects)
        for m in range(scans)
    ]
    folds = folds_of(cases, count, seed)
    assert len(folds) == min(count, len(subjects))
    everybody = {case.case_id for case in cases}
    subject_of = {case.case_id: case.subject_id for case in cases}
    held_out = [{subject_of[case_id] for case_id in fold["val"]} for fold in folds]
    assert sorted(case_id for fold in folds for case_id in fold["val"]) == sorted(everybody)
    for fold, held in zip(folds, held_out, strict=True):
        assert set(fold["train"]) == everybody - set(fold["val"])
        assert not held & {subject_of[case_id] for case_id in fold["train"]}
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1
    for phase in {phase for phase, _ in subjects}:
        members = {f"s{n}" for n, (p, _) in enumerate(subjects) if p == phase}
        sizes = [len(held & members) for held in held_out]
        assert max(sizes) - min(sizes) <= 1


def test_folds_follow_the_seed_and_not_the_order_of_the_cases():
    cases = [scan(f"c{n}", f"s{n}") for n in range(20)]
    one = folds_of(cases, 5, seed=1)
    assert one == folds_of(cases, 5, seed=1)
    assert one != folds_of(cases, 5, seed=2)
    turned = folds_of(cases[::-1], 5, seed=1)
    assert [sorted(fold["val"]) for fold in one] == [sorted(fold["val"]) for fold in turned]


def test_a_single_subject_has_no_folds():
    assert folds_of([scan("a", "s"), scan("b", "s")], 5, seed=0) == []
    assert folds_of([], 5, seed=0) == []


@pytest.mark.parametrize(("modality", "channel"), [("ct", "CT"), ("mr", "MRI"), (None, "image")])
def test_the_dataset_json_is_read_back_as_written(tmp_path, modality, channel):
    scheme = LabelScheme("clinic", ("liver", "spleen"))
    write_dataset(tmp_path / "dataset.json", scheme, modality, 7)
    document = json.loads((tmp_path / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    assert label_names(document["labels"], "dataset.json") == LabelNames({1: "liver", 2: "spleen"})
    assert document["channel_names"] == {"0": channel}
    assert modality_of(document["channel_names"]) == modality
    assert (document["numTraining"], document["file_ending"]) == (7, ".nii.gz")
