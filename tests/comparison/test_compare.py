import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from fake_stages import results, run, states, write_protocol

from sacl.cli import main
from sacl.comparison import schedule
from sacl.comparison.compare import read_comparison
from sacl.comparison.lock import locked
from sacl.comparison.running import Confirmed, cell_state, lock_of


def test_what_is_shared_is_done_once_and_every_cell_has_its_own(stages, tmp_path):
    assert run(write_protocol(tmp_path)) == 0
    assert {s: stages.of(s) for s in ("ingest", "locate", "extract")} == {
        "ingest": 2,
        "locate": 2,
        "extract": 2,
    }
    assert stages.of("pretrain") == 12
    assert stages.of("finetune") == stages.of("predict") == stages.of("evaluate") == 16
    assert set(stages.runs.values()) == {1}


def test_what_comes_after_another_cell_runs_that_one_first(stages, tmp_path):
    path = write_protocol(tmp_path, after="{semantic: scratch}")
    assert run(path, "--only", "semantic", "--seeds", "1") == 0
    done = [root for stage, root in stages.runs if stage == "predict"]
    assert done == ["n2-scratch-s1", "n2-semantic-s1", "n4-scratch-s1", "n4-semantic-s1"]
    assert stages.runs["locate", "after-n2-scratch-s1"] == 1


def test_only_scans_with_the_values_asked_for_are_scored(stages, tmp_path):
    stages.labels_of = {name: {"phase": "delayed"} for name in ("s1", "s3")}
    path = write_protocol(tmp_path, scored_values="[delayed]")
    assert run(path) == 0
    assert results(path)["levels"][0]["scored"] == {"test": {"subjects": 2, "cases": 2}}
    table = pd.read_csv(tmp_path / "work" / "results.csv")
    assert set(table["case_id"]) == {"s1-a", "s3-a"}


def test_a_value_that_no_scan_has_is_told_before_anything_is_trained(stages, tmp_path, capsys):
    assert run(write_protocol(tmp_path, scored_values="[delayd]")) == 2
    assert "no scan of fake has the phase 'delayd'; there are native" in capsys.readouterr().err
    assert stages.of("locate") == 0


