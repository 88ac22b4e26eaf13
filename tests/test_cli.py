import json
import subprocess
import sys

import pytest

from sacl.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "which configuration"),
        (["run", "absent.yaml"], "absent.yaml: cannot be read"),
        (["runn"], "invalid choice: 'runn'"),
        (["demo", "--pretrain.stpes", "4"], "did you mean 'pretrain.steps'"),
        (["demo", "--frobnicate"], "unknown argument '--frobnicate'"),
        (["demo", "--pretrain.steps"], "a value is missing"),
        (["predict"], "give CONFIG.yaml, or all of --segmenter"),
        (["evaluate"], "give CONFIG.yaml, or all of --reference"),
        (["report"], "give CONFIG.yaml, or all of --runs"),
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
    assert "--pretrain.temperature  number (0.1)" in text
    assert "--finetune" not in text


def test_json_goes_to_stdout_alone(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("phantom: {scans: 4, shape: [40, 32, 12], spacing_mm: [9, 9, 18]}\n")
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
    assert "scans read as nnunet, by dataset.json, and imagesTr with channel files like" in told
    assert "2 scans of 2 subjects" in told
    assert "1 organs, liver" in told
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
