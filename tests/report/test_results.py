import math
import re
from html import unescape

import numpy as np
import pytest

from sacl.report.figures import only_annotated, telling_slice
from sacl.report.page import render
from sacl.report.results import scan_lines, scores_part, shown_roles
from sacl.scores.summary import ScoreRow, score_table, summarize
from sacl.types import Grid, LabelMap, LabelScheme, OrganScore


def _rows(run, dice_of, organ="liver", volumes=(5.0, 5.0)):
    return [
        ScoreRow(run, f"s{n}", "test", OrganScore(f"s{n}-a", organ, dice, 3.0, dice, *volumes))
        for n, dice in enumerate(dice_of)
    ]


def _headline(rows):
    """Return the first sentence of a page and what stands below it, as plain text."""
    summary = summarize(rows, 2.0, resamples=200)
    page = render("results.html", summary=summary, scores=scores_part(rows))
    part = page[page.index('class="headline"') : page.index("</section>")]
    part = part.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    [sentence] = re.findall("<p>(.*)</p>", part)
    return unescape(sentence), "\n".join(map(unescape, re.findall("<li>(.*)</li>", part)))


HIGH = [0.80 + n / 100 for n in range(8)]


def test_the_first_sentence_says_how_good_the_segmenter_is():
    sentence, details = _headline(_rows("pooled", HIGH))
    assert sentence.startswith("Mean Dice 0.835 (95 % interval 0.8")
    assert sentence.endswith("over 8 held-out subjects.")
    assert details == "0 of 8 organs were missed, 0 shown where there is none."


def test_missed_and_invented_organs_are_counted_first():
    rows = _rows("pooled", HIGH) + _rows("pooled", [0.0], "spleen", (5.0, 0.0))
    rows += _rows("pooled", [0.0], "aorta", (0.0, 5.0))
    assert "1 of 9 organs were missed, 1 shown where there is none." in _headline(rows)[1]


def test_one_subject_has_no_interval():
    sentence, _ = _headline(_rows("pooled", [0.8]) + _rows("scratch", [0.7]))
    assert sentence == "Mean Dice 0.800 over 1 held-out subject."


def test_no_run_says_so():
    assert _headline([])[0].startswith("Nothing was scored")


def test_scans_are_listed_the_worst_first_with_what_went_wrong():
    rows = _rows("pooled", [0.9, 0.3, math.nan, 0.6])
    rows += _rows("pooled", [0.0], "spleen", (5.0, 0.0)) + _rows("pooled", [0.0], "aorta", (0, 5.0))
    lines = scan_lines(score_table(rows))
    assert [line.case_id for line in lines] == ["s0-a", "s1-a", "s3-a", "s2-a"]
    assert (lines[0].dice, lines[0].worst_organ) == (pytest.approx(0.3), "spleen")
    assert (lines[0].missed, lines[0].invented) == (("spleen",), ("aorta",))
    assert math.isnan(lines[-1].dice)
    assert (lines[-1].worst_organ, lines[-1].missed) == ("", ())


def _roles(dice_of):
    lines = scan_lines(score_table(_rows("pooled", dice_of)))
    return {role: line.case_id for role, line in shown_roles(lines).items()}


def test_the_worst_the_median_and_the_best_scans_are_shown_once_each():
    assert _roles([0.9, 0.2, 0.5, 0.7, 0.8, 0.1]) == {
        "worst": "s5-a",
        "second worst": "s1-a",
        "third worst": "s2-a",
        "best": "s0-a",
    }
    many = _roles([n / 10 for n in range(10)])
    assert (many["median"], many["best"]) == ("s4-a", "s9-a")
    assert _roles([0.9]) == {"worst": "s0-a"}
    assert _roles([math.nan]) == {}


def test_the_slice_with_most_wrong_pixels_is_shown_else_the_fullest():
    reference, predicted = np.zeros((2, 4, 4, 3), np.uint8)
    reference[1, 1, 0] = predicted[1, 1, 0] = 2
    reference[1:3, 1, 2] = predicted[1:3, 1, 2] = 1
    assert telling_slice(reference, predicted) == 2
    predicted[0, 0, 1] = 1
    assert telling_slice(reference, predicted) == 1


def test_an_organ_that_was_not_annotated_is_not_shown_as_a_mistake():
    scheme = LabelScheme("s", ("liver", "spleen", "aorta"))
    voxels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 4
    shown = only_annotated(LabelMap(voxels, Grid((2, 2, 2), np.eye(4)), scheme), ("aorta", "liver"))
    np.testing.assert_array_equal(shown.voxels, np.where(voxels == 2, 0, voxels))
    assert shown.voxels.dtype == np.uint8
