import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from fake_work import fake_work

from sacl.errors import DataError, WorkspaceError
from sacl.prediction.guard import Doubt, Findings, write_findings
from sacl.run.record import recorded, state_of
from sacl.run.workspace import Workspace
from sacl.settings import EvaluateSettings, PhantomSettings, ReportSettings
from sacl.stages.evaluate import evaluate
from sacl.stages.report import inputs, report

SETTINGS = ReportSettings()
SCORING = EvaluateSettings()
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    workspace = fake_work(tmp_path_factory.mktemp("report") / "work")
    evaluate(SCORING, workspace)
    return workspace


@pytest.fixture(scope="module")
def page(work):
    return report(SETTINGS, work).read_text(encoding="utf-8")


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.titles = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action")]

    def handle_startendtag(self, tag, attributes):
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.titles.append(data)


def _read(page):
    reader = _Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_page_says_first_how_good_the_segmenter_is_and_last_what_it_does_not_say(page):
    assert _read(page).titles == [
        "fake",
        "Organ by organ",
        "Scan by scan",
        "How training went",
        "Coarse maps",
        "The runs side by side",
        "What was run",
        "What this page does not say",
    ]
    assert "Mean Dice" in page[: page.index("Organ by organ")]
    assert "Left out" not in page


def test_page_says_what_was_run_with_every_setting_in_one_line(page):
    assert "<dt>Cohort</dt><dd>fake, CT, 8 scans</dd>" in page
    assert "<dd>native (3), portal venous (3), unknown (2)</dd>" in page
    assert re.search(r"<dt>Duration</dt><dd>\d+ s in all: ingest \d+ s, locate \d+ s", page)
    assert (
        "<dd>dense.teacher_steps 3000, dense.copy_paste 0.0, query None, volume None, decoder unet,"
        in page
    )


def test_a_block_without_settings_is_not_said(tmp_path):
    work = fake_work(tmp_path / "work")
    record = work.folder("finetune") / "run.json"
    text = json.loads(record.read_text())
    text["settings"]["finetune"] = {"dense": None, "query": {}, "steps": 5}
    record.write_text(json.dumps(text))
    evaluate(SCORING, work)
    assert "<dd>dense None, steps 5</dd>" in report(SETTINGS, work).read_text()


def test_page_needs_nothing_but_itself(page, work):
    links = _read(page).links
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert page.count("<script>") == page.count("<script") == 1
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert str(work.root) not in page
    assert str(work.root.parent) not in page


def test_page_has_the_figures_of_the_summary(page, work):
    summary = json.loads((work.folder("evaluate") / "summary.json").read_text())
    for run in ("semantic", "scratch", "coarse"):
        assert f"{summary['runs'][run]['dice']['mean']:.3f}" in page
    for figures in summary["runs"]["semantic"]["organs"].values():
        assert f"{figures['dice']:.3f}" in page
    assert "4 held-out subjects" in page


def test_every_scan_is_in_a_table_that_sorts_and_the_worst_have_pictures(page, work):
    table = page[page.index("Scan by scan") : page.index("Worst, median and best")]
    assert 'class="sortable"' in table
    dice = [float(text) for text in re.findall(r'data-value="([\d.]+)"[^>]*>0\.\d+</td>', table)]
    means = dice[::2]
    assert len(means) == 4
    assert means == sorted(means)
    assert page.count("<img ") == 4


def test_page_is_readable_in_the_dark_and_in_print(page):
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert "currentColor" in page


def test_names_are_escaped(tmp_path):
    work = fake_work(tmp_path / "work")
    work = dataclasses.replace(work, name="<b>A & B</b>")
    evaluate(SCORING, work)
    text = report(SETTINGS, work).read_text()
    assert "&lt;b&gt;A &amp; B&lt;/b&gt;" in text
    assert "<b>A" not in text


def test_the_page_is_the_same_when_it_is_written_again(work):
    first = report(SETTINGS, work).read_text()
    assert report(SETTINGS, work).read_text() == first


