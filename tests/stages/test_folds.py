from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sacl.stages.locate_networks import SEEN, deal_folds
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


def test_one_labeled_subject_is_seen_by_the_only_network():
    assert deal_folds(cohort("ls"), 3) == {"s0": SEEN}
    assert deal_folds(cohort("l", "s"), 3) == {"s0": SEEN, "s1": SEEN}


def test_who_alone_shows_an_organ_is_seen_by_every_network():
    assert deal_folds(cohort("l", "ls", "l", "l"), 3) == {"s0": 0, "s1": SEEN, "s2": 1, "s3": 2}


def test_a_rare_organ_is_dealt_to_two_folds_though_others_are_commoner():
    fold_of = deal_folds(cohort("ls", "l", "l", "ls"), 3)
    assert SEEN not in fold_of.values()
    assert fold_of["s0"] != fold_of["s3"]


@given(st.lists(st.sampled_from(["ls", "l", "s"]), min_size=1, max_size=12), st.integers(2, 5))
def test_every_network_learns_every_organ(annotated, folds):
    dealt = cohort(*annotated)
    fold_of = deal_folds(dealt, folds)
    assert set(fold_of) == {case.subject_id for case in dealt.cases}
    shown = {organ for case in dealt.cases for organ in case.annotated}
    for fold in {*fold_of.values()} - {SEEN}:
        others = [case for case in dealt.cases if fold_of[case.subject_id] != fold]
        assert {organ for case in others for organ in case.annotated} == shown


@given(st.integers(2, 12), st.integers(2, 5))
def test_fully_annotated_subjects_are_all_cross_fitted(subjects, folds):
    sizes = Counter(deal_folds(cohort(*["ls"] * subjects), folds).values())
    assert set(sizes) == set(range(min(folds, subjects)))
    assert max(sizes.values()) - min(sizes.values()) <= 1
