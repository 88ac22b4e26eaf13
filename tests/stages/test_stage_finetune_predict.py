"""Fine-tuning and prediction as stages: arms, resumption, native grids, and single folders."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import torch

from sacl.errors import ConfigError, DataError
from sacl.io.checkpoint import read_weights
from sacl.io.manifest import read_cohort, write_cohort
from sacl.io.nifti import read_label_map, read_label_table, write_label_map, write_volume
from sacl.io.run_record import read_record, recorded
from sacl.io.workspace import Workspace
from sacl.models.segmenter import SegmenterSpec, build_segmenter
from sacl.patches.region import region_boxes
from sacl.settings import (
    AugmentSettings,
    ExtractSettings,
    FinetuneSettings,
    IngestSettings,
    LocateSettings,
    PredictSettings,
    PretrainSettings,
)
from sacl.stages.extract import extract
from sacl.stages.finetune import Arm, finetune, plan_arms
from sacl.stages.predict import predict, predict_folder
from sacl.stages.pretrain import pretrain
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

SCHEME = LabelScheme("two", ("liver", "spleen"))
SHAPE = (40, 36, 5)
NATIVE = np.array([[-2.0, 0, 0, 39], [0, 2, 0, -36], [0, 0, 5, 7], [0, 0, 0, 1]])


def write_case(folder, number):
    """Write one scan of two bright blocks, of which the file was stored right to left."""
    rng = np.random.default_rng(number)
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:17, 8 + number % 4 : 22, 0:4] = 1
    labels[24:34, 14 : 24 + number % 3, 1:5] = 2
    image = (100.0 * labels + rng.normal(0, 20, SHAPE)).astype(np.int16)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[:3, 3] = (-39, -36, 7)
    grid = Grid(SHAPE, affine)
    case_id, split = f"case-{number}", "train" if number < 3 else "test"
    write_volume(folder / f"images/{case_id}.nii", Volume(image, grid))
    write_label_map(folder / f"references/{case_id}.nii.gz", LabelMap(labels, grid, SCHEME))
    coarse = np.roll(labels, 1, axis=0)
    write_label_map(
        folder.parent / f"2-coarse/maps/{case_id}.nii.gz", LabelMap(coarse, grid, SCHEME)
    )
    return Case(
        case_id=case_id,
        subject_id=case_id,
        image=f"images/{case_id}.nii",
        reference=f"references/{case_id}.nii.gz" if number != 2 else None,
        split=split,
        native=NativeFrame(Grid(SHAPE, NATIVE)),
        window=(-50.0, 250.0),
        scan_labels={"phase": "native"},
        annotated=SCHEME.names,
    )


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Return a work directory that is done up to pretraining."""
    workspace = Workspace(tmp_path_factory.mktemp("runs") / "work", seed=1, device="cpu")
    settings = IngestSettings(window_hu=(-50.0, 250.0))
    with (
        recorded(workspace, "locate", LocateSettings(), {}),
        recorded(workspace, "ingest", settings, {}) as (folder, _),
    ):
        write_cohort(
            folder, Cohort("blocks", SCHEME, tuple(write_case(folder, n) for n in range(5)))
        )
    extract(ExtractSettings(patch_size=16, dense_size=32, margin=1.25, min_side_mm=8), workspace)
    pretrain(PretrainSettings(width=4, steps=2, batch=8, projector=(8, 4)), workspace)
    return workspace


def copy_of(workspace, path):
    shutil.copytree(workspace.root, path)
    return Workspace(path, seed=workspace.seed, device="cpu")


def settings_of(head, steps=2, **changes):
    augment = AugmentSettings(rotation_deg=5.0, scale=(0.95, 1.05))
    return FinetuneSettings(head=head, steps=steps, batch=4, augment=augment, **changes)


@pytest.fixture(scope="session", params=["dense", "query"])
def finished(request, pretrained, tmp_path_factory):
    """Return a work directory that is done up to prediction, for either head."""
    workspace = copy_of(pretrained, tmp_path_factory.mktemp(request.param) / "work")
    finetune(settings_of(request.param), workspace)
    predict(PredictSettings(batch=4), workspace)
    return workspace


