from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.tables import with_table
from sacl.errors import DataError
from sacl.files.documents import read_rows

FOUND = Dataset(
    "nnunet",
    "two",
    {1: "liver"},
    tuple(SourceCase(c, Path(f"{c}.nii.gz"), split="train", origin="imagesTr") for c in "ab"),
)


@pytest.fixture
def csv(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "labels.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_spreadsheets_of_any_country_are_read(csv, mark, encoding):
    path = csv(f"case_id{mark}Phase\r\na{mark}End-diastole\r\n", encoding)
    assert read_rows(path) == {"a": {"case_id": "a", "phase": "End-diastole"}}


def test_the_table_names_subject_split_and_labels(csv):
    found = with_table(
        FOUND, csv("case_id,subject_id,split,phase\na,s1,val,End diastole\nb,s2,,\n")
    )
    a, b = found.cases
    assert (a.subject_id, a.split, a.scan_labels) == ("s1", "validation", {"phase": "end_diastole"})
    assert (b.subject_id, b.split, b.scan_labels) == ("s2", "train", {"phase": "unknown"})
    assert (a.origin, b.origin) == ("labels.csv", "imagesTr")


def test_a_case_without_a_row_is_unknown_and_reported(csv):
    found = with_table(FOUND, csv("case_id,phase\na,native\nz,native\n"))
    assert found.cases[1].scan_labels == {"phase": "unknown"}
    assert found.notes == (
        "1 cases have no row in labels.csv; their scan-wise labels are unknown",
        "1 rows of labels.csv name no scan: z",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,phase\nx,native\n", "no row names a case of two; the table has 'x'"),
        ("case_id,phase\na,native\na,portal\n", "case a appears twice"),
        ("case_id,split\na,fold3\n", "labels.csv: case a has the split 'fold3'"),
        ("phase\nnative\n", "line 2 has no case_id"),
        ("", "no row"),
    ],
)
def test_a_wrong_table_is_refused(csv, text, message):
    with pytest.raises(DataError, match=message):
        with_table(FOUND, csv(text))


def test_a_missing_table_is_refused_without_its_folder(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: not readable") as error:
        read_rows(tmp_path / "gone.csv")
    assert str(tmp_path) not in str(error.value)


def test_phases_get_one_word_and_other_labels_are_left_alone(csv):
    found = with_table(FOUND, csv("case_id,phase,site\na,Venous,venous\nb,ED,plain\n"))
    assert found.cases[0].scan_labels == {"phase": "portal_venous", "site": "venous"}
    assert found.cases[1].scan_labels == {"phase": "ed", "site": "plain"}


def test_an_empty_cell_leaves_what_the_dataset_knows_and_a_word_replaces_it(csv):
    own = {"phase": "native", "site": "here"}
    cases = tuple(dataclasses.replace(case, scan_labels=own) for case in FOUND.cases)
    found = with_table(
        dataclasses.replace(FOUND, cases=cases), csv("case_id,phase,site\na,,\nb,unknown,there\n")
    )
    assert found.cases[0].scan_labels == own
    assert found.cases[1].scan_labels == {"phase": "unknown", "site": "there"}
