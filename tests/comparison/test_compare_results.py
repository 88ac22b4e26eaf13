"""What a comparison writes and lists, and what it needs for that."""

import json

import pandas as pd
import pytest
from fake_stages import ORGANS, SCORED, results, run, states, write_protocol


def test_the_table_has_a_line_per_cell_scan_and_organ(stages, tmp_path):
    run(write_protocol(tmp_path))
    table = pd.read_csv(tmp_path / "work" / "results.csv")
    assert len(table) == 16 * SCORED * len(ORGANS)
    keys = ["labeled_subjects", "strategy", "seed", "case_id", "organ"]
    assert not table.duplicated(keys).any()
    assert set(table["strategy"]) == {"semantic", "simclr", "scratch", "other-batch"}
    assert table[["dice", "nsd", "hd95_mm"]].notna().all().all()


def test_the_results_hold_figures_tests_costs_and_no_path(stages, tmp_path):
    path = write_protocol(tmp_path)
    run(path)
    document = results(path)
    text = json.dumps(document)
    assert str(tmp_path) not in text
    assert "NaN" not in text
    few, more = document["levels"]
    assert (few["labeled_subjects"], more["labeled_subjects"]) == (2, 4)
    table = pd.read_csv(tmp_path / "work" / "results.csv")
    own = table[(table.strategy == "simclr") & (table.labeled_subjects == 4)]
    assert more["strategies"]["simclr"]["dice"]["mean"] == pytest.approx(own["dice"].mean())
    dice = [c for c in few["comparisons"] if c["metric"] == "dice"]
    assert [c["against"] for c in dice] == ["simclr", "scratch"]
    assert dice[1]["mean_difference"] == pytest.approx(0.1, abs=0.01)
    assert dice[1]["p"] == pytest.approx(2 / 2**SCORED)
    assert [c["against"] for c in few["ablations"]] == ["other-batch"] * 2
    cell = document["cells"][0]
    assert cell["steps"] == {"pretrain": 1000, "finetune": 1000}
    assert set(cell["seconds"]) == {"pretrain", "finetune", "predict", "evaluate"}
    assert set(document["shared"]) == {"shared-n2", "shared-n4"}


def test_results_are_there_after_the_first_cell(stages, tmp_path):
    path = write_protocol(tmp_path)
    run(path, "--shard", "1/16")
    assert [c["state"] for c in results(path)["cells"]].count("done") == 1
    page = (tmp_path / "work" / "comparison.html").read_text()
    assert "1 of 16 cells are in these figures" in page


def test_the_page_is_rendered_again_without_the_data(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    run(path)
    page = (tmp_path / "work" / "comparison.html").read_text()
    (tmp_path / "work" / "comparison.html").unlink()
    (tmp_path / "data").rmdir()
    stages.runs.clear()
    assert run(path, "--report") == 0
    again = (tmp_path / "work" / "comparison.html").read_text()
    assert again.count("<table>") == page.count("<table>")
    assert "Not finished" not in again
    assert not stages.runs


def test_the_list_shows_states_and_runs_nothing(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    run(path, "--only", "scratch", "--seeds", "1")
    stages.runs.clear()
    capsys.readouterr()
    assert run(path, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17
    assert lines[7].split()[:2] == ["n2-scratch-s1", "done"]
    assert run(path, "--list", "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [e["state"] for e in entries].count("waiting") == 14
    assert not stages.runs


def test_the_estimate_comes_from_the_protocol_until_cells_have_finished(stages, tmp_path, capsys):
    run(write_protocol(tmp_path, minutes_per_cell="3"))
    assert "16 of 16 cells; about 48 min left" in capsys.readouterr().err


def test_cells_run_where_the_ingested_scans_are_not_at_hand(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    assert run(path, "--cell", "n2-scratch-s0") == 0
    (tmp_path / "data").rmdir()
    assert run(path, "--cell", "n2-semantic-s1") == 0
    assert states(path)["n2-semantic-s1"] == "done"
    capsys.readouterr()
    assert run(path, "--cell", "n4-scratch-s0") == 2  # of these labels nothing is ingested yet
    assert "'data', which is not there" in capsys.readouterr().err
