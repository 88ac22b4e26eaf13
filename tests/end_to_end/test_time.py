"""A run that is given a time ends in it. The clock counts the processor's seconds, so that other
programs on the machine change nothing."""

import json
import time

import pytest

from sacl.cli import main
from sacl.run import clock
from sacl.run.workspace import FOLDERS

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

ENDLESS = """
phantom: {scans: 12, shape: [64, 52, 20]}
ingest: {labeled_subjects: 2}
locate:
  volume: {spacing_mm: [8.0, 8.0, 12.0], crop: [48, 40, 16], steps: 40}
  channels: 8
extract: {patch_size: 32, dense_size: 32}
pretrain: {steps: 100000, batch: 4, width: 8}
finetune: {dense: {teacher_steps: 300000}, steps: 100000, batch: 4}
"""


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    root = tmp_path_factory.mktemp("timed")
    (root / "endless.yaml").write_text(ENDLESS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", time.process_time)
        begun = time.process_time()
        assert run(root, "--time", "90s") == 0
    return root, time.process_time() - begun


def run(root, *more):
    return main(["run", str(root / "endless.yaml"), "--work", str(root / "work"), *more])


def record_of(root, stage):
    return json.loads((root / "work" / FOLDERS[stage] / "run.json").read_text())


def test_the_run_takes_its_time_and_no_more(timed):
    assert 30 < timed[1] < 1.15 * 90


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_each_training_did_as_many_steps_as_fit(timed, stage):
    for paced in record_of(timed[0], stage)["results"]["pace"].values():
        assert 20 <= paced["steps"] < paced["steps_asked"]
        taken = paced["steps"] * paced["seconds_per_step"]
        assert taken == pytest.approx(paced["seconds_allowed"], rel=0.1, abs=0.5)


def test_fine_tuning_has_the_largest_part(timed):
    allowed = {
        stage: sum(
            paced["seconds_allowed"]
            for paced in record_of(timed[0], stage)["results"]["pace"].values()
        )
        for stage in ("pretrain", "finetune")
    }
    assert allowed["finetune"] > 3 * allowed["pretrain"]


def test_another_time_redoes_nothing(timed, capsys):
    assert run(timed[0], "--time", "3h") == 0
    assert capsys.readouterr().err.count("up to date") == len(FOLDERS)
