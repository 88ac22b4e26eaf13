from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.splits import (
    annotated_subjects,
    choose_labeled,
    hide_other_values,
    hold_out,
    read_order,
    require_one_split,
    seeded_order,
    stratified_order,
)
from sacl.errors import ConfigError, DataError

PHASES = ("native", "arterial", "portal_venous")


def cohort(subjects=12, unlabeled=3, scans=2):
    """Subjects of three phases with two scans each; the last ones have no reference."""
    return Dataset(
        "table",
        "made",
        {1: "liver"},
        tuple(
            SourceCase(
                f"s{n:02}_{scan}",
                Path(f"s{n:02}_{scan}.nii"),
                Path("l.nii") if n < subjects - unlabeled else None,
                "train",
                f"s{n:02}",
                {"phase": PHASES[n % 3]},
                "imagesTr",
            )
            for n in range(subjects)
            for scan in range(scans)
        ),
    )


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(0, 9))
def test_every_beginning_holds_the_strata_in_proportion(strata, seed):
    strata = {f"s{n}": s for n, s in enumerate(strata)}
    order = stratified_order(strata, seed)
    assert sorted(order) == sorted(strata)
    total = Counter(strata.values())
    for count in range(1, len(order) + 1):
        seen = Counter(strata[s] for s in order[:count])
        for stratum, n in total.items():
            assert abs(seen[stratum] - n * count / len(order)) <= len(total)


def test_the_first_three_of_three_equal_strata_are_one_of_each():
    for seed in range(20):
        order = stratified_order({f"s{n}": PHASES[n % 3] for n in range(30)}, seed)
        assert len({int(s[1:]) % 3 for s in order[:3]}) == 3
        assert len({int(s[1:]) % 3 for s in order[-3:]}) == 3


def test_the_order_depends_on_the_seed_and_nothing_else():
    strata = {f"s{n}": "x" for n in range(30)}
    reversed_ = dict(reversed(strata.items()))
    assert stratified_order(strata, 1) == stratified_order(reversed_, 1)
    assert stratified_order(strata, 1) != stratified_order(strata, 2)


def test_smaller_labeled_sets_are_nested_in_larger_ones():
    found = cohort(30)
    order = seeded_order(found, "phase", 3)
    sets = [choose_labeled(found, order, count) for count in range(1, 28)]
    assert all(set(a) < set(b) for a, b in itertools.pairwise(sets))


def test_holding_out_more_subjects_keeps_the_labeled_ones():
    found = cohort(30)
    order = seeded_order(found, "phase", 3)
    few = choose_labeled(hold_out(found, order, 2, 2), order, 5)
    assert few == choose_labeled(hold_out(found, order, 9, 9), order, 5) == order[:5]


def test_held_out_subjects_move_with_all_their_scans():
    found = cohort()
    out = hold_out(found, seeded_order(found, "phase", 0), 2, 3)
    require_one_split(out)
    assert Counter(case.split for case in out.cases) == {"train": 14, "validation": 4, "test": 6}
    assert all(case.reference for case in out.cases if case.split != "train")
    assert len(annotated_subjects(out)) == 4


def test_all_annotated_subjects_are_labeled_where_no_count_is_given():
    found = cohort()
    assert choose_labeled(found, ["s01"], None) == [f"s{n:02}" for n in range(9)]


def test_more_labeled_subjects_than_there_are_is_an_error_with_both_numbers():
    found = cohort()
    with pytest.raises(ConfigError, match="10 asked for, but only 9 training subjects of made"):
        choose_labeled(found, seeded_order(found, "phase", 0), 10)


@pytest.mark.parametrize(("validation", "test"), [(9, 0), (5, 4), (0, 12)])
def test_one_annotated_subject_at_least_stays_in_training(validation, test):
    found = cohort()
    with pytest.raises(ConfigError, match="only 9 training subjects have a reference"):
        hold_out(found, seeded_order(found, "phase", 0), validation, test)


def test_nothing_is_held_out_where_the_data_has_its_own_split():
    found = hold_out(cohort(), seeded_order(cohort(), "phase", 0), 2, 0)
    with pytest.raises(ConfigError, match="3 asked for, but the data has 2 validation subjects"):
        hold_out(found, seeded_order(found, "phase", 0), 3, 0)


def test_a_cohort_without_annotation_is_left_as_it_is():
    found = cohort(3, unlabeled=3)
    assert hold_out(found, [], 0, 0) == found
    assert choose_labeled(found, [], None) == []


def test_a_subject_in_two_splits_is_told_in_the_sources_words():
    cases = (
        SourceCase("a", Path("a.nii"), None, "train", "s1", origin="imagesTr"),
        SourceCase("b", Path("b.nii"), None, "test", "s1", origin="scan_labels.csv"),
    )
    with pytest.raises(DataError) as error:
        require_one_split(Dataset("nnunet", "made", {}, cases))
    assert str(error.value) == (
        "made: subject s1 is in two splits, case a in train (imagesTr) and case b in test"
        " (scan_labels.csv); keep a subject's scans in one, or name the subjects in a table with"
        " case_id and subject_id (--ingest.scan_labels)"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("order.json", json.dumps(["s03", "s01"])),
        ("order.json", json.dumps({"train_subjects_in_order": ["s03", "s01"], "note": 1})),
        ("order.txt", "s03\n\n s01 \n"),
    ],
)
def test_an_order_is_read_from_json_or_text(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = cohort()
    order = read_order(tmp_path / name, found)
    assert order == ["s03", "s01"]
    assert choose_labeled(found, order, 1) == ["s03"]
    with pytest.raises(ConfigError, match="3 asked for, but only 2"):
        choose_labeled(found, order, 3)


def test_a_held_out_subject_is_passed_over_in_an_order(tmp_path):
    found = cohort()
    order = seeded_order(found, "phase", 0)
    out = hold_out(found, order, 1, 0)
    assert choose_labeled(out, list(reversed(order)), 2) == [order[-2], order[-3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["s03", "x"]', r"subject x is not in made \(1 such\); its subjects are named like s00"),
        ('["s03", "s03"]', "a subject is named twice"),
        ('{"other": []}', "expected a list of subjects"),
        ("{", "not readable"),
    ],
)
def test_a_wrong_order_is_refused(tmp_path, text, message):
    (tmp_path / "order.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_order(tmp_path / "order.json", cohort())


def test_references_outside_of_the_chosen_values_are_hidden_from_training_only():
    found = hold_out(cohort(), seeded_order(cohort(), "phase", 0), 0, 2)
    kept = hide_other_values(found, "phase", ("native", "arterial"))
    for before, after in zip(found.cases, kept.cases, strict=True):
        hidden = before.split == "train" and before.scan_labels["phase"] == "portal_venous"
        assert after.reference == (None if hidden else before.reference)
    assert {c.scan_labels["phase"] for c in kept.cases if c.split == "train" and c.reference} == {
        "native",
        "arterial",
    }
    assert hide_other_values(found, "phase", ()) is found


def test_a_value_that_no_annotated_scan_has_is_one_line():
    with pytest.raises(ConfigError, match=r"has phase 'delayed'; they have arterial, native"):
        hide_other_values(cohort(), "phase", ("delayed",))
