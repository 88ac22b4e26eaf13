"""Which weights pretraining trains and keeps."""

from dataclasses import replace

import pytest
import torch
from block_cohort import copy_of

from sacl.files.weights import read_weights
from sacl.networks.encoder import STEM_WEIGHT
from sacl.settings import PretrainSettings
from sacl.stages.pretrain import pretrain

SETTINGS = PretrainSettings(steps=4, batch=12, slices=5, width=8, projector=(16, 8))


@pytest.fixture
def workspace(pretrained, tmp_path):
    return copy_of(pretrained, tmp_path / "work")


def stem(workspace, settings):
    return read_weights(pretrain(settings, workspace), "encoder")[0][STEM_WEIGHT]


def test_attention_that_is_always_hidden_leaves_its_weights_as_they_were(workspace):
    hidden = replace(SETTINGS, attention_dropout=1.0, weight_decay=0.0)

    before = stem(workspace, replace(hidden, steps=1))
    after = stem(workspace, hidden)

    assert after.shape[1] == 2
    assert not torch.equal(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1], before[:, 1], atol=0, rtol=0)


def test_contrast_of_slices_trains_the_encoder_and_keeps_no_decoder(workspace):
    slices = replace(SETTINGS, strategy="simclr-slices")

    before = stem(workspace, replace(slices, steps=1))
    after = stem(workspace, slices)

    assert after.shape[1] == 1
    assert not torch.equal(after, before)
    assert not (workspace.require("pretrain") / "decoder.json").exists()
    assert not (workspace.require("pretrain") / "decoder.safetensors").exists()
