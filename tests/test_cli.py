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
        (["predict"], "give CONFIG.yaml, or --segmenter"),
        (["evaluate"], "give CONFIG.yaml, or --reference"),
        (["report"], "give CONFIG.yaml, or --runs"),
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