def test_trains_the_pretrained_arm_and_both_twins(finished):
    folder = finished.folder("finetune")
    results = read_record(folder)["results"]
    assert results["arms"] == ["semantic", "scratch", "scratch-long"]
    assert results["steps"]["semantic"] == results["steps"]["scratch"] == 2
    # Two steps of 2 x 8 views of 16 x 16, in batches of 4 x 16 x 16 or 4 x 32 x 32.
    assert results["steps"]["scratch-long"] == 2 + (8 if "query" in str(finished.root) else 2)
    for arm in results["arms"]:
        assert (folder / arm / "segmenter.safetensors").is_file()
        assert len((folder / arm / "losses.csv").read_text().splitlines()) == (
            1 + results["steps"][arm]
        )


def test_the_pretrained_arm_predicts_all_scans_and_the_twins_what_can_be_scored(finished):
    folder = finished.folder("predict")
    predicted = {arm.name: sorted(p.name for p in arm.iterdir()) for arm in folder.glob("*/")}
    assert predicted["semantic"] == [f"case-{n}.nii.gz" for n in range(5)]
    assert predicted["scratch"] == predicted["scratch-long"] == ["case-3.nii.gz", "case-4.nii.gz"]


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
        settings=PredictSettings(batch=4),
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


def test_an_interrupted_stage_does_not_train_a_finished_arm_again(
    pretrained, tmp_path, monkeypatch
):
    workspace = copy_of(pretrained, tmp_path / "work")
    settings = settings_of("dense", twins=("scratch",))
    from sacl.stages import finetune as stage

    whole, trained = stage._train_arm, []

    def stops_at_the_twin(arm, *rest):
        trained.append(arm.name)
        if arm.name == "scratch" and len(trained) == 2:
            raise KeyboardInterrupt
        return whole(arm, *rest)

    monkeypatch.setattr(stage, "_train_arm", stops_at_the_twin)
    with pytest.raises(KeyboardInterrupt):
        finetune(settings, workspace)
    finetune(settings, workspace)
    assert trained == ["semantic", "scratch", "scratch"]
    assert set(read_record(workspace.folder("finetune"))["results"]["seconds"]) == {
        "semantic",
        "scratch",
    }


def test_the_arms_differ_in_start_and_length_only():
    arms = plan_arms(
        settings_of("dense", steps=10), {"strategy": "organ", "encoder_pixels": 4097}, 32
    )
    # 4097 pixels are one more than a step's 4 x 32 x 32, so they take 2 steps.
    assert arms == [
        Arm("organ", True, 10),
        Arm("scratch", False, 10),
        Arm("scratch-long", False, 12),
    ]


