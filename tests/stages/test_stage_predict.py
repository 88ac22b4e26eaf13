"""Prediction as a stage: native grids, what is lost against the coarse maps, bad scans."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from block_cohort import NATIVE, SCHEME, copy_of, settings_of

from sacl.cohort.manifest import read_cohort
from sacl.errors import DataError
from sacl.files.nifti import read_label_map, read_label_table
from sacl.patches.region import Placement, region_boxes
from sacl.prediction.guard import read_findings
from sacl.prediction.volume import MapRecipe, read_recipe
from sacl.run.record import read_record
from sacl.settings import (
    ExtractSettings,
    PredictSettings,
    PretrainSettings,
)
from sacl.stages import extract as cutting
from sacl.stages import predict as predicting
from sacl.stages.extract import extract
from sacl.stages.finetune import finetune
from sacl.stages.predict import predict
from sacl.stages.pretrain import pretrain


def test_all_scans_are_predicted(finished):
    folder = finished.folder("predict")
    predicted = {arm.name: sorted(p.name for p in arm.iterdir()) for arm in folder.glob("*/")}
    assert predicted == {"semantic": [f"case-{n}.nii.gz" for n in range(5)]}


def test_predictions_lie_on_the_files_own_grid(finished):
    image = nibabel.load(finished.folder("predict") / "semantic" / "case-3.nii.gz")
    assert np.array_equal(image.affine, NATIVE)
    assert image.get_data_dtype() == np.uint8
    table = read_label_table(finished.folder("predict") / "semantic" / "case-3.nii.gz")
    assert table == {"liver": 1, "spleen": 2}


def test_the_dense_head_reads_the_square_around_all_organs(pretrained, tmp_path, monkeypatch):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("extract"))
    shutil.rmtree(workspace.folder("pretrain"))
    tight = Placement(region_context=1.2)
    monkeypatch.setattr(cutting, "Placement", lambda **_: tight)
    extract(ExtractSettings(patch_size=16, dense_size=32), workspace)
    pretrain(PretrainSettings(method="semantic", width=8, steps=1, batch=8), workspace)
    finetune(settings_of("dense"), workspace)
    predict(PredictSettings(copies=0), workspace)
    spec = json.loads((workspace.folder("finetune") / "semantic/segmenter.json").read_text())
    placement = spec["placement"]
    assert (placement["region"], placement["region_context"]) == ("organs", 1.2)
    cohort = read_cohort(workspace.folder("ingest"))
    case = cohort.cases[3]
    coarse, _ = read_label_map(workspace.folder("locate") / "maps/case-3.nii.gz", SCHEME)
    predicted, _ = read_label_map(workspace.folder("predict") / "semantic/case-3.nii.gz", SCHEME)
    box = region_boxes(coarse, 1.2, tight.min_side_mm)[0]
    outside = np.ones(predicted.voxels.shape, bool)
    outside[max(box.start[0], 0) : box.stop[0], max(box.start[1], 0) : box.stop[1]] = False
    assert case.case_id == "case-3"
    assert not predicted.voxels[outside].any()
    assert outside.any()


def findings_of(workspace):
    return read_findings(workspace.folder("predict"))


def test_the_way_in_which_maps_were_made_is_kept_with_them(finished):
    assert read_recipe(finished.folder("predict")) == MapRecipe(0, 0.1)


def test_organs_that_vanish_are_taken_from_the_coarse_maps_and_said(finished, tmp_path, capsys):
    workspace = copy_of(finished, tmp_path / "work")
    real = predicting.predict_volume

    def without_spleen(predictor, volume, window, coarse):
        label_map = real(predictor, volume, window, coarse)
        label_map.voxels[label_map.voxels == 2] = 0
        return label_map

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicting, "predict_volume", without_spleen)
        predict(PredictSettings(copies=1), workspace)
    findings = findings_of(workspace)
    assert "spleen" in findings.from_coarse
    assert any(d.kind == "never_predicted" and d.organ == "spleen" for d in findings.doubts)
    said = capsys.readouterr().err
    taken = "organs are taken from the coarse maps; in the final maps they are lost or worse: "
    assert taken in said
    assert "in doubt: spleen" not in said
    record = read_record(workspace.folder("predict")).results
    assert record["from_coarse"] == list(findings.from_coarse)
    assert record["doubts"] == [doubt.text for doubt in findings.doubts]
    for case in read_cohort(workspace.folder("ingest")).cases:
        name = f"{case.case_id}.nii.gz"
        final, _ = read_label_map(workspace.folder("predict") / "semantic" / name, SCHEME)
        coarse, _ = read_label_map(workspace.folder("locate") / "maps" / name, SCHEME)
        assert np.array_equal(final.mask("spleen"), coarse.mask("spleen"))
    assert read_recipe(workspace.folder("predict")).from_coarse == findings.from_coarse


def test_test_scans_do_not_decide_whose_map_is_taken(finished, tmp_path, monkeypatch):
    """The decision is asked for the changes of three of the five scans."""
    workspace, asked = copy_of(finished, tmp_path / "work"), []

    def remember(changes):
        asked.extend(row.case_id for row in changes)
        return ()

    monkeypatch.setattr(predicting.guard, "organs_to_take_from_coarse", remember)
    predict(PredictSettings(copies=1), workspace)
    assert set(asked) == {"case-0", "case-1", "case-2"}


def test_bad_scans_are_listed_and_the_others_done(finished, tmp_path, capsys):
    workspace = copy_of(finished, tmp_path / "work")
    cohort = read_cohort(workspace.folder("ingest"))
    (workspace.folder("ingest") / cohort.cases[1].image).write_bytes(b"damaged")
    with pytest.raises(DataError, match="case-1"):
        predict(PredictSettings(copies=1), workspace)
    assert "left out: " in capsys.readouterr().err
    assert len(list((workspace.folder("predict") / "semantic").iterdir())) == 4
