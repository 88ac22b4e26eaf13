import csv
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sacl.errors import DataError
from sacl.scores.summary import COLUMNS, ScoreRow, read_scores, write_scores
from sacl.types import OrganScore

_NUMBER = st.floats(allow_nan=True, allow_infinity=True)
_TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


def _same(a, b):
    return (math.isnan(a) and math.isnan(b)) or a == b


@settings(max_examples=40, deadline=None)
@given(
    numbers=st.lists(_NUMBER, min_size=5, max_size=5), texts=st.lists(_TEXT, min_size=5, max_size=5)
)
def test_rows_come_back_exactly(tmp_path_factory, numbers, texts):
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    run, subject, split, case, organ = texts
    row = ScoreRow(run, subject, split, OrganScore(case, organ, *numbers))
    write_scores(path, [row])
    (back,) = read_scores(path)
    assert (back.run, back.subject_id, back.split) == (run, subject, split)
    assert (back.score.case_id, back.score.organ) == (case, organ)
    ours = [getattr(back.score, name) for name in COLUMNS[5:]]
    assert all(_same(a, b) for a, b in zip(ours, numbers, strict=True))


def test_undefined_is_an_empty_field_and_an_infinite_distance_says_inf(tmp_path):
    score = OrganScore("c", "liver", math.nan, math.inf, 0.5, 1.0, 0.0)
    write_scores(tmp_path / "scores.csv", [ScoreRow("main", "s", "test", score)])
    text = (tmp_path / "scores.csv").read_text().splitlines()
    assert text == [",".join(COLUMNS), "main,c,s,test,liver,,inf,0.5,1.0,0.0"]


def test_table_without_a_column_is_refused(tmp_path):
    (tmp_path / "scores.csv").write_text("run,case_id\nmain,c\n")
    with pytest.raises(DataError, match=r"scores\.csv: no column subject_id, split"):
        read_scores(tmp_path / "scores.csv")


def test_score_that_is_no_number_is_refused_with_its_line(tmp_path):
    (tmp_path / "scores.csv").write_text(",".join(COLUMNS) + "\nr,c,s,test,liver,high,1,1,1,1\n")
    with pytest.raises(DataError, match=r"scores\.csv, line 2: a score is not a number"):
        read_scores(tmp_path / "scores.csv")


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A1", "+1", "-1+2", "@SUM(A1)", "'quoted", "'=x"])
def test_a_name_that_a_spreadsheet_would_run_is_written_as_text_and_read_back(tmp_path, name):
    path = tmp_path / "scores.csv"
    row = ScoreRow("main", name, "test", OrganScore(name, "liver", 0.5, 1.0, 0.5, 1.0, 1.0))
    write_scores(path, [row])
    with path.open(newline="") as file:
        written = next(iter(csv.DictReader(file)))
    assert written["case_id"] == written["subject_id"] == f"'{name}"
    assert read_scores(path) == [row]