def test_a_teacher_labels_the_unlabeled_slices_of_the_last_steps(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    finetune(settings_of("dense", teacher_steps=2, twins=("scratch",)), workspace)
    results = read_record(workspace.folder("finetune"))["results"]
    assert results["steps"] == {"semantic": 4, "scratch": 4}
    predict(PredictSettings(batch=4), workspace)


def test_a_pretrained_decoder_is_taken_over_by_the_pretrained_arm_only(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("pretrain"))
    settings = PretrainSettings(
        strategy="self-training", width=4, steps=2, slices=4, projector=(8, 4)
    )
    pretrain(settings, workspace)
    weights = read_weights(workspace.folder("pretrain"), "decoder")[0]
    still = settings_of("dense", steps=1, learning_rate=1e-12, twins=("scratch",), weight_decay=0.0)
    finetune(still, workspace)

    def decoder_of(arm):
        state, _ = read_weights(workspace.folder("finetune") / arm, "segmenter")
        return {key: state[f"decoder.{key}"] for key in weights}

    kept, fresh = decoder_of("self-training"), decoder_of("scratch")
    assert all(torch.allclose(kept[key], weights[key], atol=1e-6) for key in weights)
    assert not all(torch.allclose(fresh[key], weights[key], atol=1e-6) for key in weights)


def test_a_teacher_without_unlabeled_slices_is_one_line(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("extract"))
    shutil.rmtree(workspace.folder("pretrain"))
    extract(
        ExtractSettings(patch_size=16, dense_size=32, margin=1.25, dense_unlabeled=False), workspace
    )
    pretrain(PretrainSettings(width=4, steps=1, batch=8, projector=(8, 4)), workspace)
    with pytest.raises(DataError, match="no dense slice of an unlabeled training scan"):
        finetune(settings_of("dense", teacher_steps=2), workspace)


def test_the_dense_head_reads_the_square_around_all_organs(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("extract"))
    shutil.rmtree(workspace.folder("pretrain"))
    settings = ExtractSettings(
        patch_size=16, dense_size=32, margin=1.25, dense_region="organs", region_context=1.2
    )
    extract(settings, workspace)
    pretrain(PretrainSettings(width=4, steps=1, batch=8, projector=(8, 4)), workspace)
    finetune(settings_of("dense", twins=()), workspace)
    predict(PredictSettings(batch=4), workspace)
    spec = json.loads((workspace.folder("finetune") / "semantic/segmenter.json").read_text())
    assert (spec["dense_region"], spec["region_context"]) == ("organs", 1.2)
    cohort = read_cohort(workspace.folder("ingest"))
    case = cohort.cases[3]
    coarse, _ = read_label_map(workspace.folder("locate") / "maps/case-3.nii.gz", SCHEME)
    predicted, _ = read_label_map(workspace.folder("predict") / "semantic/case-3.nii.gz", SCHEME)
    box = region_boxes(coarse, 1.2, settings.min_side_mm)[0]
    outside = np.ones(predicted.voxels.shape, bool)
    outside[max(box.start[0], 0) : box.stop[0], max(box.start[1], 0) : box.stop[1]] = False
    assert case.case_id == "case-3"
    assert not predicted.voxels[outside].any()
    assert outside.any()


def test_an_encoder_that_was_not_pretrained_has_no_twins():
    arms = plan_arms(settings_of("dense"), {"strategy": "none", "encoder_pixels": 0}, 32)
    assert arms == [Arm("none", False, 2)]


def test_a_frozen_encoder_is_the_pretrained_one(pretrained, tmp_path):
    from sacl.io.checkpoint import read_weights

    workspace = copy_of(pretrained, tmp_path / "work")
    finetune(settings_of("query", encoder_rate=0.0, twins=()), workspace)
    before, _ = read_weights(workspace.folder("pretrain"), "encoder")
    after, _ = read_weights(workspace.folder("finetune") / "semantic", "segmenter")
    assert all(np.array_equal(before[key], after[f"encoder.{key}"]) for key in before)


def test_a_random_encoder_is_frozen_where_that_is_asked_for(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("pretrain"))
    pretrain(PretrainSettings(strategy="none", width=4, projector=(8, 4)), workspace)
    finetune(settings_of("query", encoder_rate=0.0), workspace)
    state, text = read_weights(workspace.folder("finetune") / "none", "segmenter")
    fresh = build_segmenter(SegmenterSpec.from_json(text), workspace.seed).state_dict()
    changed = {key for key in state if not torch.equal(state[key], fresh[key])}
    assert changed
    assert not any(key.startswith("encoder.") for key in changed)


def test_the_description_holds_no_path_and_no_case(finished):
    text = (finished.folder("finetune") / "semantic" / "segmenter.json").read_text()
    assert str(finished.root) not in text
    assert "case-" not in text
    assert json.loads(text)["window_hu"] == [-50.0, 250.0]


def test_flips_are_refused_where_left_and_right_are_told_apart(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    store = workspace.folder("extract") / "store.json"
    store.write_text(
        store.read_text().replace("liver", "kidney_left").replace("spleen", "kidney_right")
    )
    settings = FinetuneSettings(steps=1, augment=AugmentSettings(flip=True))
    with pytest.raises(ConfigError, match="flip"):
        finetune(settings, workspace)
