import dataclasses
import functools
import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from fake_work import fake_work

from sacl.errors import DataError, WorkspaceError
from sacl.files.label_table import hex_color
from sacl.files.nifti import read_label_map, write_label_map
from sacl.prediction.guard import Doubt, Findings, write_findings
from sacl.report.page import significant
from sacl.report.pictures import reels
from sacl.run.record import recorded, state_of
from sacl.run.workspace import Workspace
from sacl.settings import EvaluateSettings, PhantomSettings, ReportSettings
from sacl.stages import report as stage_report
from sacl.stages.evaluate import evaluate
from sacl.stages.report import inputs, report
from sacl.types import LabelScheme

SETTINGS = ReportSettings()
SCORING = EvaluateSettings()
VOID = {"meta", "img", "br", "input"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    workspace = fake_work(tmp_path_factory.mktemp("report") / "work")
    evaluate(SCORING, workspace)
    return workspace


@pytest.fixture(scope="module")
def page(work):
    return report(SETTINGS, work).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    """Draw few small slices in all tests but those of the page that they share."""
    monkeypatch.setattr(stage_report, "reels", functools.partial(reels, side=40, most=2))


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.titles, self.images, self.ids = [], [], [], [], set()

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        self.ids |= {v for k, v in attributes if k == "id"}
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action")]

    def handle_startendtag(self, tag, attributes):
        self.ids |= {v for k, v in attributes if k == "id"}
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


def test_page_says_first_how_good_the_segmenter_is_and_last_what_each_step_brought(page):
    assert _read(page).titles == [
        "fake",
        "Organ by organ",
        "Look at these first",
        "All scans",
        "What this page does not say",
        "How it was made",
        "What each step brought",
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


def _all_pages(work):
    folder = work.folder("report")
    return [folder / "report.html", *sorted((folder / "scans").glob("*.html"))]


def test_every_link_leads_to_a_file_that_is_there(page, work):
    read = {path.resolve(): _read(path.read_text("utf-8")) for path in _all_pages(work)}
    for path, parts in read.items():
        links = [link for link in parts.links if not link.startswith("data:")]
        assert len(links) >= 3
        for link in links:
            file, _, place = unquote(link).partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), link
            assert not place or place in read[target].ids, link


def test_pages_need_no_network_and_say_no_path(page, work):
    for path in _all_pages(work):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?:(?!//www\.w3\.org/1999/xlink)", text)
        assert text.count("<script>") == text.count("<script") == 1
        assert "@import" not in text
        assert not re.search(r"url\((?!#)", text)
        assert str(work.root) not in text
        assert str(work.root.parent) not in text


def test_the_first_page_can_be_sent_alone(page):
    images = [image["src"] for image in _read(page).images if "loading" not in image]
    assert len(images) == 4, "worst, second and third worst, best"
    assert all(uri.startswith("data:image/webp;base64,") for uri in images)


def test_every_picture_has_words(page, work):
    for path in _all_pages(work):
        text = path.read_text(encoding="utf-8")
        assert all(len(image["alt"]) > 10 for image in _read(text).images)
        for svg in re.findall("<svg[^>]*>", text):
            assert 'aria-label="' in svg


def test_label_maps_are_linked_before_anything_else(page):
    headline = page[: page.index("Organ by organ")]
    assert 'href="../6-predictions/semantic/"' in headline
    assert 'href="../7-scores/scores.csv"' in headline


def test_every_organ_has_an_interval_and_the_color_of_the_segmentation(page):
    for number, organ in enumerate(("liver", "spleen", "gallbladder"), start=1):
        row = re.search(rf"<tr><th scope=\"row\">.*?{organ}</th>.*?</tr>", page, re.DOTALL)[0]
        assert re.search(r">0\.\d{3} to 0\.\d{3}</td>", row)
        assert f"background:{hex_color(number)}" in row


def test_a_scan_has_a_page_with_all_planes_and_its_neighbors(page, work):
    folder = work.folder("report") / "scans"
    pages = sorted(path.stem for path in folder.glob("*.html"))
    assert pages == sorted(path.stem for path in folder.glob("*.webp"))
    assert len(pages) == 8
    text = (folder / "subject-05-a.html").read_text(encoding="utf-8")
    assert re.findall(r'<img class="scan"[^>]* alt="(\w+) slices', text) == [
        "Axial",
        "Coronal",
        "Sagittal",
    ]
    assert text.count('<img class="reference"') == text.count('<img class="prediction"') == 3
    assert text.count('type="range"') == 3
    # scan after scan, as in the table
    order = re.findall(r'<a href="scans/([\w-]+)\.html"><img src="scans', page)
    assert len(order) == 8
    for before, after in itertools.pairwise(order):
        assert f'href="{after}.html" rel="next"' in (folder / f"{before}.html").read_text()
        assert f'href="{before}.html" rel="prev"' in (folder / f"{after}.html").read_text()


def test_a_scan_without_a_score_says_why_and_has_its_volumes(page, work):
    folder = work.folder("report") / "scans"
    unlabeled, seen = ((folder / f"subject-0{n}-a.html").read_text() for n in (3, 1))
    assert "Not scored: it has no reference." in unlabeled
    assert '<img class="reference"' not in unlabeled
    assert "Not scored: training has seen its reference." in seen
    label_map = read_label_map(
        work.folder("predict") / "semantic" / "subject-03-a.nii.gz",
        LabelScheme("fake", ("liver", "spleen", "gallbladder")),
    )[0]
    liver_ml = np.count_nonzero(label_map.mask("liver")) * label_map.grid.voxel_ml
    row = re.search(r"liver</th>(.*?)</tr>", unlabeled, re.DOTALL)[1]
    assert f">{significant(liver_ml)}</td>" in row


def test_page_has_the_figures_of_the_summary(page, work):
    summary = json.loads((work.folder("evaluate") / "summary.json").read_text())
    for run in ("semantic", "scratch", "coarse"):
        assert f"{summary['runs'][run]['dice']['mean']:.3f}" in page
    for figures in summary["runs"]["semantic"]["organs"].values():
        assert f"{figures['dice']['mean']:.3f}" in page
        assert f"{figures['dice']['low']:.3f} to {figures['dice']['high']:.3f}" in page
    assert "4 held-out subjects" in page


def test_every_scan_is_in_the_table_those_in_doubt_first(page):
    table = page[page.index("<h2>All scans</h2>") : page.index('<section id="limits">')]
    assert 'class="sortable scans"' in table
    dice = [float(text or "inf") for text in re.findall(r'"Dice" data-value="(.*?)"', table)]
    doubts = [
        int(text) for text in re.findall(r'"in doubt" class="text" data-value="(.*?)"', table)
    ]
    assert len(dice) == len(doubts) == 8
    assert sum(map(math.isfinite, dice)) == 4
    order = [(-count, value) for count, value in zip(doubts, dice, strict=True)]
    assert order == sorted(order)


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


def test_doubts_about_predictions_stand_first_and_before_the_other_runs(tmp_path):
    work = fake_work(tmp_path / "work")
    doubt = Doubt("liver", "vanished", ("subject-05-a",), "liver: vanished in 1 of 8 scans")
    write_findings(work.folder("predict"), Findings((doubt,)))
    evaluate(SCORING, work)
    text = report(SETTINGS, work).read_text()
    said = "liver: vanished in 1 of 8 scans"
    assert text.index(f"1 doubt</a> about the label maps, first {said}") < text.index("<h2>")
    assert (
        text.index("<h2>All scans") < text.rindex(said) < text.index("<h2>What each step brought")
    )


def test_what_others_gained_by_time_and_labels_is_what_the_results_say():
    root = Path(stage_report.__file__).parents[3]
    page = (root / "src/sacl/report/templates/run.html").read_text("utf-8")
    said = re.findall(r"0\.8\d\d|0\.7\d\d", page[page.index('<h3 id="more">') :])
    assert len(said) == 11
    sources = [root / "docs" / "results.md", root / "research" / "findings.md"]
    known = "".join(path.read_text("utf-8") for path in sources)
    assert not [figure for figure in said if figure not in known]


def test_a_run_whose_encoder_was_deleted_still_has_a_page(tmp_path):
    work = fake_work(tmp_path / "work")
    evaluate(SCORING, work)
    shutil.rmtree(work.folder("pretrain"))
    assert "How it was made" in report(SETTINGS, work).read_text()


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
    assert "<h3>Coarse maps" not in text
    _read(text)


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("6-predictions/findings.json", "sacl predict CONFIG.yaml --force"),
        ("4-encoder/losses.csv", "sacl pretrain CONFIG.yaml --force"),
        ("2-coarse/coverage.csv", "sacl locate CONFIG.yaml --force"),
        ("7-scores/scores.csv", "sacl evaluate CONFIG.yaml --force"),
        ("7-scores/summary.json", "sacl evaluate CONFIG.yaml --force"),
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
    assert "The quality of this segmenter is not known" in text
    assert "Nothing was scored" in text
    assert text.count("<td>not known</td>") == 3
    assert _read(text).titles[1:4] == ["Organ by organ", "Look at these first", "All scans"]
    assert "How it was made" in text


def test_an_organ_that_no_label_map_has_is_in_the_table_of_a_run_without_scores(tmp_path):
    work = fake_work(tmp_path / "work", test_subjects=0)
    scheme = LabelScheme("fake", ("liver", "spleen", "gallbladder"))
    for path in work.folder("predict").glob("*/*.nii.gz"):
        label_map, native = read_label_map(path, scheme)
        label_map.voxels[label_map.voxels == 3] = 0
        write_label_map(path, label_map, native)
    evaluate(SCORING, work)
    text = report(SETTINGS, work).read_text()
    assert '"0">0 of 4</td>' in text


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


def test_names_of_scans_are_escaped_in_links_and_in_text(tmp_path):
    work = fake_work(tmp_path / "work")
    odd = 'a#1 50% "<i>&'
    for path in [*work.root.rglob("subject-05-a*")]:
        path.rename(path.with_name(path.name.replace("subject-05-a", odd)))
    manifest = work.folder("ingest") / "cohort.json"
    document = json.loads(manifest.read_text().replace("subject-05-a", "NAME"))
    manifest.write_text(json.dumps(document).replace("NAME", json.dumps(odd)[1:-1]))
    evaluate(SCORING, work)
    text = report(SETTINGS, work).read_text()
    links = [link for link in _read(text).links if "a%231%2050%25" in link]
    assert len(links) == 4, "the page of the scan, twice, its picture and its label map"
    for link in links:
        assert (work.folder("report") / unquote(link)).exists()
    assert "<i>" not in text
    own = (work.folder("report") / "scans" / f"{odd}.html").read_text()
    assert "<h1>a#1 50% &#34;&lt;i&gt;&amp;</h1>" in own
