"""Dense slices in two views, and what the pooled method learns from them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.training.test_segmentation_training import CPU, SIZE, STORED, make_store

from sacl.errors import DataError
from sacl.methods import Recipe, method_named
from sacl.methods.batches import SliceViews
from sacl.networks.decoder import build_decoder
from sacl.networks.encoder import Encoder, EncoderSpec
from sacl.networks.projector import DenseFeatures, DensePretrainer
from sacl.patches.views import ViewRanges
from sacl.training.loop import train

RANGES = ViewRanges(rotation_deg=20, scale=(0.9, 1.1), contrast=0.2)


def store_with_phases():
    """Return a store whose slices are of two phases, in turn."""
    store = make_store()
    cases = [f"case-{n}" for n in range(12)]
    store.dense_index["case_id"] = cases
    store.index["case_id"] = [cases[n % 12] for n in range(len(store.index))]
    store.index["label_phase"] = [["native", "venous"][n % 12 % 2] for n in range(len(store.index))]
    return store


def recipe_of(ranges=RANGES, slices=6, **changes):
    changes = {"scan_labels": (), "width": 8, "projector": (16, 8), **changes}
    return Recipe(batch=slices, ranges=ranges, temperature=0.1, **changes)


def network(decoder="unet"):
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(width=8, in_channels=1))
    parts = (encoder, build_decoder(decoder, encoder.channels, encoder.strides, SIZE))
    return DensePretrainer(*parts, (16, 8))


def test_two_views_of_a_slice_have_the_coarse_labels_of_its_pixels():
    views, _ = SliceViews(make_store(), recipe_of(ViewRanges())).draw(2)
    assert views.image.shape == (12, 1, SIZE, SIZE)
    assert torch.equal(views.slice[:6], views.slice[6:])
    edge = (STORED - SIZE) // 2
    inner = slice(edge, edge + SIZE)
    expected = make_store().dense_coarse[views.slice.numpy()][:, inner, inner]
    assert np.array_equal(views.labels.numpy(), expected)


def test_slices_without_an_organ_are_not_drawn():
    store = make_store()
    store.dense_index["holds_organ"] = [n % 3 == 0 for n in range(12)]
    views, _ = SliceViews(store, recipe_of(ViewRanges(), slices=4)).draw(0)
    assert set(views.slice.tolist()) == {0, 3, 6, 9}


def test_a_store_without_dense_slices_is_one_line():
    store = make_store()
    with pytest.raises(DataError, match="no dense slice of a training scan"):
        SliceViews(replace(store, dense_index=store.dense_index[:0]), recipe_of())


def pooled_loss(**changes):
    recipe = recipe_of(scan_labels=("phase",), **changes)
    return method_named("pooled").build(store_with_phases(), recipe).loss


def test_a_step_is_the_same_however_the_run_got_there():
    pretrained, loss = network(), pooled_loss()
    first = loss(pretrained.eval(), 5)
    loss(pretrained, 6)
    assert torch.equal(pooled_loss()(pretrained, 5), first)
    assert not torch.equal(loss(pretrained, 6), first)


def test_training_learns():
    pretrained = network()
    losses = train(
        pretrained,
        pooled_loss(),
        {pretrained: 3e-3},
        25,
        CPU,
        what="test",
    )
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


def test_the_decoder_learns_too():
    pretrained = network()
    pooled_loss()(pretrained, 0).backward()
    gradients = [p.grad for p in pretrained.decoder.parameters()]
    assert any(g is not None and g.abs().max() > 0 for g in gradients)


class Spells(torch.nn.Module):
    """Features that spell out organ and phase of a step's pixels, or the organ alone."""

    def __init__(self, views, with_phase):
        super().__init__()
        self.views, self.with_phase = views, with_phase
        self.project_coarsest = self.project_finest = Unit()

    def forward(self, image):
        slices, _ = self.views.draw(0)
        phase = self.views.scan_label[slices.slice] * int(self.with_phase)
        code = slices.labels + 3 * phase[:, None, None] * (slices.labels > 0)
        maps = torch.nn.functional.one_hot(code, 6).movedim(-1, 1).float()
        return DenseFeatures(maps, maps)


class Unit(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.normalize(x, dim=1)


def test_pooled_queries_of_one_organ_and_phase_attract_each_other():
    """With features that spell out organ and phase the loss is as low as it gets."""
    views = SliceViews(store_with_phases(), recipe_of(ViewRanges(), scan_labels=("phase",)))
    semantic = pooled_loss(ranges=ViewRanges())
    assert semantic(Spells(views, True), 0) < semantic(Spells(views, False), 0) - 0.5
