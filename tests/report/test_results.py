import math
import re
from html import unescape

import pytest

from sacl.report.page import render
from sacl.report.results import scan_lines, scores_part, shown_roles
from sacl.scores.summary import ScoreRow, score_table, summarize
from sacl.types import OrganScore


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


def test_poor_organs_are_named_at_once():
    rows = _rows("pooled", HIGH) + _rows("pooled", [0.4] * 8, "portal_vein")
    assert "1 of 2 organs has a mean Dice below 0.5: portal vein." in _headline(rows)[1]


def test_missed_and_invented_organs_are_counted_first():
    rows = _rows("pooled", HIGH) + _rows("pooled", [0.0], "spleen", (5.0, 0.0))
    rows += _rows("pooled", [0.0], "aorta", (0.0, 5.0))
    assert "1 of 9 organs were missed, 1 shown where there is none." in _headline(rows)[1]


def test_one_subject_has_no_interval():
    sentence, _ = _headline(_rows("pooled", [0.8]) + _rows("scratch", [0.7]))
    assert sentence == "Mean Dice 0.800 over 1 held-out subject."


def test_no_run_says_so():
    sentence, details = _headline([])
    assert sentence.startswith("The quality of this segmenter is not known")
    assert "Nothing was scored" in details


def test_scans_are_listed_the_worst_first_with_what_went_wrong():
    rows = _rows("pooled", [0.9, 0.3, math.nan, 0.6])
    rows += _rows("pooled", [0.0], "spleen", (5.0, 0.0)) + _rows("pooled", [0.0], "aorta", (0, 5.0))
    lines = scan_lines(score_table(rows))
    assert [line.case_id for line in lines] == ["s0-a", "s1-a", "s3-a", "s2-a"]
    assert (lines[0].dice, lines[0].worst.organ) == (pytest.approx(0.3), "spleen")
    doubts = {organ.organ: organ.doubt for organ in lines[0].doubtful}
    assert doubts == {"spleen": "missed", "aorta": "invented"}
    assert [organ.doubt for organ in lines[1].doubtful] == ["Dice 0.30"]
    assert math.isnan(lines[-1].dice)
    assert (lines[-1].worst, lines[-1].doubtful) == (None, [])


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
    assert _roles([math.nan]) == {"without a score, 1 of 1": "s0-a"}


def _unscored(case, organ, volume):
    nothing = (math.nan,) * 4
    return ScoreRow("pooled", case, "train", OrganScore(case, organ, *nothing, volume))


def test_without_a_score_an_unusual_volume_is_in_doubt():
    volumes = [100.0, 104.0, 96.0, 101.0, 99.0, 103.0, 97.0, 100.0, 25.0, 120.0, 0.0]
    rows = [_unscored(f"s{n}", "liver", ml) for n, ml in enumerate(volumes)]
    lines = {line.case_id: line for line in scan_lines(score_table(rows))}
    assert {c: [o.doubt for o in line.doubtful] for c, line in lines.items() if line.doubtful} == {
        "s8": ["0.25 times the usual volume"],
        "s10": ["absent"],
    }
    # by hand: the floor of 0.08 is the standard deviation, and the median is 100
    assert lines["s8"].strangest.z == pytest.approx(math.log10(0.25) / 0.08)
    assert lines["s9"].strangest.times == pytest.approx(1.2)


def test_a_volume_is_not_in_doubt_where_there_is_a_score_or_few_scans():
    few = [_unscored(f"s{n}", "liver", ml) for n, ml in enumerate([100, 100, 100, 1.0])]
    assert not any(line.doubtful for line in scan_lines(score_table(few)))
    many = [_unscored(f"s{n}", "liver", 100.0) for n in range(9)]
    scored = _rows("pooled", [0.9], volumes=(9.0, 10.0))
    lines = scan_lines(score_table([*many, *scored]))
    assert not any(line.doubtful for line in lines)
    assert max(lines, key=lambda line: abs(line.strangest.z)).case_id == "s0-a"


def test_scans_without_a_score_are_pictured_too_where_they_are_in_doubt():
    volumes = [100.0] * 8 + [1.0, 2.0, 3.0, 4.0]
    rows = [_unscored(f"u{n}", "liver", ml) for n, ml in enumerate(volumes)]
    lines = scan_lines(score_table([*_rows("pooled", [0.9, 0.2]), *rows]))
    assert {role: line.case_id for role, line in shown_roles(lines).items()} == {
        "worst": "s1-a",
        "second worst": "s0-a",
        "without a score, 1 of 3": "u8",
        "without a score, 2 of 3": "u9",
        "without a score, 3 of 3": "u10",
    }


def test_an_organ_has_the_volumes_of_all_maps():
    rows = _rows("pooled", HIGH, volumes=(5.0, 6.0))
    part = scores_part(rows, [_unscored("u", "liver", 7.0), _unscored("v", "liver", 0.0)])
    organ = part.organs["liver"]
    assert organ.by_scan == tuple(HIGH)
    assert organ.volumes_ml == (6.0,) * 8 + (7.0,)
    assert organ.maps == 10
    assert [line.case_id for line in part.scored] == [f"s{n}-a" for n in range(8)]