def test_doubts_about_predictions_stand_before_the_other_runs(tmp_path):
    work = fake_work(tmp_path / "work")
    doubt = Doubt("liver", "vanished", ("subject-05-a",), "liver: vanished in 1 of 8 scans")
    write_findings(work.folder("predict"), Findings((doubt,)))
    evaluate(SCORING, work)
    text = report(SETTINGS, work).read_text()
    assert text.index("Scan by scan") < text.index("liver: vanished in 1 of 8 scans")
    assert text.index("liver: vanished in 1 of 8 scans") < text.index("The runs side by side")


def test_a_run_whose_encoder_was_deleted_still_has_a_page(tmp_path):
    work = fake_work(tmp_path / "work")
    evaluate(SCORING, work)
    shutil.rmtree(work.folder("pretrain"))
    assert "What was run" in report(SETTINGS, work).read_text()


def test_report_is_up_to_date_until_the_scores_change(tmp_path):
    work = fake_work(tmp_path / "work")
    evaluate(SCORING, work)
    report(SETTINGS, work)
    assert state_of(work, "report", SETTINGS, inputs(SETTINGS, work)) == "current"
    evaluate(SCORING, work)
    assert state_of(work, "report", SETTINGS, inputs(SETTINGS, work)) == "current"
    evaluate(EvaluateSettings(nsd_tolerance_mm=9.0), work)
    assert state_of(work, "report", SETTINGS, inputs(SETTINGS, work)) == "stale"


def test_parts_without_files_are_left_out_and_said(tmp_path):
    work = fake_work(tmp_path / "work")
    evaluate(SCORING, work)
    (work.folder("locate") / "coverage.csv").unlink()
    for path in work.root.glob("**/losses.csv"):
        path.unlink()
    text = report(SETTINGS, work).read_text()
    assert "Left out: losses.csv is not in the work directory." in text
    assert "<h2>Coarse maps" not in text
    _read(text)


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("6-predictions/findings.json", "sacl predict CONFIG.yaml --force"),
        ("4-encoder/losses.csv", "sacl pretrain CONFIG.yaml --force"),
        ("2-coarse/coverage.csv", "sacl locate CONFIG.yaml --force"),
        ("7-scores/scores.csv", "evaluate again"),
        ("7-scores/summary.json", "evaluate again"),
    ],
)
def test_a_damaged_file_is_named_in_one_line_with_the_remedy(tmp_path, file, remedy):
    work = fake_work(tmp_path / "work")
    evaluate(SCORING, work)
    (work.root / file).write_bytes(b'{"doubts": [3], "x": "\xff')
    with pytest.raises(DataError, match=rf"{file.split('/')[1]}: .*{remedy}") as raised:
        report(SETTINGS, work)
    assert "\n" not in str(raised.value)


def test_run_without_scores_still_has_a_page(tmp_path):
    work = fake_work(tmp_path / "work", test_subjects=0)
    evaluate(SCORING, work)
    text = report(SETTINGS, work).read_text()
    assert "Nothing was scored" in text
    assert "What was run" in text


def test_phantoms_are_called_phantoms(tmp_path, page):
    work = fake_work(tmp_path / "work")
    with recorded(work, "phantom", PhantomSettings(scans=8), {}):
        pass
    evaluate(SCORING, work)
    assert "generated phantoms" in report(SETTINGS, work).read_text()
    assert "generated phantoms" not in page


def test_needs_the_scores(tmp_path):
    with pytest.raises(WorkspaceError, match="has no result"):
        report(SETTINGS, Workspace(tmp_path))


def test_another_name_of_the_run_makes_the_page_stale_and_needs_no_force(tmp_path):
    work = fake_work(tmp_path / "work")
    evaluate(SCORING, work)
    report(SETTINGS, work)
    renamed = dataclasses.replace(work, name="renamed")
    assert state_of(renamed, "report", SETTINGS, inputs(SETTINGS, renamed)) == "stale"
