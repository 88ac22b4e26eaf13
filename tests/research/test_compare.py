"""`python -m research compare`: what it runs, writes and says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fake_stages import ORGANS, SCORED, grid_of, results, run, states, write_protocol
from filelock import FileLock

from research import compare
from research.__main__ import main
from research.compare import Source
from sacl.errors import SetAsideError
from sacl.run.engine import Engine, Shard

ROOT = Path(__file__).parents[2]


def test_only_scans_with_the_values_asked_for_are_scored(stages, tmp_path):
    stages.labels_of = {name: {"phase": "delayed"} for name in ("s1", "s3")}
    path = write_protocol(tmp_path, scored_values=["delayed"])
    assert run(path) == 0
    assert results(path)["levels"][0]["scored"] == {"test": {"subjects": 2, "cases": 2}}
    table = pd.read_csv(tmp_path / "work" / "results.csv")
    assert set(table["case_id"]) == {"s1-a", "s3-a"}


def test_a_value_that_no_scan_has_is_told_before_anything_is_trained(stages, tmp_path, capsys):
    assert run(write_protocol(tmp_path, scored_values=["delayd"])) == 2
    assert "with the phase delayd; there are native" in capsys.readouterr().err
    assert stages.of("locate") == 0


def test_a_second_call_runs_nothing(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    assert run(path) == 0
    stages.runs.clear()
    capsys.readouterr()
    assert run(path) == 0
    assert not stages.runs
    assert "0 of 16 cells to run" in capsys.readouterr().err


def test_one_cell_fails_and_the_others_do_not_and_it_is_tried_again(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    stages.failing.add(("finetune", "n2-simclr-s1"))
    assert run(path) == 1
    error = capsys.readouterr().err
    assert "failed: n2-simclr-s1: finetune: the loss is not finite" in error
    assert {name: state for name, state in states(path).items() if state != "done"} == {
        "n2-simclr-s1": "failed"
    }
    entry = next(c for c in results(path)["cells"] if c["state"] == "failed")
    assert entry["cause"] == "finetune: the loss is not finite"
    page = (tmp_path / "work" / "comparison.html").read_text()
    assert "n2-simclr-s1: failed, finetune: the loss is not finite" in page
    stages.failing.clear()
    stages.runs.clear()
    assert run(path) == 0
    assert sorted(s for s, _ in stages.runs) == ["evaluate", "finetune", "predict"]
    assert set(states(path).values()) == {"done"}


def test_a_bug_in_one_cell_is_told_with_its_kind_and_stops_no_other(stages, tmp_path, capsys):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    stages._predict = broken
    assert run(write_protocol(tmp_path), "--only", "simclr", "--seeds", "0") == 1
    assert "failed: n4-simclr-s0: ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_an_interruption_loses_no_finished_stage(stages, tmp_path):
    path, finetune = write_protocol(tmp_path), stages._finetune

    def interrupted(settings, workspace, folder, out):
        if stages.cell == "n2-scratch-s1":
            raise KeyboardInterrupt
        finetune(settings, workspace, folder, out)

    stages._finetune = interrupted
    assert run(path) == 130
    assert sum(state == "done" for state in states(path).values()) == 6
    assert states(path)["n2-scratch-s1"] == "begun"
    stages._finetune = finetune
    work = tmp_path / "work"
    left = [work / f".partial-99-{name}" for name in ("results.json", "results.csv", compare.PAGE)]
    left.append(work / "cells" / "n2-scratch-s1" / ".partial-99-stages.json")
    for killed in left:
        killed.touch()
    assert run(path) == 0
    assert stages.of("evaluate") == 16
    assert stages.of("pretrain") == 12
    assert not any(killed.exists() for killed in left)


def test_a_cell_of_other_settings_is_another_cell_and_nothing_is_lost(stages, tmp_path):
    run(write_protocol(tmp_path))
    stages.runs.clear()
    other = write_protocol(tmp_path, ablations={"other-batch": {"finetune.batch": 4}})
    assert states(other)["n2-other-batch-s0"] == "begun"
    assert run(other) == 0
    assert stages.of("finetune") == 4
    stages.runs.clear()
    assert run(write_protocol(tmp_path)) == 0
    assert not stages.runs


def test_a_cell_that_another_process_runs_is_left_to_it(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    grid = grid_of(tmp_path)
    folder = grid.folder(grid.cells[0])
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert run(path, "--only", "pooled") == 0
    assert "n2-pooled-s0: another process is at it" in capsys.readouterr().err
    assert states(path)["n2-pooled-s0"] != "done"
    assert states(path)["n2-pooled-s1"] == "done"


def test_cells_beside_each_other_write_logs_of_their_own(stages, tmp_path, capsys):
    source = Source(write_protocol(tmp_path), {})
    grid = source.grid()
    done = compare.open_cells(source, is_beside=True)("n2-pooled-s0")
    assert done.is_ours
    assert capsys.readouterr().err == "n2-pooled-s0: done\n"
    assert "finetune-" in (grid.folder(grid.cells[0]) / compare.LOG).read_text()
    assert len(results(tmp_path / "protocol.yaml")["cells"]) == 16


def test_cells_whose_processes_died_are_told_and_tried_again(stages, tmp_path, capsys, monkeypatch):
    class Deadly(Engine):
        def each(self, work, cases, *more, **how):
            super().each(work, [n for n in cases if n != "n2-simclr-s0"], *more, **how)
            raise SetAsideError("cells: 1 of 16 cases were set aside")

    path = write_protocol(tmp_path)
    failed = compare.run_comparison(Source(path, {}), compare.Wanted(), Deadly(workers=1))
    assert list(failed) == ["n2-simclr-s0"]
    assert "failed: n2-simclr-s0: its process died" in capsys.readouterr().err
    assert [name for name, state in states(path).items() if state != "done"] == ["n2-simclr-s0"]
    assert run(path) == 0
    assert set(states(path).values()) == {"done"}


def test_cells_of_other_shards_have_not_died(stages, tmp_path):
    class Deadly(Engine):
        def each(self, *_of, **_how):
            raise SetAsideError("cells: some were set aside")

    shard = Shard.parse("1/2")
    source = Source(write_protocol(tmp_path), {})
    failed = compare.run_comparison(source, compare.Wanted(), Deadly(workers=1, shard=shard))
    assert 0 < len(failed) < 16
    assert all(map(shard.holds, failed))


def test_shards_share_the_cells_out(stages, tmp_path):
    path = write_protocol(tmp_path)
    done = []
    for shard in ("1/2", "2/2"):
        before = [name for name, state in states(path).items() if state == "done"]
        assert run(path, "--shard", shard) == 0
        done.append([n for n, state in states(path).items() if state == "done" and n not in before])
    assert all(done)
    assert len({*done[0], *done[1]}) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "simcrl"], "--only: no strategy 'simcrl'; did you mean 'simclr'?"),
        (["--seeds", "7"], "--seeds: 7 is none of the protocol's [0, 1]"),
        (["--seeds", "x"], "--seeds: invalid int value: 'x'"),
        (["--workers", "0"], "--workers 0: expected 1 or more"),
        (["--engine", "slurm"], "--engine slurm: expected local or ray"),
        (["--ray-address", "here:1"], "--ray-address: works only with --engine ray"),
        (["--data", "/nowhere/scans"], "/nowhere/scans, which is not there"),
        (["--finetune.stesp", "3"], "did you mean '--finetune.steps'"),
        (["--device", "tpu"], "device"),
        (["--nope"], "unrecognized arguments: --nope"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(stages, tmp_path, capsys, arguments, message):
    assert run(write_protocol(tmp_path), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not stages.runs


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labeled_subjects": [2, 99]}, "99 asked for, only 6"),
        ({"labeled_subjects": [2, 6, None]}, "null is all 6 subjects, and 6 stands there too"),
        ({"splits": ["validation"]}, "no validation scan of fake has a reference"),
    ],
)
def test_what_the_cohort_lacks_is_told_before_any_training(
    stages, tmp_path, capsys, changed, message
):
    assert run(write_protocol(tmp_path, **changed)) == 2
    assert message in capsys.readouterr().err
    assert {stage for stage, _ in stages.runs} <= {"ingest"}


def test_the_results_of_another_comparison_are_left_alone(stages, tmp_path, capsys):
    run(write_protocol(tmp_path), "--only", "scratch", "--seeds", "0")
    before = (tmp_path / "work" / "results.json").read_bytes()
    stages.runs.clear()
    assert run(write_protocol(tmp_path, name="another")) == 2
    assert "results of 'fake', expected 'another'" in capsys.readouterr().err
    (tmp_path / "work" / "results.json").write_text("mine")
    assert run(write_protocol(tmp_path)) == 2
    assert "not the results of a comparison" in capsys.readouterr().err
    assert not stages.runs
    assert before


def test_the_table_has_a_line_per_cell_scan_and_organ(stages, tmp_path):
    run(write_protocol(tmp_path))
    table = pd.read_csv(tmp_path / "work" / "results.csv")
    assert len(table) == 16 * SCORED * len(ORGANS)
    keys = ["labeled_subjects", "strategy", "seed", "case_id", "organ"]
    assert not table.duplicated(keys).any()
    assert set(table["strategy"]) == {"pooled", "simclr", "scratch", "other-batch"}
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
    cell = next(cell for cell in document["cells"] if cell["strategy"] == "scratch")
    assert cell["steps"] == {"pretrain": 0, "finetune": 3500}
    assert set(cell["seconds"]) == {"pretrain", "finetune", "predict", "evaluate"}
    assert sorted(name.split("-")[0] for name in document["shared"]) == [
        *("extract", "extract", "ingest", "ingest", "locate", "locate")
    ]


def test_unfinished_cells_are_not_in_the_figures(stages, tmp_path):
    path = write_protocol(tmp_path)
    run(path, "--only", "scratch", "--seeds", "0")
    assert [c["state"] for c in results(path)["cells"]].count("done") == 2
    page = (tmp_path / "work" / "comparison.html").read_text()
    assert "2 of 16 cells are in these figures" in page


def test_page_tables_and_figures_are_made_again_from_the_results_alone(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    run(path)
    file, out = tmp_path / "work" / "results.json", tmp_path / "page.html"
    stages.runs.clear()
    capsys.readouterr()
    assert main(["render", str(file), "--out", str(out)]) == 0
    assert out.read_text() == (tmp_path / "work" / "comparison.html").read_text()
    assert capsys.readouterr().out.count("\n") == 1 + 2 * 4
    assert main(["tables", str(file)]) == 0
    assert "| `pooled` |" in capsys.readouterr().out
    assert main(["figures", str(file), "--out", str(tmp_path / "svg")]) == 0
    drawn = sorted(p.name for p in (tmp_path / "svg").iterdir())
    assert drawn == ["fake-ablations.svg", "fake-curves.svg", "fake-differences.svg"]
    assert not stages.runs


def test_the_list_shows_states_and_runs_nothing(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    run(path, "--only", "scratch", "--seeds", "1")
    stages.runs.clear()
    capsys.readouterr()
    assert main(["list", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17
    assert lines[7].split()[:2] == ["n2-scratch-s1", "done"]
    assert main(["list", str(path), "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [e["state"] for e in entries].count("done") == 2
    assert not stages.runs


PLANTED = ("argparse", "json", "numpy", "yaml", "filelock", "research_helpers", "sacl")


def test_files_of_the_current_folder_never_run_as_modules(tmp_path, monkeypatch):
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\nraise SystemExit(9)\n"
        )
    monkeypatch.chdir(tmp_path)
    sources = os.pathsep.join(p for p in sys.path if p and Path(p) != tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "research", "list", "nowhere.yaml"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), sources])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere.yaml: cannot be read" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_benchmarks_run_by_name(capsys):
    assert main(["benchmark"]) == 0
    assert "round_trips" in capsys.readouterr().out.splitlines()
    assert main(["benchmark", "round_trip"]) == 2
    assert "no benchmark 'round_trip'; there are" in capsys.readouterr().err
