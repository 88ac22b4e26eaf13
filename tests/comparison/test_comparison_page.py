"""The page of a comparison, from scores that are made up."""

import re

import numpy as np
import pandas as pd
import pytest

from sacl.comparison.collecting import levels
from sacl.comparison.page import comparison_page, comparison_text
from sacl.comparison.tables import overview_table
from sacl.scores.summary import none_for_nan
from sacl.settings.protocol import Protocol

GAIN = {"semantic": 0.06, "simclr": 0.02, "scratch": 0.0, "paper-decoder": 0.04}


def document(tmp_path, *, subjects: int = 8, sign: int = 1, counts=(3, 7), left_out=()) -> dict:
    """Return results in which semantic wins (`sign` 1) or loses."""
    protocol = Protocol(
        base=tmp_path,
        labeled_subjects=counts,
        seeds=(0, 1),
        strategies={name: {} for name in ("semantic", "simclr", "scratch")},
        ablations={"paper-decoder": {}},
        families={"simclr": ("scratch",)},
        bootstrap=200,
    )
    generator = np.random.default_rng(0)
    lines = [
        {
            "cohort": "heart <&>",
            "labeled_subjects": count,
            "strategy": name,
            "seed": seed,
            "split": "test",
            "case_id": f"s{n}-a",
            "subject_id": f"s{n}",
            "organ": organ,
            "dice": 0.7 + sign * gain + 0.01 * n + generator.normal(0, 0.001),
            "nsd": 0.5,
            "hd95_mm": 3.0,
            "reference_ml": 1.0,
            "predicted_ml": 1.0,
        }
        for count in counts
        for name, gain in GAIN.items()
        for seed in (0, 1)
        for n in range(subjects)
        for organ in ("left_ventricle", "myocardium")
        if (count, name) not in left_out
    ]
    cells = [
        {
            "name": f"n{count}-{name}-s{seed}",
            "strategy": name,
            "state": "failed" if (count, name) in left_out else "done",
            "cause": "the loss is not finite",
            "seconds": {"pretrain": 10.0, "finetune": 20.0, "predict": None, "evaluate": 1.0},
            "steps": {"pretrain": 5, "finetune": 6},
        }
        for count in counts
        for name in GAIN
        for seed in (0, 1)
    ]
    return none_for_nan(
        {
            "protocol": {**vars(protocol), "name": "few <labels>"},
            "cohort": "heart <&>",
            "organs": ["left_ventricle", "myocardium"],
            "nsd_tolerance_mm": 2.0,
            "rule_for_empty_organs": "rule.",
            "confidence": 0.95,
            "bootstrap": {"resamples": 200, "seed": 0},
            "tests": {"primary": "first test", "secondary": "second test"},
            "levels": levels(protocol, pd.DataFrame(lines)) if lines else [],
            "cells": cells,
            "shared": {"shared-n3": {"ingest": 1.0, "locate": 2.0}},
            "machine": {"cores": 2, "architecture": "x"},
            "versions": {"torch": "2"},
            "settings_hash": "abc",
            "git_revision": None,
            "date": "2026-01-02T03:04:05Z",
        }
    )


def headline(page: str) -> str:
    return re.findall(r'<section class="headline">\n<p>(.*?)</p>', page)[0]


def test_a_win_is_told_with_its_interval_and_p(tmp_path):
    text = headline(comparison_page(document(tmp_path)))
    assert text.startswith("With 3 labeled subjects, semantic pretraining beats training from")
    assert "Dice 0.795 against 0.735" in text
    assert "p = 0.016" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_loss_is_told_as_plainly_and_so_is_who_is_best(tmp_path):
    text = headline(comparison_page(document(tmp_path, sign=-1)))
    assert "semantic pretraining does worse than training from scratch" in text
    second = headline(comparison_page(document(tmp_path, left_out={(3, "semantic")})))
    assert "nothing to be compared with" in second


def test_a_difference_that_hangs_on_the_seeds_is_told_as_such(tmp_path):
    found = document(tmp_path)
    assert "with other seeds" not in comparison_page(found)
    entry = next(c for c in found["levels"][0]["comparisons"] if c["against"] == "scratch")
    entry["subject_seed_pairs"] |= {"low": -0.01, "high": 0.09}
    assert "with other seeds it may be otherwise" in headline(comparison_page(found))


def test_too_few_subjects_to_show_anything_is_said(tmp_path):
    page = comparison_page(document(tmp_path, subjects=4))
    assert "do not clearly differ" in headline(page)
    assert "this test cannot show a difference" in page


def test_missing_cells_are_counted_and_named_with_their_cause(tmp_path):
    page = comparison_page(document(tmp_path, left_out={(7, "simclr")}))
    assert "Not finished: 14 of 16 cells" in page
    assert "n7-simclr-s1: failed, the loss is not finite" in page
    assert "Not finished" not in comparison_page(document(tmp_path))


@pytest.mark.parametrize("counts", [(3, 7), (5,)])
def test_the_page_holds_every_part_and_nothing_from_outside(tmp_path, counts):
    page = comparison_page(document(tmp_path, counts=counts))
    for title in ("Learning curves", "Other scores", "Organ by organ", "Ablations", "What it cost"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") == 3
    assert "few &lt;labels&gt;" in page
    assert "heart &lt;&amp;&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "left ventricle" in page
    assert "nan" not in page.lower().replace("dominant", "")


def test_without_a_finished_cell_the_page_says_so(tmp_path):
    found = document(tmp_path, counts=(3,), left_out={(3, name) for name in GAIN})
    assert "No cell has finished." in headline(comparison_page(found))
    assert comparison_text(found) == "no cell has finished"


def test_the_overview_sets_the_best_mean_in_bold_and_ablations_apart(tmp_path):
    table = overview_table(document(tmp_path))
    assert len(re.findall(r'class="best">0\.795', table)) == 2
    assert "paper-decoder" not in table


def test_the_text_has_a_line_per_number_of_labels_and_strategy(tmp_path):
    lines = comparison_text(document(tmp_path)).splitlines()
    assert len(lines) == 1 + 2 * 4
    assert lines[1].split()[:4] == ["3", "semantic", "2", "0.795"]


def test_a_further_family_of_tests_has_a_section_of_its_own(tmp_path):
    page = comparison_page(document(tmp_path))
    assert "simclr against scratch" in page
    assert "simclr ahead by, points" in page


def test_numbers_of_labels_at_which_nothing_was_tested_have_no_table(tmp_path):
    page = comparison_page(document(tmp_path, left_out={(7, "simclr"), (7, "paper-decoder")}))
    sections = dict(re.findall(r"<h2>(.*?)</h2>(.*?)(?=<h2>|$)", page, re.DOTALL))
    for title in ("simclr against scratch", "Ablations"):
        assert "<h3>3 labeled subjects" in sections[title]
        assert "<h3>7 labeled subjects" not in sections[title]
    assert "<h3>7 labeled subjects" in sections["Other scores"]
