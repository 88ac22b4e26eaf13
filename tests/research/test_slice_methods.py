"""Methods of dense slices that lost or are controls: every one's loss."""

import numpy as np
import pytest
import torch
from tests.methods.test_slice_batches import recipe_of
from tests.training.test_segmentation_training import CPU, make_store

import research.methods  # noqa: F401 - enters the methods into the table
from sacl.losses.contrastive import patch_contrastive_loss
from sacl.methods import method_named
from sacl.methods.batches import SliceViews
from sacl.training.loop import train

WHOLE = ["parts", "pixel", "self-training", "mim", "simclr-slices"]


def pretraining_of(name):
    return method_named(name).build(make_store(), recipe_of())


@pytest.mark.parametrize("name", WHOLE)
def test_a_step_is_the_same_however_the_run_got_there(name):
    pretraining = pretraining_of(name)
    net, loss = pretraining.network.eval(), pretraining.loss
    first = loss(net, 5)
    loss(net, 6)
    assert torch.equal(pretraining_of(name).loss(net, 5), first)
    assert not torch.equal(loss(net, 6), first)


@pytest.mark.parametrize("name", WHOLE)
def test_training_learns(name):
    pretraining = pretraining_of(name)
    losses = train(
        pretraining.network,
        pretraining.loss,
        {pretraining.network: 3e-3},
        25,
        CPU,
        what="test",
    )
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


@pytest.mark.parametrize("name", WHOLE)
def test_the_decoder_learns_where_the_table_says_so(name):
    pretraining = pretraining_of(name)
    pretraining.loss(pretraining.network, 0).backward()
    gradients = [p.grad for p in pretraining.network.decoder.parameters()]
    learns = any(g is not None and g.abs().max() > 0 for g in gradients)
    assert learns == method_named(name).trains_decoder


def test_contrast_of_slices_is_the_loss_of_two_views():
    pretraining = pretraining_of("simclr-slices")
    net = pretraining.network.eval()
    loss = pretraining.loss(net, 3)

    views, _ = SliceViews(make_store(), recipe_of()).draw(3)
    embedding = net.project_coarsest(net.encoder(views.image)[-1].flatten(2).mean(dim=2))
    itself = torch.eye(6, dtype=torch.bool)
    paired = embedding.view(2, 6, -1).movedim(0, 1)
    expected = patch_contrastive_loss(paired, itself, torch.ones_like(itself), 0.1)
    torch.testing.assert_close(loss, expected)