def test_a_second_call_runs_nothing(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    assert run(path) == 0
    stages.runs.clear()
    capsys.readouterr()
    assert run(path) == 0
    assert not stages.runs
    assert "[16/16] n4-other-batch-s1: up to date" in capsys.readouterr().err


def test_one_cell_fails_and_the_others_do_not_and_it_is_tried_again(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    stages.failing.add(("finetune", "n2-simclr-s1"))
    assert run(path) == 1
    error = capsys.readouterr().err
    assert "failed: n2-simclr-s1: finetune: the loss is not finite" in error
    assert states(path) == {
        cell["name"]: "failed" if cell["name"] == "n2-simclr-s1" else "done"
        for cell in results(path)["cells"]
    }
    entry = next(c for c in results(path)["cells"] if c["state"] == "failed")
    assert entry["cause"] == "finetune: the loss is not finite"
    page = (tmp_path / "work" / "comparison.html").read_text()
    assert "n2-simclr-s1: failed, finetune: the loss is not finite" in page
    stages.failing.clear()
    stages.runs.clear()
    assert run(path) == 0
    assert set(stages.runs) == {(s, "n2-simclr-s1") for s in ("finetune", "predict", "evaluate")}
    assert set(states(path).values()) == {"done"}


def test_a_bug_in_one_cell_is_told_with_its_kind_and_stops_no_other(stages, tmp_path, capsys):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    stages._predict = broken
    assert run(write_protocol(tmp_path), "--only", "simclr", "--seeds", "0") == 1
    assert "failed: n4-simclr-s0: ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_an_interruption_loses_no_finished_cell_and_leaves_no_lock(stages, tmp_path):
    path, finetune = write_protocol(tmp_path), stages._finetune

    def interrupted(settings, workspace, folder, out):
        if workspace.root.name == "n2-scratch-s1":
            raise KeyboardInterrupt
        finetune(settings, workspace, folder, out)

    stages._finetune = interrupted
    assert run(path) == 130
    assert sum(state == "done" for state in states(path).values()) == 6
    assert states(path)["n2-scratch-s1"] == "begun"
    assert not list((tmp_path / "work").rglob("*.lock"))
    stages._finetune = finetune
    assert run(path) == 0
    assert stages.of("evaluate") == 16


def test_a_cell_of_other_settings_is_done_anew_and_only_it(stages, tmp_path):
    run(write_protocol(tmp_path))
    stages.runs.clear()
    path = write_protocol(tmp_path, ablations="{other-batch: {finetune.batch: 4}}")
    assert states(path)["n2-other-batch-s0"] == "outdated"
    assert states(path)["n2-semantic-s0"] == "done"
    assert run(path) == 0
    assert {root.split("-s")[0] for _, root in stages.runs} == {"n2-other-batch", "n4-other-batch"}
    assert stages.of("finetune") == 4


def test_an_outdated_cell_is_not_in_the_results(stages, tmp_path):
    run(write_protocol(tmp_path))
    path = write_protocol(tmp_path, ablations="{other-batch: {finetune.batch: 4}}")
    assert run(path, "--report") == 0
    table = pd.read_csv(tmp_path / "work" / "results.csv")
    assert set(table["strategy"]) == {"semantic", "simclr", "scratch"}


def test_shared_stages_of_other_settings_are_refused_unless_forced(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    run(path)
    assert run(path, "--ingest.window-hu", "0,1") == 2
    assert "window_hu was [-175.0, 275.0]" in capsys.readouterr().err
    assert run(path, "--ingest.window-hu", "0,1", "--force") == 0
    assert stages.of("ingest") == 4


def test_shards_share_the_work(stages, tmp_path):
    path = write_protocol(tmp_path)
    assert run(path, "--shard", "1/3") == 0
    assert sum(state == "done" for state in states(path).values()) == 6
    assert run(path, "--shard", "2/3") == 0
    assert run(path, "--shard", "3/3") == 0
    assert set(states(path).values()) == {"done"}
    assert set(stages.runs.values()) == {1}


def test_protocol_and_data_may_stand_in_any_order(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    data = str(tmp_path / "data")
    assert main(["compare", "--only", "scratch", "--list", "--data", data, str(path)]) == 0
    assert main(["compare", "--shard", "1/4", "--list", str(path), data]) == 0
    assert main(["compare", "--list"]) == 2
    assert "which protocol? give PROTOCOL.yaml" in capsys.readouterr().err


def test_a_cell_that_another_process_runs_is_left_to_it(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    comparison = read_comparison(path)
    with locked(lock_of(comparison.cells[0]), "x"):
        assert cell_state(comparison.cells[0], Confirmed()) == "running"
        assert run(path, "--only", "semantic") == 0
    assert "n2-semantic-s0: another process is running it" in capsys.readouterr().err
    assert states(path)["n2-semantic-s0"] == "waiting"
    assert states(path)["n2-semantic-s1"] == "done"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "simcrl"], "--only: no strategy 'simcrl'; did you mean 'simclr'?"),
        (["--seeds", "7"], "--seeds: 7 is none of the protocol's [0, 1]"),
        (["--seeds", "x"], "--seeds: expected integers, got 'x'"),
        (["--shard", "3/2"], "--shard: expected i/n"),
        (["--jobs", "0"], "--jobs: expected 1 or more"),
        (["--cell", "n2-semantic-s9"], "--cell: no cell 'n2-semantic-s9'; did you mean"),
        (["--data", "/nowhere/scans"], "got 'scans', which is not there"),
        (["--finetune.stesp", "3"], "did you mean 'finetune.steps'"),
        (["--device", "cuda:99"], "device 'cuda:99' is not there"),
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
        ({"labeled_subjects": "[2, 99]"}, "99 asked for, only 6"),
        ({"labeled_subjects": "[2, 6, null]"}, "null is all 6 subjects, and 6 stands there too"),
        ({"labeled_subjects": "[1, 2]"}, "the coarse networks need 2 at least"),
        ({"splits": "[validation]"}, "no validation scan of fake has a reference"),
    ],
)
def test_what_the_cohort_lacks_is_told_before_any_training(
    stages, tmp_path, capsys, changed, message
):
    assert run(write_protocol(tmp_path, **changed)) == 2
    assert message in capsys.readouterr().err
    assert {stage for stage, _ in stages.runs} <= {"ingest"}


def test_a_strategy_without_its_scan_wise_label_is_told_before_any_training(
    stages, tmp_path, capsys
):
    stages.labels = {"scanner": "a"}
    path = write_protocol(tmp_path)
    assert run(path, "--locate.estimate-phase", "false") == 2
    error = capsys.readouterr().err
    assert "strategy 'semantic': needs the scan-wise label 'phase'" in error
    assert stages.of("pretrain") == 0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"version": 2, "protocol": {"name": "fake"}}, "version 2, expected 'fake', version 1"),
        ({"version": 1, "protocol": {"name": "old"}}, "results of 'old', version 1"),
        ({}, "not the results of a comparison"),
    ],
)
def test_the_results_of_another_comparison_are_left_alone(
    stages, tmp_path, capsys, document, message
):
    path = write_protocol(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "results.json").write_text(json.dumps(document))
    assert run(path) == 2
    assert message in capsys.readouterr().err
    assert not stages.runs


def test_several_cells_at_once_are_processes_that_share_the_cores(tmp_path, monkeypatch):
    comparison = read_comparison(write_protocol(tmp_path))
    program = tmp_path / "fake.py"
    program.write_text(
        "import os, sys, pathlib\n"
        "name = sys.argv[sys.argv.index('--cell') + 1]\n"
        "pathlib.Path(sys.argv[1], name + '.ran').write_text(os.environ['OMP_NUM_THREADS'])\n"
        "if name == 'n2-simclr-s0': os.kill(os.getpid(), 9)\n"
        "sys.exit(3 if name == 'n2-scratch-s0' else 0)\n"
    )
    start = subprocess.Popen

    def popen(command, **settings):
        return start([sys.executable, str(program), str(tmp_path), *command[3:]], **settings)

    monkeypatch.setattr(schedule.subprocess, "Popen", popen)
    monkeypatch.setattr(schedule, "seconds_and_steps", lambda _: {"seconds": {"finetune": 1.0}})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    tally, after = schedule.Tally(16, 3), []
    arguments = ["compare", "x.yaml"]
    schedule.run_beside(comparison.cells, arguments, 3, tally, lambda: after.append(1))
    assert len(list(tmp_path.glob("*.ran"))) == len(after) == 16
    assert {p.read_text() for p in tmp_path.glob("*.ran")} == {"2"}
    assert tally.failed == {
        "n2-simclr-s0": "ended by signal 9, perhaps out of memory",
        "n2-scratch-s0": "exit code 3, see log.txt in its folder",
    }
