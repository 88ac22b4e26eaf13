from __future__ import annotations

from pathlib import Path

from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.merging import merge
from sacl.cohort.splits import require_one_split


def case(case_id, subject=None, **more):
    return SourceCase(case_id, Path(f"{case_id}.nii.gz"), subject_id=subject, **more)


def dataset(name, *cases, organs=None, **more):
    return Dataset("nnunet", name, organs or {1: "liver"}, cases, **more)


def test_a_single_dataset_stays_as_it_is():
    one = dataset("one", case("a"))
    assert merge([one]) is one


def test_only_cases_that_clash_get_their_datasets_name():
    merged = merge([dataset("BTCV", case("0001"), case("x")), dataset("AMOS 22", case("0001"))])
    assert [c.case_id for c in merged.cases] == ["BTCV_0001", "x", "AMOS-22_0001"]
    assert merged.name == "BTCV+AMOS-22"
    assert [c.image.name for c in merged.cases] == ["0001.nii.gz", "x.nii.gz", "0001.nii.gz"]
    assert "2 cases that shared a name" in merged.notes[0]


def test_equal_subject_numbers_are_different_people():
    first = dataset("one", case("a", "p1", split="train"), case("b", "p1"), case("c", "p2"))
    second = dataset("two", case("d", "p1", split="test"), case("e", "p3"))
    merged = merge([first, second])
    assert [c.subject for c in merged.cases] == ["one_p1", "one_p1", "p2", "two_p1", "p3"]
    require_one_split(merged)


def test_a_case_without_a_subject_is_not_somebody_elses_subject():
    merged = merge([dataset("one", case("a")), dataset("two", case("b", "a"), case("c", "a"))])
    assert [c.subject for c in merged.cases] == ["one_a", "two_a", "two_a"]


def test_datasets_of_one_name_are_numbered():
    merged = merge([dataset("scans", case("a")), dataset("scans", case("a"))])
    assert [c.case_id for c in merged.cases] == ["scans-1_a", "scans-2_a"]


def test_every_case_keeps_its_split_labels_organs_and_modality():
    first = dataset("one", case("a", split="test", scan_labels={"phase": "native"}), modality="ct")
    second = dataset("Two", case("b", organs={7: "spleen"}), case("c"), organs={3: "IVC"}, ignore=9)
    a, b, c = merge([first, second]).cases
    assert (a.split, a.modality, a.organs) == ("test", "ct", {1: "liver"})
    assert a.scan_labels == {"dataset": "one", "phase": "native"}
    assert (b.scan_labels, b.organs, b.modality) == ({"dataset": "two"}, {7: "spleen"}, None)
    assert (c.organs, c.ignore, a.ignore) == ({3: "IVC"}, 9, None)


def test_a_label_called_dataset_that_the_data_has_is_kept():
    merged = merge(
        [dataset("one", case("a", scan_labels={"dataset": "x"})), dataset("b", case("b"))]
    )
    assert merged.cases[0].scan_labels == {"dataset": "x"}
