"""Fine-tuning as a stage: its start, a teacher, frozen encoders, and resumption."""

import json
import shutil

import numpy as np
import pytest
import torch
from block_cohort import copy_of, settings_of

from sacl.errors import DataError
from sacl.files.weights import read_weights
from sacl.networks.segmenter import SegmenterSpec, TrainedModel, build_segmenter
from sacl.run.record import read_record
from sacl.settings import PredictSettings, PretrainSettings
from sacl.stages import finetune as finetuning
from sacl.stages import slices
from sacl.stages.finetune import finetune
from sacl.stages.predict import predict
from sacl.stages.pretrain import pretrain


def test_trains_the_segmenter_and_keeps_its_losses(finished):
    folder = finished.folder("finetune")
    results = read_record(folder).results
    assert (results["arms"], results["steps"]) == (["semantic"], {"semantic": 2})
    assert (folder / "semantic" / "segmenter.safetensors").is_file()
    assert len((folder / "semantic" / "losses.csv").read_text().splitlines()) == 3


def test_an_interrupted_stage_does_not_train_a_finished_segmenter_again(
    pretrained, tmp_path, monkeypatch
):
    workspace = copy_of(pretrained, tmp_path / "work")
    settings = settings_of("dense")
    whole, trained = slices.SliceStart.train, []

    def remember(start, *rest):
        trained.append(start.name)
        return whole(start, *rest)

    def stop(message):
        raise KeyboardInterrupt

    monkeypatch.setattr(slices.SliceStart, "train", remember)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "say", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(settings, workspace)
    finetune(settings, workspace)
    assert trained == ["semantic"]
    assert read_record(workspace.folder("finetune")).results["steps"] == {"semantic": 2}


@pytest.mark.parametrize(("asked", "rate"), [(0.5, 1.0), (0.0, 0.0)])
def test_an_encoder_that_was_not_pretrained_learns_as_the_decoder_or_is_frozen(
    pretrained, tmp_path, asked, rate
):
    workspace = copy_of(pretrained, tmp_path / "work")
    settings = settings_of("dense", encoder_rate=asked)
    assert slices.read_start(settings, workspace).encoder_rate == asked
    shutil.rmtree(workspace.folder("pretrain"))
    pretrain(PretrainSettings(method="none", width=8), workspace)
    assert slices.read_start(settings, workspace).encoder_rate == rate


def test_a_teacher_labels_the_unlabeled_slices_of_the_last_steps(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    finetune(settings_of("dense", teacher_steps=2), workspace)
    results = read_record(workspace.folder("finetune")).results
    assert results["steps"] == {"semantic": 4}
    predict(PredictSettings(copies=0), workspace)


def test_a_pretrained_decoder_is_taken_over_where_there_is_one(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("pretrain"))
    pretrain(PretrainSettings(width=8, steps=2, batch=4), workspace)
    weights = read_weights(workspace.folder("pretrain"), "decoder")[0]
    kept = slices.read_start(settings_of("dense"), workspace).build(1).decoder.state_dict()
    fresh = slices.read_start(settings_of("query"), workspace).build(1).decoder.state_dict()
    assert all(torch.equal(kept[key], weights[key]) for key in weights)
    assert not all(torch.equal(fresh[key], weights[key]) for key in weights)


def test_a_frozen_encoder_is_the_pretrained_one(pretrained, tmp_path):
    from sacl.files.weights import read_weights

    workspace = copy_of(pretrained, tmp_path / "work")
    finetune(settings_of("query", encoder_rate=0.0), workspace)
    before, _ = read_weights(workspace.folder("pretrain"), "encoder")
    after, _ = read_weights(workspace.folder("finetune") / "semantic", "segmenter")
    assert all(np.array_equal(before[key], after[f"encoder.{key}"]) for key in before)


def test_a_random_encoder_is_frozen_where_that_is_asked_for(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    shutil.rmtree(workspace.folder("pretrain"))
    pretrain(PretrainSettings(method="none", width=8), workspace)
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
    assert json.loads(text)["window"]["window_hu"] == [-50.0, 250.0]


def test_the_description_says_how_the_segmenter_was_trained(finished):
    folder = finished.folder("finetune")
    text = json.loads((folder / "semantic" / "segmenter.json").read_text())
    model = TrainedModel.from_json(text)
    assert (model.method, model.steps) == ("semantic", 2)


def test_reads_no_settings_out_of_other_stages_records(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    for name in ("extract", "pretrain"):
        path = workspace.folder(name) / "run.json"
        path.write_text(json.dumps({"stage": name}))
    finetune(settings_of("dense", steps=1), workspace)


def test_an_encoder_of_an_older_version_is_one_line(pretrained, tmp_path):
    workspace = copy_of(pretrained, tmp_path / "work")
    text = {"network": "resnet18", "width": 8, "in_channels": 2, "spatial_dims": 2}
    (workspace.folder("pretrain") / "encoder.json").write_text(json.dumps(text))
    with pytest.raises(DataError, match=r"older version.*sacl pretrain CONFIG.yaml --force"):
        finetune(settings_of("dense"), workspace)
