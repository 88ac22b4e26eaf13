import json
import os
import platform

import pytest
import torch

from sacl import doctor
from sacl.cli import main


def ends_its_process(_: str) -> str:
    os._exit(3)


def sound(_: str) -> str:
    return ""


def test_this_installation_is_sound_and_nobody_is_named(capsys, tmp_path):
    assert main(["doctor", "--work", str(tmp_path / "absent" / "work"), "--json"]) == 0
    text = capsys.readouterr().out
    health = json.loads(text)
    assert [trial["fault"] for trial in health["trials"]] == ["", "", "", ""]
    assert health["versions"]["torch"] == torch.__version__
    assert health["free_disk_gb"]["work"] > 0
    assert str(tmp_path) not in text
    assert platform.node() not in text


def test_a_part_that_ends_its_process_is_told_and_the_others_go_on(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "TRIALS", {"broken": ends_its_process, "whole": sound})
    assert main(["doctor"]) == 2
    told = capsys.readouterr()
    assert "broken: it ended its process" in told.out
    assert "whole: sound" in told.out
    assert told.err.startswith("sacl: doctor: broken: it ended its process")


def test_wrong_convolutions_are_noticed(monkeypatch):
    assert doctor.arithmetic_fault("cpu") == ""
    right = torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional,
        "conv2d",
        lambda x, w, **how: right(x, w, **how) * (1.01 if x.dtype == torch.float32 else 1),
    )
    assert "wrong by" in doctor.arithmetic_fault("cpu")


@pytest.mark.parametrize("fault_of", [doctor.slices_fault, doctor.volumes_fault])
def test_a_training_that_learns_nothing_is_noticed(monkeypatch, fault_of):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    assert "the loss went from" in fault_of("cpu")


def test_a_shell_completes_commands_flags_and_settings(capsys):
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        for word in ("predict", "--segmenter", "--predict.copies"):
            assert word in script
    assert main(["completion", "fishy"]) == 2
    assert "expected one of bash, zsh" in capsys.readouterr().err
