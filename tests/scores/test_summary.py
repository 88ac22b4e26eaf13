import json
import math

import pytest

from sacl.errors import DataError
from sacl.scores.summary import (
    ScoreRow,
    read_summary,
    score_table,
    subject_means,
    summarize,
    write_score_summary,
)
from sacl.types import OrganScore


def _row(run, subject, organ, dice, scan="a", *, hd95=3.0, volumes=(5.0, 5.0)):
    score = OrganScore(f"{subject}-{scan}", organ, dice, hd95, dice, *volumes)
    return ScoreRow(run, subject, "test", score)


def _summary(rows):
    return summarize(rows, 2.0, resamples=200)


def test_subject_scanned_often_weighs_no_more_than_another():
    rows = [
        _row("main", "s1", "liver", 0.9, "a"),
        _row("main", "s1", "spleen", 0.7, "a"),
        _row("main", "s1", "liver", 0.6, "b"),
        _row("main", "s2", "liver", 0.4),
    ]
    means = subject_means(score_table(rows), "dice")["main"]
    assert means["s1"] == pytest.approx((0.8 + 0.6) / 2)
    assert _summary(rows).runs["main"].dice.mean == pytest.approx((0.7 + 0.4) / 2)


def test_undefined_and_infinite_scores_are_left_out_of_means_and_counted():
    rows = [
        _row("main", "s1", "liver", 0.8, hd95=4.0),
        _row("main", "s1", "spleen", math.nan, hd95=math.nan, volumes=(0, 0)),
        _row("main", "s1", "kidney", 0.0, hd95=math.inf, volumes=(5, 0)),
        _row("main", "s1", "aorta", 0.0, hd95=math.inf, volumes=(0, 5)),
    ]
    figures = _summary(rows).runs["main"]
    assert figures.dice.mean == pytest.approx(0.8 / 3)
    assert figures.hd95_mm.mean == 4.0
    counts = ("pairs", "undefined", "missed", "invented", "infinite_hd95")
    assert [getattr(figures, name) for name in counts] == [4, 1, 1, 1, 2]
    assert math.isnan(figures.organs["spleen"].dice.mean)
    assert math.isnan(figures.organs["kidney"].hd95_mm.mean)


def test_an_organ_has_an_interval_over_its_own_subjects():
    spleens = [_row("main", f"s{n}", "spleen", 0.3) for n in range(4)]
    livers = [_row("main", f"s{n}", "liver", 0.5 + n / 20) for n in range(8)]
    organs = _summary(livers + spleens).runs["main"].organs
    assert organs["liver"].dice.mean == pytest.approx(0.675)
    assert 0.5 < organs["liver"].dice.low < 0.675 < organs["liver"].dice.high < 0.85
    spleen = organs["spleen"].dice
    assert (spleen.mean, spleen.low, spleen.subjects) == (pytest.approx(0.3), pytest.approx(0.3), 4)


def test_summary_is_json_without_nan_and_is_read_back(tmp_path):
    rows = [_row("main", "s1", "liver", math.nan, hd95=math.nan, volumes=(0, 0))]
    rows += [_row(run, "s1", "spleen", 0.5) for run in ("main", "scratch")]
    path = tmp_path / "summary.json"
    write_score_summary(path, _summary(rows))
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert document["runs"]["main"]["organs"]["liver"]["dice"]["mean"] is None
    assert document["runs"]["main"]["dice"]["low"] is None
    assert document["bootstrap"] == {"resamples": 200, "seed": 0}
    back = read_summary(path)
    write_score_summary(tmp_path / "again.json", back)
    assert (tmp_path / "again.json").read_text() == path.read_text()
    assert math.isnan(back.runs["main"].organs["liver"].dice.mean)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"runs": 3}'])
def test_a_file_of_another_kind_is_no_summary(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match=r"summary\.json: not a summary of scores"):
        read_summary(tmp_path / "summary.json")


def test_summary_of_nothing_is_empty():
    summary = _summary([])
    assert (summary.runs, summary.subjects) == ({}, {})
