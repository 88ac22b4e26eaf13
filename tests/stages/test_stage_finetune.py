"""Fine-tuning as a stage: arms, twins, a teacher, frozen encoders, and resumption."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from block_cohort import copy_of, settings_of

from sacl.errors import DataError
from sacl.files.weights import read_weights
from sacl.networks.segmenter import SegmenterSpec, build_segmenter
from sacl.networks.volume_segmenter import TrainedModel
from sacl.run.record import read_record
from sacl.settings import PredictSettings, PretrainSettings
from sacl.stages import slices
from sacl.stages.arms import Arm
from sacl.stages.finetune import finetune, plan_arms
from sacl.stages.predict import predict
from sacl.stages.pretrain import pretrain
from sacl.training.loop import Plan


def test_trains_the_pretrained_arm_and_its_twin(finished):
    folder = finished.folder("finetune")
    results = read_record(folder).results
    assert results["arms"] == ["semantic", "scratch"]
    assert results["steps"]["semantic"] == results["steps"]["scratch"] == 2
    for arm in results["arms"]:
        assert (folder / arm / "segmenter.safetensors").is_file()
        assert len((folder / arm / "losses.csv").read_text().splitlines()) == (
            1 + results["steps"][arm]
        )


def test_an_interrupted_stage_does_not_train_a_finished_arm_again(
    pretrained, tmp_path, monkeypatch
):
    workspace = copy_of(pretrained, tmp_path / "work")
    settings = settings_of("dense")
    whole, trained = slices._train, []

    def stops_at_the_twin(arm, *rest):
        trained.append(arm.name)
        if arm.name == "scratch" and len(trained) == 2:
            raise KeyboardInterrupt
        return whole(arm, *rest)

    monkeypatch.setattr(slices, "_train", stops_at_the_twin)
    with pytest.raises(KeyboardInterrupt):
        finetune(settings, workspace)
    finetune(settings, workspace)
    assert trained == ["semantic", "scratch", "scratch"]
    assert set(read_record(workspace.folder("finetune")).results["seconds"]) == {
        "semantic",
        "scratch",
    }


def test_the_arms_differ_in_start_only():
    arms = plan_arms(settings_of("dense", encoder_rate=0.5), "pooled")
    assert arms == [Arm("pooled", True, 0.5), Arm("scratch", False, 1.0)]
    assert plan_arms(settings_of("dense", twin=False), "pooled") == [Arm("pooled", True, 1.0)]


@pytest.mark.parametrize(("asked", "rate"), [(0.5, 1.0), (0.0, 0.0)])
def test_an_encoder_that_was_not_pretrained_learns_as_the_decoder_or_is_frozen(asked, rate):
    settings = settings_of("dense", encoder_rate=asked, twin=False)
    assert plan_arms(settings, "none") == [Arm("none", False, rate)]


def test_a_teacher_labels_the_unlabeled_slices_of_the_last_steps(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    finetune(settings_of("dense", teacher_steps=2), workspace)
    results = read_record(workspace.folder("finetune")).results
    assert results["steps"] == {"semantic": 4, "scratch": 4}
    predict(PredictSettings(copies=0), workspace)


def test_a_pretrained_decoder_is_taken_over_by_the_pretrained_arm_only(
    pretrained, tmp_path, monkeypatch
):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("pretrain"))
    pretrain(PretrainSettings(width=8, steps=2, batch=4), workspace)
    weights = read_weights(workspace.folder("pretrain"), "decoder")[0]
    monkeypatch.setattr(slices, "Plan", partial(Plan, weight_decay=0.0))
    still = settings_of("dense", steps=1, learning_rate=1e-12)
    finetune(still, workspace)

    def decoder_of(arm):
        state, _ = read_weights(workspace.folder("finetune") / arm, "segmenter")
        return {key: state[f"decoder.{key}"] for key in weights}

    kept, fresh = decoder_of("pooled"), decoder_of("scratch")
    assert all(torch.allclose(kept[key], weights[key], atol=1e-6) for key in weights)
    assert not all(torch.allclose(fresh[key], weights[key], atol=1e-6) for key in weights)


def test_a_frozen_encoder_is_the_pretrained_one(pretrained, tmp_path):
    from sacl.files.weights import read_weights

    workspace = copy_of(pretrained, tmp_path / "work")
    finetune(settings_of("query", encoder_rate=0.0, twin=False), workspace)
    before, _ = read_weights(workspace.folder("pretrain"), "encoder")
    after, _ = read_weights(workspace.folder("finetune") / "semantic", "segmenter")
    assert all(np.array_equal(before[key], after[f"encoder.{key}"]) for key in before)


def test_a_random_encoder_is_frozen_where_that_is_asked_for(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("pretrain"))
    pretrain(PretrainSettings(method="none", width=8), workspace)
    finetune(settings_of("query", encoder_rate=0.0, twin=False), workspace)
    state, text = read_weights(workspace.folder("finetune") / "none", "segmenter")
    fresh = build_segmenter(SegmenterSpec.from_json(text), workspace.seed).state_dict()
    changed = {key for key in state if not torch.equal(state[key], fresh[key])}
    assert changed
    assert not any(key.startswith("encoder.") for key in changed)


def test_the_description_holds_no_path_and_no_case(finished):
    text = (finished.folder("finetune") / "semantic" / "segmenter.json").read_text()
    assert str(finished.root) not in text
    assert "case-" not in text
    assert json.loads(text)["window"]["window_hu"] == [-50.0, 250.0]


def test_the_description_says_how_the_segmenter_was_trained(finished):
    folder = finished.folder("finetune")
    models = [
        TrainedModel.from_json(json.loads((folder / arm / "segmenter.json").read_text()))
        for arm in ("semantic", "scratch")
    ]
    assert [(model.method, model.steps) for model in models] == [("semantic", 2), ("none", 2)]
    assert models[0].spec == models[1].spec


def test_reads_no_settings_out_of_other_stages_records(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    for name in ("extract", "pretrain"):
        path = workspace.folder(name) / "run.json"
        path.write_text(json.dumps({"stage": name}))
    finetune(settings_of("dense", steps=1, twin=False), workspace)


def test_an_encoder_of_an_older_version_is_one_line(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    text = {"network": "resnet18", "width": 8, "in_channels": 2, "spatial_dims": 2}
    (workspace.folder("pretrain") / "encoder.json").write_text(json.dumps(text))
    with pytest.raises(DataError, match=r"older version.*sacl pretrain CONFIG.yaml --force"):
        finetune(settings_of("dense"), workspace)
