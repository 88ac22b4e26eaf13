import csv
import html
import re
from dataclasses import replace

import pytest

from sacl.check.cohort_checks import CohortFacts
from sacl.check.facts import ScanFacts
from sacl.check.findings import Finding
from sacl.check.page import check_page, check_record, scan_table


@pytest.fixture
def cohort():
    scans = tuple(
        ScanFacts(f"case<{n}>", f"s{n}", "train", scan_labels={"phase": "native"}) for n in range(9)
    )
    return CohortFacts("a & b", ("liver",), scans, "ct")


def _page(cohort, findings):
    record = check_record(cohort, findings, "read as nnunet", ["the first of 2 channels is used"])
    return check_page(cohort, record), record


def _text(page):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_a_finding_of_many_scans_is_one_paragraph_with_the_rest_folded_away(cohort):
    findings = [Finding("zero-origin", scan.case_id, "origin 0, 0, 0") for scan in cohort.scans]
    page, _ = _page(cohort, findings)
    assert page.count("Scans at the origin of the world") == 1
    shown, folded = page.split("3 more</summary>", 1)
    assert shown.count("origin 0, 0, 0") == 6
    assert folded.split("</details>")[0].count("origin 0, 0, 0") == 3


def test_names_are_escaped(cohort):
    page, _ = _page(cohort, [Finding("unreadable", "case<0>", "<script>")])
    assert page.count("<script") == 1, "ours, which sorts"
    assert "&lt;script&gt;" in page
    assert "case<0>" in _text(page)
    assert "a & b" in _text(page)


def test_scans_with_findings_come_first_each_with_its_picture_and_links(cohort):
    scans = tuple(replace(scan, picture=b"RIFF") for scan in cohort.scans)
    findings = [Finding("lost-header", "case<7>", "spacing 1 x 1 x 1 mm")]
    page, _ = _page(replace(cohort, scans=scans), findings)
    table = page[page.index('<section id="scans">') :]
    cases = re.findall(r'alt="Axial, coronal and sagittal slice of case&lt;(\d)&gt;"', table)
    assert cases == ["7", "0", "1", "2", "3", "4", "5", "6", "8"]
    assert '<a href="#lost-header">lost-header</a>' in table
    assert 'id="lost-header"' in page
    assert 'href="check.csv"' in table
    assert 'href="check.json"' in table


def test_without_findings_the_page_says_so(cohort):
    page, _ = _page(cohort, [])
    assert "No fault in this cohort." in _text(page)
    assert "the first of 2 channels is used" in _text(page)


def test_the_table_reads_back_and_lists_what_is_known_of_an_unreadable_scan(cohort):
    text = scan_table(cohort, [Finding("unreadable", "case<3>", "damaged")])
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["case_id"] for row in rows] == [scan.case_id for scan in cohort.scans]
    assert rows[3]["findings"] == "unreadable"
    assert (rows[3]["phase"], rows[3]["liver mL"]) == ("native", "not annotated")


def test_the_terminal_names_three_cases_of_a_kind_and_counts_the_rest(cohort):
    findings = [Finding("zero-origin", scan.case_id, "origin 0, 0, 0") for scan in cohort.scans]
    _, record = _page(cohort, findings)
    told = record.as_text()
    assert told.count("origin 0, 0, 0") == 3
    assert "and 6 more" in told
    assert "0 errors, 0 warnings, 1 note" in told


def test_names_that_a_spreadsheet_would_run_are_text_in_the_table():
    evil = "=cmd|'/c calc'!A1"
    scan = ScanFacts(evil, "s", "train", scan_labels={"phase": "@x"})
    text = scan_table(CohortFacts("a", (), (scan,), "ct"), [])
    (row,) = csv.DictReader(text.splitlines())
    assert (row["case_id"], row["phase"]) == (f"'{evil}", "'@x")
