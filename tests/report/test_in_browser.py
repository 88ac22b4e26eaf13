"""What people see and do, in a real browser: skipped where there is no Chromium."""

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "stages"))
from fake_work import fake_work

from research.benchmarks.browser import Browser, chromium
from sacl.report.pictures import reels
from sacl.settings import EvaluateSettings, IngestSettings, ReportSettings, RunConfig
from sacl.stages import report as stage_report
from sacl.stages.check import check
from sacl.stages.evaluate import evaluate
from sacl.stages.report import report

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium to look at pages with")

ORDER = """[...document.querySelectorAll("table.scans tbody tr")].filter((row) => !row.hidden)
  .map((row) => row.querySelector("img").alt.split(" ").at(-1))"""
PRESS = 'document.querySelector("table.scans thead th:nth-child({}) button").click(); {}'
CELL = 'document.querySelector("table.scans tbody tr").cells[{}].textContent'
SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    workspace = fake_work(tmp_path_factory.mktemp("browser") / "work", shape=(40, 30, 12))
    evaluate(EvaluateSettings(), workspace)
    return workspace


@pytest.fixture(scope="module")
def page(work):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_report, "reels", functools.partial(reels, side=60))
        return report(ReportSettings(), work)


@pytest.fixture(scope="module")
def checked(work):
    out = work.root.parent / "check.html"
    check(RunConfig(work=work.root, ingest=IngestSettings(data=(work.root,))), out)
    return out


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


def test_a_column_sorts_up_and_down_with_the_undefined_last(browser, page):
    browser.open(page)
    scored = [f"subject-0{n}-a" for n in (4, 5, 6, 7)]
    up = browser.run(PRESS.format(2, ORDER))
    cells = [float(browser.run(CELL.format(1)))]
    down = browser.run(PRESS.format(2, ORDER))
    cells.append(float(browser.run(CELL.format(1))))
    assert cells[0] < cells[1]
    assert sorted(up[:4]) == sorted(down[:4]) == scored
    assert up[:4] == down[:4][::-1]
    assert browser.run('document.querySelector("[aria-sort]").ariaSort') == "descending"


def test_scans_are_found_by_words_and_by_kind(browser, page):
    browser.open(page)
    look = """const form = document.querySelector("form.tools");
      form.querySelector("input").value = {!r}; form.elements.show.value = {!r};
      form.dispatchEvent(new Event("input")); [{}, form.querySelector("output").textContent]"""
    ask = "(() => {{ {} }})()"
    for words, kind, expected in [
        ("", "", 8),
        ("05-A test", "", 1),
        ("nowhere", "", 0),
        ("", "scored", 4),
        ("", "unscored", 4),
        ("native", "train", 2),
    ]:
        script = ask.format(look.format(words, kind, ORDER).replace("[[", "return [["))
        shown, told = browser.run(script)
        assert len(shown) == expected
        assert told == f"{expected} of 8"


def test_an_organ_that_is_chosen_fills_the_columns(browser, page):
    browser.open(page)
    choose = """(() => { const organ = document.querySelector("form.tools").elements.organ;
      organ.value = "%s"; organ.dispatchEvent(new Event("input", {bubbles: true}));
      const row = document.querySelector("table.scans tbody tr");
      return [row.dataset.organs, ...[1, 3, 4].map((n) => row.cells[n].textContent)]; })()"""
    all_organs = browser.run(choose % "")
    organs, dice, hd95, volume = browser.run(choose % "1")
    of_spleen = organs.split("|")[1].split(";")
    assert [dice, hd95] == of_spleen[:2]
    assert volume == f"{of_spleen[2]} mL, {of_spleen[3]}\u00a0\N{MULTIPLICATION SIGN}"
    assert browser.run(choose % "") == all_organs


def test_slices_scroll_by_slider_and_wheel_and_outlines_hide(browser, page):
    browser.open(page.parent / "scans" / "subject-05-a.html")
    move = """(() => { const figure = document.querySelector(".planes figure");
      const slider = figure.querySelector("input");
      slider.value = 2; slider.dispatchEvent(new Event("input"));
      const first = figure.querySelector("output").textContent;
      figure.querySelector(".window").dispatchEvent(new WheelEvent("wheel", {deltaY: 9}));
      const box = figure.querySelector(".scan").getBoundingClientRect();
      const view = figure.querySelector(".window").getBoundingClientRect();
      return [first, figure.querySelector("output").textContent, slider.ariaValueText,
        (view.top - box.top) / view.height]; })()"""
    first, then, told, above = browser.run(move)
    assert (first, then, told) == ("slice 3 of 12", "slice 4 of 12", "slice 4 of 12")
    assert above == pytest.approx(3, abs=0.01), "the fourth slice is in the window"
    hide = """(() => { document.querySelector("[name=prediction]").click();
      return [".prediction", ".reference"].map((layer) =>
        getComputedStyle(document.querySelector(layer)).visibility); })()"""
    assert browser.run(hide) == ["hidden", "visible"]


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_and_nothing_scrolls_sideways_on_a_phone(browser, page, checked, dark):
    contrast = """(() => { const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
          .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05; };
      const behind = (node) => { for (; node; node = node.parentElement) {
        const color = getComputedStyle(node).backgroundColor;
        if (!/, 0\\)$/.test(color)) return color; } return "rgb(255, 255, 255)"; };
      const shown = [...document.querySelectorAll("body *")].filter((node) => node.offsetParent &&
        [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()));
      return Math.min(...shown.filter((node) => !node.closest("script, .window, option, select"))
        .map((node) => [getComputedStyle(node).color, behind(node)].map(light)
        .sort((a, b) => b - a)).map(([a, b]) => a / b)); })()"""
    for path in (page, checked, page.parent / "scans" / "subject-05-a.html"):
        browser.open(path, 375, 812, dark)
        assert not browser.run(SIDEWAYS), path.name
        assert browser.run(contrast) >= 4.5, path.name
        background = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 150) == dark


def test_all_that_can_be_pressed_is_reached_by_the_keyboard(browser, page):
    browser.open(page)
    focusable = """[...document.querySelectorAll("a, button, input, select, summary, .tall")]
      .every((node) => { node.focus(); return document.activeElement === node; })"""
    assert browser.run(focusable)


def test_a_page_that_was_sent_alone_shows_its_own_pictures_and_no_broken_one(
    browser, page, tmp_path
):
    alone = shutil.copy(page, tmp_path / "page.html")
    browser.open(alone)
    pictures = """(async () => {
      document.querySelectorAll("img[loading]").forEach((image) => image.scrollIntoView());
      await new Promise((done) => setTimeout(done, 1000));
      return [...document.images].map((image) => image.naturalWidth); })()"""
    assert browser.run(pictures) == [768] * 4


def test_every_picture_is_loaded_when_the_page_is_printed(browser, page, tmp_path):
    browser.open(page)
    paper = tmp_path / "page.pdf"
    browser.print(paper)
    assert browser.run("""[...document.images].every((image) => image.naturalWidth === 768)""")
    assert browser.run('[...document.querySelectorAll("details")].every((one) => !one.open)')
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", paper, "-"], capture_output=True, text=True, check=True)
        assert all(text.stdout.count(f"subject-0{n}-a") for n in range(8))
