from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sacl.errors import DataError
from sacl.stages.locate_networks import deal_folds
from sacl.types import Case, Cohort, Grid, LabelScheme, NativeFrame

SCHEME = LabelScheme("s", ("liver", "spleen"))
FRAME = NativeFrame(Grid((2, 2, 2), np.eye(4)))


def cohort(*annotated, scans=1):
    """Return a cohort with a labeled subject per entry, annotated for the initials in it."""
    names = {"l": "liver", "s": "spleen"}
    cases = tuple(
        Case(
            case_id=f"{n}-{scan}",
            subject_id=f"s{n}",
            image="i.nii",
            reference="r.nii",
            split="train",
            native=FRAME,
            window=(0, 1),
            annotated=tuple(names[letter] for letter in letters),
        )
        for n, letters in enumerate(annotated)
        for scan in range(scans)
    )
    return Cohort("c", SCHEME, cases)


def test_fully_annotated_subjects_are_dealt_in_their_order():
    assert deal_folds(cohort("ls", "ls", "ls", "ls", "ls", scans=2), 3) == {
        "s0": 0,
        "s1": 1,
        "s2": 2,
        "s3": 0,
        "s4": 1,
    }
    assert set(deal_folds(cohort("ls", "ls"), 5).values()) == {0, 1}


def test_subjects_with_a_rare_organ_do_not_meet_in_one_fold():
    fold_of = deal_folds(cohort("ls", "l", "l", "ls", "l", "l"), 3)
    assert fold_of["s0"] != fold_of["s3"]


def test_one_labeled_subject_is_not_enough():
    with pytest.raises(DataError, match="1 labeled subject, but the coarse network needs"):
        deal_folds(cohort("ls"), 3)


def test_an_organ_of_one_subject_is_refused():
    with pytest.raises(DataError, match="spleen is annotated in too few labeled subjects") as error:
        deal_folds(cohort("l", "ls", "l", "l"), 3)
    assert "\n" not in str(error.value)


@given(st.lists(st.sampled_from(["ls", "l", "s"]), min_size=2, max_size=12), st.integers(2, 5))
def test_every_network_learns_every_organ_or_the_cohort_is_refused(annotated, folds):
    dealt = cohort(*annotated)
    try:
        fold_of = deal_folds(dealt, folds)
    except DataError:
        return
    assert set(fold_of) == {case.subject_id for case in dealt.cases}
    for fold in set(fold_of.values()):
        others = [case for case in dealt.cases if fold_of[case.subject_id] != fold]
        assert {organ for case in others for organ in case.annotated} == set(SCHEME.names)
