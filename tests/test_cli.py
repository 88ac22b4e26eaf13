import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sacl.cli import main
from sacl.commands import config_and_data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "sacl: run: which configuration"),
        (["extract", "--data", "x"], "did you mean '--ingest.data'?"),
        (["ingest", "scans", "./scans"], "data: scans is given twice; give it once"),
        (["run", "absent.yaml"], "absent.yaml: cannot be read"),
        (["runn"], "invalid choice: 'runn'"),
        (["demo", "--pretrain.stpes", "4"], "did you mean '--pretrain.steps'"),
        (["demo", "--frobnicate"], "unknown argument '--frobnicate'"),
        (["demo", "--pretrain.steps"], "a value is missing"),
        (["--nope"], "unknown argument '--nope'"),
        (["--pretrain.steps", "3"], "unknown argument '--pretrain.steps'"),
        (["extract", "a.yaml", "b.yaml"], "expected only CONFIG.yaml, got also 'b.yaml'"),
        (["ingest", "data", "--work", ""], "work: expected path, got ''"),
        (["predict", "--out", ""], "--out: expected path, got ''"),
        (["predict", "--out", "~no-such-user/x"], "--out: expected path"),
        (["ingest", "data", "--seed", "-1"], "seed: expected integer >= 0, got -1"),
        (["run", "nowhere/here.yaml"], "nowhere/here.yaml: cannot be read"),
        (["predict"], "give CONFIG.yaml, or all of --model"),
        (["pack", "a.sacl", "b.sacl"], "a.sacl is packed already"),
        (["evaluate"], "give CONFIG.yaml, or all of --reference"),
        (
            ["evaluate", "demo", "--model", "m"],
            "evaluate: --model cannot be combined with CONFIG.yaml",
        ),
        (["report", "--runs", "work"], "unknown argument '--runs'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("sacl: ")
    assert error.count("\n") == 1


def test_a_run_without_data_says_what_to_give(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"work: {tmp_path / 'work'}\n")
    assert main(["run", str(config)]) == 2
    assert "give --data DIR" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused_before_any_work(capsys, tmp_path):
    assert main(["demo", "--work", str(tmp_path / "w"), "--device", "cuda:99"]) == 2
    assert "device 'cuda:99' is not there" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_stage_without_its_input_names_the_missing_stage(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("name: x\n")
    assert main(["extract", str(config), "--work", str(tmp_path / "w")]) == 2
    assert "run `sacl ingest`" in capsys.readouterr().err


def test_help_and_version_need_no_torch():
    program = (
        "import sys; from sacl.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_stage_lists_its_settings_in_its_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--pretrain.temperature  number > 0 (0.1)" in text
    assert "--finetune" not in text


def test_json_goes_to_stdout_alone(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("phantom: {scans: 4, shape: [40, 32, 12]}\n")
    assert main(["phantom", str(config), "--work", str(tmp_path / "w"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == "phantom"


def scans(root, name="scans", cases=("a", "b")):
    """Write a folder of little CT scans, with a label map each, in nnU-Net's layout."""
    import nibabel
    import numpy as np

    voxels = np.arange(-1000, 1000, 2000 / 6**3).astype(np.int16).reshape(6, 6, 6)
    for case in cases:
        for file, array in (
            (f"imagesTr/{case}_0000.nii.gz", voxels),
            (f"labelsTr/{case}.nii.gz", (voxels > 500).astype(np.uint8)),
        ):
            (root / name / file).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / name / file)
    document = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    (root / name / "dataset.json").write_text(json.dumps(document))
    return root / name


def cases_in(work):
    return [c["case_id"] for c in json.loads((work / "1-cohort/cohort.json").read_text())["cases"]]


def test_a_folder_alone_is_ingested_into_the_default_work_directory(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scans(tmp_path)
    assert main(["ingest", "scans"]) == 0
    told = capsys.readouterr().err
    assert (
        "scans: layout nnunet, recognized by dataset.json, and imagesTr with channel files like"
        in told
    )
    assert "2 scans of 2 subjects" in told
    assert "1 organ: liver" in told
    assert "train 2 scans, 2 with reference" in told
    assert cases_in(tmp_path / "work") == ["a", "b"]


def test_several_folders_are_merged_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scans(tmp_path)
    scans(tmp_path, "more", cases=("b", "c"))
    (tmp_path / "run.yaml").write_text("work: here\n")
    assert main(["ingest", "scans", "run.yaml", "--seed", "1", "more"]) == 0
    assert cases_in(tmp_path / "here") == ["a", "scans_b", "more_b", "c"]
    assert main(["ingest", "--data", "scans", "more", "--work", "there"]) == 0
    assert cases_in(tmp_path / "there") == cases_in(tmp_path / "here")


def test_the_flag_repairs_a_grid_that_is_refused_without_it(tmp_path, monkeypatch, capsys):
    import nibabel
    import numpy as np

    monkeypatch.chdir(tmp_path)
    shifted = np.diag([1.0, 1.0, 1.0, 1.0])
    shifted[0, 3] = 1.0
    path = scans(tmp_path) / "labelsTr/b.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), shifted), path)
    assert main(["ingest", "scans"]) == 2
    assert "repair_grid nearest" in capsys.readouterr().err
    assert main(["ingest", "scans", "--repair-grid", "nearest"]) == 0
    assert "case b: label map resampled by nearest neighbor" in capsys.readouterr().err


def test_a_stage_after_ingest_needs_no_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["extract"]) == 2
    assert "run `sacl ingest`" in capsys.readouterr().err


def test_the_program_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "sacl", "--version"], capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stdout[:5]) == (0, "sacl ")


def test_a_bare_call_shows_the_commands(capsys):
    assert main([]) == 0
    assert "finetune" in capsys.readouterr().out


def test_what_nobody_foresaw_is_one_line_that_names_a_log(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def breaks(*_):
        raise RuntimeError("odd\nthing")

    monkeypatch.setattr("sacl.cli.load_config", breaks)
    assert main(["demo"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("sacl: unexpected RuntimeError: odd thing; the details are in ")
    assert told.count("\n") == 1
    (log,) = tmp_path.iterdir()
    assert str(log) in told
    assert "Traceback" in log.read_text()
    assert "in breaks" in log.read_text()


@pytest.mark.parametrize("make", ["file", "loop", "long"])
def test_a_work_directory_that_cannot_be_is_one_line(tmp_path, capsys, make):
    work = tmp_path / ("x" * 300 if make == "long" else "w")
    if make == "file":
        work.write_text("mine")
    elif make == "loop":
        work.symlink_to(work)
    scans(tmp_path)
    assert main(["ingest", str(tmp_path / "scans"), "--work", str(work)]) == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith(f"sacl: work directory {work}")
    assert "take another --work" in told


def test_an_ascii_terminal_and_a_name_that_is_no_utf_8_do_no_harm(tmp_path):
    folder = os.fsencode(tmp_path / "scans") + b"\xff"
    done = subprocess.run(
        [sys.executable, "-m", "sacl", "ingest", folder, "--work", str(tmp_path / "w")],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"},
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"sacl: ")


def test_a_folder_of_the_users_own_in_the_work_directory_is_not_deleted(tmp_path, capsys):
    mine = tmp_path / "w" / "1-cohort" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for force in ([], ["--force"]):
        scan = str(scans(tmp_path))
        assert main(["ingest", scan, "--work", str(tmp_path / "w"), *force]) == 2
        assert "1-cohort: was not written by sacl" in capsys.readouterr().err
        assert mine.read_text() == "mine"


def test_a_stage_does_not_delete_what_it_is_to_read(tmp_path, capsys):
    work = tmp_path / "w"
    assert main(["ingest", str(scans(tmp_path)), "--work", str(work)]) == 0
    maps = tmp_path / "maps"
    shutil.copytree(tmp_path / "scans" / "labelsTr", maps)
    (maps / "labels.json").write_text('{"1": "liver"}')
    assert main(["locate", "--work", str(work), "--from", str(maps)]) == 0
    own = work / "2-coarse" / "maps"
    before = sorted(own.iterdir())
    assert main(["locate", "--work", str(work), "--from", str(own), "--force"]) == 2
    assert "elsewhere first" in capsys.readouterr().err
    assert sorted(own.iterdir()) == before


def test_a_second_process_in_one_work_directory_is_refused_in_one_line(tmp_path):
    from sacl.run.workspace import Workspace

    scan, work = scans(tmp_path), tmp_path / "w"
    command = [sys.executable, "-m", "sacl", "ingest", str(scan), "--work", str(work), "--force"]
    with Workspace(work).locked(), Workspace(work).locked():  # the same process may enter twice
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        assert done.returncode == 2
        assert f"work directory {work}: in use by another sacl process" in done.stderr
        assert done.stderr.count("\n") == 1
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_shipped_settings_are_taken_by_name_and_a_folder_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_and_data(["acdc", "scans"]) == (Path("acdc"), "scans")
    (tmp_path / "acdc").mkdir()
    assert config_and_data(["acdc"]) == (None, "acdc")


def test_warnings_of_libraries_stay_off_the_terminal(capfd):
    import logging
    import warnings

    assert main(["--nope"]) == 2
    warnings.warn("a library's", UserWarning, stacklevel=1)
    logging.getLogger("nibabel.global").warning("pixdim should be positive")
    assert "a library's" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a primitive"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] can't allocate memory: 8 GB"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_too_little_memory_is_one_line(tmp_path, capsys, monkeypatch, error):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def breaks(*_):
        raise error

    monkeypatch.setattr("sacl.cli.load_config", breaks)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err.startswith("sacl: not enough memory; close other programs")
    assert not list(tmp_path.iterdir())
