"""The page of a comparison, from scores that are made up; and of all that were published."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from research.charts import charts
from research.page import page
from research.results import CellEntry, Level, Results, read_results
from research.statistics import Draws, compare_strategies, strategy_figures
from research.tables import Best, as_markdown, as_text, overview, p_text, points
from sacl.errors import DataError

PUBLISHED = sorted((Path(__file__).parents[2] / "research" / "results").glob("compare_*.json"))
GAIN = {"semantic": 0.06, "simclr": 0.02, "scratch": 0.0, "paper-decoder": 0.04}


def document(*, subjects: int = 8, sign: int = 1, counts=(3, 7), left_out=()) -> Results:
    """Return results in which semantic wins (`sign` 1) or loses."""
    draws, names = Draws(200, 0), ("semantic", "simclr", "scratch")
    generator = np.random.default_rng(0)
    lines = pd.DataFrame(
        [
            {
                "strategy": name,
                "labeled_subjects": count,
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
    )
    levels = []
    for count, part in lines.groupby("labeled_subjects") if len(lines) else ():
        levels.append(
            Level(
                labeled_subjects=int(count),
                scored={"test": {"subjects": subjects, "cases": subjects}},
                strategies={
                    name: strategy_figures(part[part.strategy == name], draws)
                    for name in GAIN
                    if (count, name) not in left_out
                },
                comparisons=compare_strategies(part, "semantic", names, draws),
                ablations=compare_strategies(part, "semantic", ["paper-decoder"], draws),
                families={"simclr": compare_strategies(part, "simclr", ["scratch"], draws)},
            )
        )
    cells = [
        CellEntry(
            name=f"n{count}-{name}-s{seed}",
            labeled_subjects=count,
            strategy=name,
            seed=seed,
            state="failed" if (count, name) in left_out else "done",
            cause="the loss is not finite" if (count, name) in left_out else "",
            seconds={"pretrain": 10.0, "finetune": 20.0, "predict": None, "evaluate": 1.0},
            steps={"pretrain": 5, "finetune": 6},
        )
        for count in counts
        for name in GAIN
        for seed in (0, 1)
    ]
    text = msgspec.json.encode(
        {
            "version": 1,
            "protocol": {
                "name": "few <labels>",
                "seeds": [0, 1],
                "strategies": {name: {} for name in names},
                "ablations": {"paper-decoder": {}},
                "families": {"simclr": ["scratch"]},
                "ours": "semantic",
                "baseline": "scratch",
            },
            "cohort": "heart <&>",
            "modality": "mr",
            "organs": ["left_ventricle", "myocardium"],
            "nsd_tolerance_mm": 2.0,
            "rule_for_empty_organs": "rule.",
            "confidence": 0.95,
            "bootstrap": {"resamples": 200, "seed": 0},
            "tests": {"primary": "first test", "secondary": "second test"},
            "levels": levels,
            "cells": cells,
            "shared": {"locate-12ab": {"locate": 2.0}},
            "machine": {"cores": 2, "architecture": "x"},
            "versions": {"torch": "2"},
            "settings_hash": "abc",
            "date": "2026-01-02T03:04:05Z",
        }
    )
    return msgspec.json.decode(text, type=Results)


def headline(text: str) -> str:
    return re.findall(r'<section class="headline">\n<p>(.*?)</p>', text)[0]


def test_a_win_is_told_with_its_interval_and_p():
    text = headline(page(document()))
    assert text.startswith("With 3 labeled subjects, semantic beats scratch: ")
    assert "Dice 0.795 against 0.735" in text
    assert "p = 0.016" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_loss_is_told_as_plainly_and_so_is_who_is_best():
    text = headline(page(document(sign=-1)))
    assert "the highest mean" not in text
    assert "semantic does worse than scratch" in text
    second = headline(page(document(left_out={(3, "semantic")})))
    assert "nothing to be compared with" in second


def test_a_difference_that_hangs_on_the_seeds_is_told_as_such():
    found = document()
    assert "with other seeds" not in page(found)
    pairs = found.levels[0].dice()["scratch"].subject_seed_pairs
    pairs.low, pairs.high = -0.01, 0.09
    assert "with other seeds it may be otherwise" in headline(page(found))


def test_too_few_subjects_to_show_anything_is_said():
    text = page(document(subjects=4))
    assert "do not clearly differ" in headline(text)
    assert "this test cannot show a difference" in text


def test_missing_cells_are_counted_and_named_with_their_cause():
    text = page(document(left_out={(7, "simclr")}))
    assert "Not finished: 14 of 16 cells" in text
    assert "n7-simclr-s1: failed, the loss is not finite" in text
    assert "Not finished" not in page(document())


@pytest.mark.parametrize("counts", [(3, 7), (5,)])
def test_the_page_holds_every_part_and_nothing_from_outside(counts):
    text = page(document(counts=counts))
    for title in ("Learning curves", "Other scores", "Organ by organ", "Ablations", "What it cost"):
        assert f"<h2>{title}</h2>" in text
    assert text.count("<svg") == 3
    assert "few &lt;labels&gt;" in text
    assert "heart &lt;&amp;&gt;" in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "left ventricle" in text
    assert "nan" not in text.lower().replace("dominant", "")


def test_without_a_finished_cell_the_page_says_so():
    found = document(counts=(3,), left_out={(3, name) for name in GAIN})
    assert "No cell has finished." in headline(page(found))
    assert as_text(found) == "no cell has finished"


def test_the_overview_sets_the_best_mean_in_bold_and_ablations_apart():
    results = document()
    rows = overview(results).rows
    assert [row[0] for row in rows] == ["semantic", "simclr", "scratch"]
    best = [cell for row in rows for cell in row if isinstance(cell, Best)]
    assert [cell[:5] for cell in best] == ["0.795", "0.795"]
    assert page(results).count('class="best">0.795 (') == 2


def test_the_text_has_a_line_per_number_of_labels_and_strategy():
    lines = as_text(document()).splitlines()
    assert len(lines) == 1 + 2 * 4
    assert lines[1].split()[:4] == ["3", "semantic", "2", "0.795"]


def test_a_further_family_of_tests_has_a_section_of_its_own():
    text = page(document())
    assert "simclr against scratch" in text
    assert "simclr ahead by, points" in text


def test_numbers_of_labels_at_which_nothing_was_tested_have_no_table():
    text = page(document(left_out={(7, "simclr"), (7, "paper-decoder")}))
    sections = dict(re.findall(r"<h2>(.*?)</h2>(.*?)(?=<h2>|$)", text, re.DOTALL))
    for title in ("simclr against scratch", "Ablations"):
        assert "<h3>3 labeled subjects" in sections[title]
        assert "<h3>7 labeled subjects" not in sections[title]
    assert "<h3>7 labeled subjects" in sections["Other scores"]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_published_result_is_still_read_drawn_and_tabled(path):
    results = read_results(path)
    text = page(results)
    for level in results.levels:
        for name, figures in level.strategies.items():
            dice = figures.dice
            assert name not in results.protocol.strategies or f"{dice.mean:.3f} (" in text
            assert f"`{name}` | {dice.mean:.3f} ({dice.low:.3f} to " in as_markdown(results)
    assert set(charts(results)) >= {"differences"}


def test_the_published_tables_are_those_of_the_findings():
    """A table of the findings is what `python -m research tables` prints of the file beside it."""
    findings = (PUBLISHED[0].parents[1] / "findings.md").read_text(encoding="utf-8")
    acdc = as_markdown(read_results(PUBLISHED[0].with_name("compare_acdc.json")))
    row = "| `pooled` | 0.777 (0.721 to 0.830) | 0.771, 0.783, 0.777 |"
    assert row in acdc
    assert row in findings


def test_a_file_that_holds_no_results_is_refused_in_one_line(tmp_path):
    for text in ("{}", "[", '{"version": 1}'):
        path = tmp_path / "results.json"
        path.write_text(text)
        with pytest.raises(DataError, match="not the results of a comparison") as error:
            read_results(path)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("p", "text"), [(0.0004, "< 0.001"), (0.0123, "0.012"), (0.25, "0.25"), (1, "1.00")]
)
def test_p_values_have_few_digits(p, text):
    assert p_text(p) == text


def test_points_are_hundredths_with_a_sign():
    assert points(0.0123) == "+1.2"
    assert points(-0.0123) == "\N{MINUS SIGN}1.2"
    assert points(0.0) == "0.0"
