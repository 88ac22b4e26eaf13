import csv
import dataclasses
import html
import re

import pytest

from sacl.check.cohort_checks import CohortFacts
from sacl.check.findings import Finding
from sacl.check.page import check_page
from sacl.check.record import cohort_record, scan_table, terminal_text
from sacl.check.scan_facts import ScanFacts
from sacl.config import load_config
from sacl.training.forecast import forecast
from sacl.training.step_costs import StepCosts

COSTS = StepCosts(
    device="cpu",
    threads=2,
    cores=2,
    load=1.0,
    locate_s=0.1,
    pretrain_s=1.0,
    finetune_s=0.5,
    parameters={"locate": 1, "pretrain": 1, "finetune": 1},
    peak_gb=0.5,
)


@pytest.fixture
def cohort():
    scans = tuple(
        ScanFacts(f"case<{n}>", f"s{n}", "train", scan_labels={"phase": "native"}) for n in range(9)
    )
    return CohortFacts("a & b", ("liver",), scans, "ct")


def _page(cohort, findings, costs=COSTS):
    expected = forecast(load_config(None), cohort, costs)
    record = cohort_record(cohort, findings) | {
        "origin": "read as nnunet",
        "notes": ["of 2 channels the first is used"],
        "forecast": {
            **dataclasses.asdict(expected),
            "measured": dataclasses.asdict(costs) if costs else None,
            "not_measured": "no training step was timed",
            "free_disk_gb": 10.0,
            "installed_memory_gb": 16.0,
        },
    }
    return check_page(cohort, findings, record), record


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
    assert "<script" not in page
    assert "case<0>" in _text(page)
    assert "a & b" in _text(page)


def test_without_findings_the_page_says_so(cohort):
    page, _ = _page(cohort, [])
    assert "No fault was found." in _text(page)
    assert "of 2 channels the first is used" in _text(page)


@pytest.mark.parametrize(
    ("costs", "said", "unsaid"),
    [
        (COSTS, "1.00 s of pretraining, 0.50 s of fine-tuning, on cpu with 2 threads", "busy"),
        (dataclasses.replace(COSTS, load=5.5), "busy (load 5.5 on 2 cores)", "no training step"),
        (None, "no training step was timed", "Time stage"),
    ],
)
def test_the_estimate_says_what_was_measured(cohort, costs, said, unsaid):
    text = _text(_page(cohort, [], costs)[0])
    assert said in text
    assert unsaid not in text


def test_the_table_reads_back_and_lists_what_is_known_of_an_unreadable_scan(cohort):
    text = scan_table(cohort, [Finding("unreadable", "case<3>", "damaged")])
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["case_id"] for row in rows] == [scan.case_id for scan in cohort.scans]
    assert rows[3]["findings"] == "unreadable"
    assert (rows[3]["phase"], rows[3]["liver mL"]) == ("native", "not annotated")


def test_the_terminal_names_three_cases_of_a_kind_and_counts_the_rest(cohort):
    findings = [Finding("zero-origin", scan.case_id, "origin 0, 0, 0") for scan in cohort.scans]
    _, record = _page(cohort, findings)
    told = terminal_text(record, findings)
    assert told.count("origin 0, 0, 0") == 3
    assert "and 6 more" in told
    assert "0 errors, 0 warnings, 1 note" in told
