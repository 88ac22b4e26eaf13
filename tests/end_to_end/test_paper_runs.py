"""The paper's three cohorts, generated and small: the shipped settings run to their end."""

import json
import shutil

import pytest

from sacl.cli import main
from sacl.cohort.manifest import read_cohort
from sacl.run.workspace import FOLDERS
from sacl.scores.summary import read_scores
from sacl_phantom.archives import LAYOUTS, ArchiveRequest, write_archive

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

SMALL = {"shape": (48, 48, 20), "spacing_mm": (8.5, 8.5, 17.0), "scans": 4, "unlabeled": 2}
SHORT = (
    *("--ingest.validation_subjects", "1", "--device", "cpu", "--locate.channels", "8"),
    *("--locate.volume.spacing_mm", "14,14,17", "--locate.volume.crop", "24,24,16"),
    *("--locate.volume.steps", "2", "--extract.patch_size", "32", "--extract.dense_size", "32"),
    *("--pretrain.width", "8", "--pretrain.steps", "2", "--pretrain.batch", "8"),
    *("--finetune.steps", "2", "--finetune.batch", "4"),
)
ORGANS = {"btcv": 13, "flare21": 4, "hospital": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with the archive of each layout and its finished run."""
    root = tmp_path_factory.mktemp("paper")
    for layout in LAYOUTS:
        list(write_archive(root / layout, ArchiveRequest(layout=layout, **SMALL)))
        assert run(root, layout, layout) == 0
    return root


def run(root, layout, work, *more):
    data = str(root / layout)
    return main(["run", layout, "--data", data, "--work", str(root / "work" / work), *SHORT, *more])


def record_of(root, work, stage):
    return json.loads((root / "work" / work / FOLDERS[stage] / "run.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_papers_setting(root, layout):
    settings = record_of(root, layout, "pretrain")["settings"]["pretrain"]
    assert (settings["method"], settings["network"]) == ("semantic", "resnet50")
    finetune = record_of(root, layout, "finetune")
    assert finetune["settings"]["finetune"]["decoder"] == "aspp"
    assert finetune["settings"]["finetune"]["query"] == {}
    assert finetune["settings"]["finetune"]["encoder_rate"] == 0
    assert finetune["results"]["arms"] == ["semantic"]
    assert record_of(root, layout, "ingest")["settings"]["ingest"]["window_hu"] == [-175, 275]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_held_out_scans_are_scored(root, layout):
    rows = read_scores(root / "work" / layout / FOLDERS["evaluate"] / "scores.csv")
    assert {row.run for row in rows} == {"semantic", "coarse"}
    assert len({row.score.organ for row in rows}) == ORGANS[layout]
    assert len({row.subject_id for row in rows}) == 1
    assert (root / "work" / layout / FOLDERS["report"] / "report.html").is_file()


def test_classes_are_organs_times_phases_where_phases_are_known(root):
    assert 12 < record_of(root, "hospital", "pretrain")["results"]["classes"] <= 24


def test_the_whole_encoder_is_trained_in_a_copy_of_the_run(root, capsys):
    shutil.copytree(root / "work" / "btcv", root / "work" / "full")
    full = ("--finetune.encoder_rate", "1")
    words = ["finetune", "btcv", "--work", str(root / "work" / "full"), *SHORT, *full, "--force"]
    assert main(words) == 0
    assert run(root, "btcv", "full", *full) == 0
    told = capsys.readouterr().err
    assert told.count("up to date") == 5
    assert "predict again, since finetune changed" in told


def test_a_run_without_the_file_holds_the_same_scans_out(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    flags = ("--ingest.validation_subjects", "1", "--device", "cpu", "--time", "1h")
    assert main(["plan", "./btcv", "--work", "work/plan", *flags]) == 0
    assert "\nfinetune:" in capsys.readouterr().out
    ours, theirs = (
        read_cohort(root / "work" / name / FOLDERS["ingest"]).of_split("validation")
        for name in ("plan", "btcv")
    )
    assert [case.case_id for case in ours] == [case.case_id for case in theirs]


def test_the_run_on_btcv_is_tested_on_flare_by_the_organs_they_share(root, capsys):
    words = ("--model", str(root / "work" / "btcv"), "--data", str(root / "flare21"))
    assert main(["evaluate", *words, "--out", str(root / "external"), "--device", "cpu"]) == 0
    assert "kidney_right + kidney_left" in capsys.readouterr().err
    rows = read_scores(root / "external" / FOLDERS["evaluate"] / "scores.csv")
    assert {row.score.organ for row in rows} == {"liver", "kidneys", "spleen", "pancreas"}
    assert len({row.score.case_id for row in rows}) == SMALL["scans"]
