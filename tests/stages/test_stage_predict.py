"""Prediction as a stage and of a folder: native grids, and scans that cannot be predicted."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from block_cohort import NATIVE, SCHEME, SHAPE, copy_of, settings_of

from sacl.cohort.manifest import read_cohort
from sacl.errors import ConfigError, DataError
from sacl.files.nifti import read_label_map, read_label_table
from sacl.patches.region import Placement, region_boxes
from sacl.settings import (
    ExtractSettings,
    PredictSettings,
    PretrainSettings,
)
from sacl.stages import extract as cutting
from sacl.stages.extract import extract
from sacl.stages.finetune import finetune
from sacl.stages.predict import predict, predict_folder
from sacl.stages.pretrain import pretrain


def test_the_pretrained_arm_predicts_all_scans_and_the_twins_what_can_be_scored(finished):
    folder = finished.folder("predict")
    predicted = {arm.name: sorted(p.name for p in arm.iterdir()) for arm in folder.glob("*/")}
    assert predicted["semantic"] == [f"case-{n}.nii.gz" for n in range(5)]
    assert predicted["scratch"] == ["case-3.nii.gz", "case-4.nii.gz"]


def test_predictions_lie_on_the_files_own_grid(finished):
    image = nibabel.load(finished.folder("predict") / "semantic" / "case-3.nii.gz")
    assert np.array_equal(image.affine, NATIVE)
    assert image.get_data_dtype() == np.uint8
    table = read_label_table(finished.folder("predict") / "semantic" / "case-3.nii.gz")
    assert table == {"liver": 1, "spleen": 2}


def write_scans(finished, folder):
    """Write the held-out scans as they lay in their own files."""
    folder.mkdir(parents=True)
    cohort = read_cohort(finished.folder("ingest"))
    for case in cohort.of_split("test"):
        voxels = np.asarray(nibabel.load(finished.folder("ingest") / case.image).dataobj)
        nibabel.save(
            nibabel.Nifti1Image(np.ascontiguousarray(voxels[::-1]), NATIVE),
            folder / f"{case.case_id}.nii",
        )
    return folder


def test_a_folder_gets_what_the_stage_predicts(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    written = predict_folder(
        finished.root,
        scans,
        tmp_path / "out",
        coarse=finished.folder("locate") / "maps",
        settings=PredictSettings(copies=0),
        device="cpu",
    )
    assert [p.name for p in written] == ["case-3.nii.gz", "case-4.nii.gz"]
    for path in written:
        ours = nibabel.load(path)
        stage = nibabel.load(finished.folder("predict") / "semantic" / path.name)
        assert np.array_equal(np.asarray(ours.dataobj), np.asarray(stage.dataobj))
        assert np.array_equal(ours.affine, stage.affine)


def test_one_scan_and_one_arm_can_be_chosen(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    written = predict_folder(
        finished.root,
        scans / "case-4.nii",
        tmp_path / "out",
        arm="scratch",
        coarse=finished.folder("locate") / "maps",
        device="cpu",
    )
    assert [path.name for path in written] == ["case-4.nii.gz"]


def test_an_arm_that_is_not_there_is_one_line(finished, tmp_path):
    with pytest.raises(ConfigError, match=r"no arm 'best'.*semantic, scratch"):
        predict_folder(finished.root, tmp_path, tmp_path / "out", arm="best")


def test_a_scan_is_never_overwritten(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    volume = nibabel.load(scans / "case-3.nii")
    nibabel.save(volume, scans / "packed.nii.gz")
    with pytest.raises(ConfigError, match=r"packed\.nii\.gz would overwrite the scan"):
        predict_folder(finished.root, scans, scans)


def test_an_empty_folder_is_one_line(finished, tmp_path):
    with pytest.raises(DataError, match="no NIfTI scan"):
        predict_folder(finished.root, tmp_path, tmp_path / "out")


def test_two_scans_of_one_name_are_one_line(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    nibabel.save(nibabel.load(scans / "case-3.nii"), scans / "case-3.nii.gz")
    with pytest.raises(DataError, match="two scans differ only in"):
        predict_folder(finished.root, scans, tmp_path / "out")


def test_a_damaged_header_stops_before_anything_is_written(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    (scans / "damaged.nii").write_bytes(b"not a scan")
    with pytest.raises(DataError, match=r"damaged\.nii"):
        predict_folder(finished.root, scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scan_with_bad_voxels_is_left_out_and_told(finished, tmp_path, capsys):
    scans = write_scans(finished, tmp_path / "scans")
    constant = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), NATIVE)
    nibabel.save(constant, scans / "case-0.nii")
    with pytest.raises(DataError, match=r"1 of 3 scans could not be predicted \(case-0\.nii\)"):
        predict_folder(
            finished.root,
            scans,
            tmp_path / "out",
            coarse=finished.folder("locate") / "maps",
            device="cpu",
        )
    assert "constant image" in capsys.readouterr().err
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["case-3.nii.gz", "case-4.nii.gz"]


def test_the_dense_head_reads_the_square_around_all_organs(pretrained, tmp_path, monkeypatch):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("extract"))
    shutil.rmtree(workspace.folder("pretrain"))
    tight = Placement(region_context=1.2)
    monkeypatch.setattr(cutting, "_placement", lambda settings: tight)
    extract(ExtractSettings(patch_size=16, dense_size=32), workspace)
    pretrain(PretrainSettings(method="semantic", width=8, steps=1, batch=8), workspace)
    finetune(settings_of("dense", twin=False), workspace)
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
