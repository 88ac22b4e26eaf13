"""Fine-tuning as a stage: arms, twins, a teacher, frozen encoders, and resumption."""

import json
import shutil

import numpy as np
import pytest
import torch
from block_cohort import copy_of, settings_of

from sacl.errors import ConfigError, DataError
from sacl.files.weights import read_weights
from sacl.networks.segmenter import SegmenterSpec, build_segmenter
from sacl.run.record import read_record
from sacl.settings import (
    AugmentSettings,
    ExtractSettings,
    FinetuneSettings,
    PredictSettings,
    PretrainSettings,
)
from sacl.stages.extract import extract
from sacl.stages.finetune import Arm, finetune, plan_arms
from sacl.stages.predict import predict
from sacl.stages.pretrain import pretrain


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
        strategy="self-training", width=8, steps=2, slices=4, projector=(8, 4)
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
    pretrain(PretrainSettings(width=8, steps=1, batch=8, projector=(8, 4)), workspace)
    with pytest.raises(DataError, match="no dense slice of an unlabeled training scan"):
        finetune(settings_of("dense", teacher_steps=2), workspace)


def test_an_encoder_that_was_not_pretrained_has_no_twins():
    arms = plan_arms(settings_of("dense"), {"strategy": "none", "encoder_pixels": 0}, 32)
    assert arms == [Arm("none", False, 2)]


def test_a_frozen_encoder_is_the_pretrained_one(pretrained, tmp_path):
    from sacl.files.weights import read_weights

    workspace = copy_of(pretrained, tmp_path / "work")
    finetune(settings_of("query", encoder_rate=0.0, twins=()), workspace)
    before, _ = read_weights(workspace.folder("pretrain"), "encoder")
    after, _ = read_weights(workspace.folder("finetune") / "semantic", "segmenter")
    assert all(np.array_equal(before[key], after[f"encoder.{key}"]) for key in before)


def test_a_random_encoder_is_frozen_where_that_is_asked_for(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("pretrain"))
    pretrain(PretrainSettings(strategy="none", width=8, projector=(8, 4)), workspace)
    finetune(settings_of("query", encoder_rate=0.0), workspace)
    state, text = read_weights(workspace.folder("finetune") / "none", "segmenter")
    fresh = build_segmenter(SegmenterSpec.from_json(text), workspace.seed).state_dict()
    changed = {key for key in state if not torch.equal(state[key], fresh[key])}
    assert changed
    assert not any(key.startswith("encoder.") for key in changed)


def test_a_linear_probe_trains_a_linear_classifier_alone(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    settings = settings_of("dense", decoder="linear", encoder_rate=0.0, twins=())
    finetune(settings, workspace)
    before, _ = read_weights(workspace.folder("pretrain"), "encoder")
    state, text = read_weights(workspace.folder("finetune") / "semantic", "segmenter")
    stem = "stem.0.conv.weight"  # without the attention, its second channel
    assert torch.equal(before[stem][:, :1], state[f"encoder.{stem}"])
    assert all(torch.equal(before[key], state[f"encoder.{key}"]) for key in before if key != stem)
    fresh = build_segmenter(SegmenterSpec.from_json(text), workspace.seed)
    learned = {n for n, _ in fresh.named_parameters() if not n.startswith("encoder.")}
    assert learned == {"head.weight", "head.bias"}
    assert not torch.equal(state["head.weight"], fresh.head.weight)
    predict(PredictSettings(batch=4), workspace)


def test_the_description_holds_no_path_and_no_case(finished):
    text = (finished.folder("finetune") / "semantic" / "segmenter.json").read_text()
    assert str(finished.root) not in text
    assert "case-" not in text
    assert json.loads(text)["window"]["window_hu"] == [-50.0, 250.0]


def test_flips_are_refused_where_left_and_right_are_told_apart(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    store = workspace.folder("extract") / "store.json"
    store.write_text(
        store.read_text().replace("liver", "kidney_left").replace("spleen", "kidney_right")
    )
    settings = FinetuneSettings(steps=1, augment=AugmentSettings(flip=True))
    with pytest.raises(ConfigError, match="flip"):
        finetune(settings, workspace)
