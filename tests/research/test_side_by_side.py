import re
from html import unescape

import pytest
from tests.stages.fake_work import fake_work

from research.__main__ import main
from research.side_by_side import in_common, report_runs, runs_page
from sacl.errors import DataError
from sacl.scores.summary import ScoreRow
from sacl.settings import EvaluateSettings
from sacl.stages.evaluate import evaluate
from sacl.types import OrganScore

SCORING = EvaluateSettings()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    workspace = fake_work(tmp_path_factory.mktemp("runs") / "work")
    evaluate(SCORING, workspace)
    return workspace


def _row(run, subject, organ, dice, scan="a", *, hd95=3.0, volumes=(5.0, 5.0)):
    score = OrganScore(f"{subject}-{scan}", organ, dice, hd95, dice, *volumes)
    return ScoreRow(run, subject, "test", score)


def _details(ours, theirs, *more):
    """Return what stands below the first sentence of a page, as plain text."""
    runs = {"pooled": ours, "scratch": theirs} | {f"more-{n}": dice for n, dice in enumerate(more)}
    rows = [
        _row(run, f"s{n}", "liver", value)
        for run, dice in runs.items()
        for n, value in enumerate(dice)
    ]
    page = runs_page(rows, 1, 2.0, resamples=200)
    part = page[page.index('class="headline"') : page.index("</section>")]
    part = part.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    return "\n".join(map(unescape, re.findall("<li>(.*)</li>", part)))


HIGH, LOW = [0.80 + n / 100 for n in range(8)], [0.70 + n / 90 for n in range(8)]


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (HIGH, LOW, "pooled against scratch: better; +9.6 points of Dice"),
        (LOW, HIGH, "pooled against scratch: worse; -9.6 points of Dice"),
        (HIGH, HIGH, "pooled against scratch: the same; 0.0 points of Dice"),
        (HIGH, HIGH[::-1], "pooled against scratch: no clear difference"),
        (HIGH[:4], LOW[:4], "pooled against scratch: no clear difference"),
    ],
)
def test_a_difference_is_called_one_only_where_it_is_tested_to_be(ours, theirs, verdict):
    assert verdict in _details(ours, theirs)


def test_too_few_subjects_for_any_proof_are_named():
    assert "no p-value below 0.125 is possible" in _details(HIGH[:4], LOW[:4])


def test_a_difference_of_one_subject_has_no_interval():
    assert "+10.0 points of Dice, p = 1.00, 1 subject." in _details([0.8], [0.7])


def test_corrected_p_decides_and_not_the_raw_one():
    assert "better" not in _details(HIGH[:6], LOW[:6], LOW[:6], LOW[:6])
    assert "better" in _details(HIGH[:6], LOW[:6])


def test_the_command_writes_the_page_and_names_it(tmp_path, work, capsys):
    page = tmp_path / "one.html"
    assert main(["runs", str(work.root), "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"page: {page}\n"
    assert "Runs compared" in page.read_text()


def test_several_runs_stand_in_one_table(tmp_path, work):
    other = fake_work(tmp_path / "other", arms=("scratch-long",))
    evaluate(SCORING, other)
    text = report_runs([work.root, other.root], tmp_path / "two.html").read_text()
    assert "work: semantic" in text
    assert "other: scratch-long" in text
    assert "work: scratch" in text
    assert ">coarse" not in text
    assert "12 pairs of scan and organ" in text


def test_works_named_alike_are_told_apart_by_their_parent(tmp_path, work):
    twin = fake_work(tmp_path / "again" / "work")
    evaluate(SCORING, twin)
    text = report_runs([work.root, twin.root], tmp_path / "two.html").read_text()
    assert "again/work: semantic" in text


def test_one_work_given_twice_is_refused(tmp_path, work):
    with pytest.raises(DataError, match="named twice"):
        report_runs([work.root, work.root], tmp_path / "two.html")


def test_other_tolerances_are_refused(tmp_path, work):
    other = fake_work(tmp_path / "other")
    evaluate(EvaluateSettings(nsd_tolerance_mm=1.0), other)
    with pytest.raises(DataError, match=r"NSD tolerances of \[1\.0, 2\.0\] mm differ"):
        report_runs([work.root, other.root], tmp_path / "two.html")
    assert not (tmp_path / "two.html").exists()


def test_a_file_of_the_users_is_not_overwritten(tmp_path, work):
    other, out = fake_work(tmp_path / "other"), tmp_path / "two.html"
    evaluate(SCORING, other)
    report_runs([work.root, other.root], out)
    report_runs([work.root, other.root], out)
    out.write_text("<html>my own page</html>")
    with pytest.raises(DataError, match=r"two\.html: exists"):
        report_runs([work.root, other.root], out)
    assert out.read_text() == "<html>my own page</html>"


def test_pooling_keeps_what_all_runs_scored_with_the_main_runs_first():
    one = [_row("semantic", "s1", "liver", 0.8), _row("semantic", "s2", "liver", 0.8)]
    one += [_row("scratch", "s1", "liver", 0.5), _row("coarse", "s1", "liver", 0.3)]
    two = [_row("simclr", "s1", "liver", 0.7), _row("simclr", "s3", "liver", 0.7)]
    pooled = in_common({"one": one, "two": two}, left_out=["coarse"])
    assert [row.run for row in pooled] == ["one: semantic", "two: simclr", "one: scratch"]
    assert {row.score.case_id for row in pooled} == {"s1-a"}


def test_pooling_refuses_runs_without_a_common_scan():
    one, two = [_row("a", "s1", "liver", 0.8)], [_row("a", "s2", "liver", 0.7)]
    with pytest.raises(DataError, match="no scan that all runs scored"):
        in_common({"one": one, "two": two})
    with pytest.raises(DataError, match="no scan that all runs scored"):
        in_common({"one": one, "two": []})


def test_pooling_refuses_runs_on_other_references():
    one = [_row("a", "s1", "liver", 0.8)]
    two = [_row("a", "s1", "liver", 0.7, volumes=(5.5, 5.0))]
    with pytest.raises(
        DataError, match=r"case s1-a has 5\.500 ml of liver in the reference of two"
    ):
        in_common({"one": one, "two": two})
