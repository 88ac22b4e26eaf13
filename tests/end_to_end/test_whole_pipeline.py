"""The main job on a tiny phantom, by the command line, as a user would do it."""

import json
from pathlib import Path

import numpy as np
import pytest

from sacl.cli import main
from sacl.files.nifti import read_label_table, read_labels, read_volume
from sacl.run.workspace import FOLDERS
from sacl.scores.summary import read_scores
from sacl_phantom.__main__ import main as generate

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

TINY = """
name: tiny
phantom: {scans: 12, shape: [64, 52, 20]}
ingest: {labeled_subjects: 2}
locate:
  volume: {spacing_mm: [8.0, 8.0, 12.0], crop: [48, 40, 16], steps: 40}
  channels: 8
extract: {patch_size: 32, dense_size: 64, region: slice}
pretrain: {method: semantic, steps: 12, batch: 32, width: 16}
finetune:
  dense: {teacher_steps: 0}
  steps: 120
  batch: 8
  learning_rate: 2e-3
predict: {copies: 0}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    (root / "tiny.yaml").write_text(TINY)
    assert run(root) == 0
    return root


def run(root: Path, *more: str) -> int:
    return main(["run", str(root / "tiny.yaml"), "--work", str(root / "work"), *more])


def test_every_stage_leaves_its_record(finished):
    for stage, folder in FOLDERS.items():
        record = json.loads((finished / "work" / folder / "run.json").read_text())
        assert record["stage"] == stage
        assert str(finished) not in json.dumps(record)


def test_every_scan_has_a_label_map_on_its_own_grid(finished):
    source = finished / "work" / "0-phantom" / "Dataset900_Phantom"
    images = sorted(source.glob("images*/*_0000.nii.gz"))
    assert len(images) == 12
    for path in images:
        case_id = path.name.removesuffix("_0000.nii.gz")
        predicted = finished / "work" / "6-predictions" / "semantic" / f"{case_id}.nii.gz"
        _, frame = read_volume(path)
        _, _, predicted_frame = read_labels(predicted)
        assert predicted_frame.grid.shape == frame.grid.shape
        assert np.array_equal(predicted_frame.grid.affine, frame.grid.affine)
        assert (predicted_frame.qform_code, predicted_frame.sform_code) == (
            frame.qform_code,
            frame.sform_code,
        )
        table = read_label_table(predicted)
        assert table is not None
        assert table["liver"] == 6


def test_the_held_out_scans_and_no_others_are_scored(finished):
    rows = read_scores(finished / "work" / "7-scores" / "scores.csv")
    scored = {
        name: {(r.score.case_id, r.score.organ) for r in rows if r.run == name}
        for name in ("semantic", "coarse")
    }
    assert scored["semantic"]
    assert scored["semantic"] == scored["coarse"]
    cohort = json.loads((finished / "work" / "1-cohort" / "cohort.json").read_text())
    held_out = {c["case_id"] for c in cohort["cases"] if c["split"] != "train"}
    assert {case for case, _ in scored["semantic"]} <= held_out


def test_something_was_learnt(finished):
    rows = read_scores(finished / "work" / "7-scores" / "scores.csv")
    liver = [r.score.dice for r in rows if r.run == "semantic" and r.score.organ == "liver"]
    assert np.nanmean(liver) > 0.3


def test_the_references_of_unlabeled_subjects_are_not_in_the_work_directory(finished):
    cohort = json.loads((finished / "work" / "1-cohort" / "cohort.json").read_text())
    train = [c for c in cohort["cases"] if c["split"] == "train"]
    labeled = {c["subject_id"] for c in train if c["reference"]}
    assert len(labeled) == 2
    kept = {p.name for p in (finished / "work" / "1-cohort" / "references").iterdir()}
    hidden = {f"{c['case_id']}.nii.gz" for c in train if c["subject_id"] not in labeled}
    assert hidden
    assert not kept & hidden


def test_the_report_is_one_self_contained_page(finished):
    page = (finished / "work" / "8-report" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page.replace("https://doi.org", "")
    assert str(finished) not in page
    assert page.count("data:image/png;base64,") + page.count("<svg") >= 4


def test_a_second_run_skips_everything(finished, capsys):
    assert run(finished) == 0
    assert capsys.readouterr().err.count("up to date") == len(FOLDERS)


def test_other_settings_in_the_same_work_directory_are_refused(finished, capsys):
    assert run(finished, "--pretrain.temperature", "0.2") == 2
    assert "temperature was 0.1 and is 0.2" in capsys.readouterr().err


def test_a_stage_redone_by_force_with_the_same_result_runs_no_other_again(finished, capsys):
    scores = finished / "work" / FOLDERS["evaluate"] / "scores.csv"
    before = scores.read_bytes()
    work = ["--work", str(finished / "work")]
    assert main(["evaluate", str(finished / "tiny.yaml"), *work, "--force"]) == 0
    assert scores.read_bytes() == before
    capsys.readouterr()
    assert run(finished) == 0
    assert capsys.readouterr().err.count("up to date") == len(FOLDERS)


@pytest.mark.parametrize("head", ["query"])
def test_scans_never_ingested_are_predicted(finished, tmp_path, head):
    config, work = finished / "tiny.yaml", tmp_path / "work"
    images = finished / "work" / "0-phantom" / "Dataset900_Phantom" / "imagesTs"
    for stage_folder in ("1-cohort", "2-coarse", "3-patches", "4-encoder"):
        (work / stage_folder).parent.mkdir(exist_ok=True)
        (work / stage_folder).symlink_to(finished / "work" / stage_folder)
    flags = ["--work", str(work), "--finetune.query", "{}"]
    assert main(["finetune", str(config), *flags]) == 0
    out = tmp_path / "labels"
    arguments = ["--segmenter", str(work), "--images", str(images), "--out", str(out)]
    assert main(["predict", *arguments]) == 0
    assert len(list(out.glob("*.nii.gz"))) == len(list(images.glob("*.nii.gz")))


def test_a_generated_flare_is_an_external_test_of_the_segmenter(finished, tmp_path, capsys):
    data, out = tmp_path / "flare", tmp_path / "test"
    size = ["--shape", "64", "52", "20", "--spacing-mm", "6", "6", "12"]
    assert generate(["flare21", "--out", str(data), "--scans", "3", "--unlabeled", "1", *size]) == 0
    capsys.readouterr()
    words = ["--model", str(finished / "work"), "--data", str(data), "--out", str(out), "--json"]
    assert main(["evaluate", *words]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["parts"]["kidneys"] == {
        "work": ["kidney_right", "kidney_left"],
        "FLARE2021": ["kidneys"],
    }
    assert "1 of 4 scans have no label map, left out: validation_001" in said.err
    assert told["scores"]["cases"] == {"test": 3}
    assert told["scores"]["runs"]["work"]["organs"]["liver"]["dice"]["mean"] > 0.3
    assert "kidney right + kidney left" in Path(told["report"]).read_text()
    again = main(["evaluate", *words])
    assert (again, capsys.readouterr().err.count("up to date")) == (0, 4)
