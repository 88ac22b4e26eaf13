"""Queries of parts of organs, against what loops over pixels give."""

import numpy as np
import pytest
import torch
from tests.methods.test_slice_batches import network, recipe_of
from tests.training.test_segmentation_training import make_store

from research.methods import regions
from research.methods.regions import loss_of_parts, pool_parts
from sacl.losses.contrastive import contrastive_loss
from sacl.methods.batches import SliceViews
from sacl.methods.pooled import pool_under


@pytest.mark.parametrize("offset", [(0, 0), (1, 0), (2, 1)])
def test_parts_are_the_means_under_a_mask_in_every_square(offset):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 7, 8, generator=generator)
    masks = (torch.rand(2, 2, 7, 8, generator=generator) > 0.5).float()
    feature, area = pool_parts(features, masks, 3, offset)
    rows, columns = ((np.arange(n) + o) // 3 for n, o in zip((7, 8), offset, strict=True))
    square = rows[:, None] * (columns[-1] + 1) + columns
    assert area.shape == (2, square.max() + 1, 2)
    for n, at, region in np.ndindex(area.shape):
        inside = torch.from_numpy(square == at) & (masks[n, region] > 0)
        assert area[n, at, region] == inside.sum()
        expected = features[n][:, inside].mean(dim=1) if inside.any() else torch.zeros(3)
        assert torch.allclose(feature[n, at, region], expected, atol=1e-6)


def test_a_part_is_measured_in_pixels_of_the_mask():
    masks = torch.zeros(1, 1, 8, 8)
    masks[0, 0, :4, :2] = 1
    feature, area = pool_parts(torch.ones(1, 1, 4, 4), masks, 2)
    assert area[0, :, 0].tolist() == [8, 0, 0, 0]
    assert feature[0, :, 0, 0].tolist() == [1, 0, 0, 0]


def test_one_square_is_the_whole_mask():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 6, 6, generator=generator)
    masks = torch.rand(2, 2, 12, 12, generator=generator)
    feature, _ = pool_parts(features, masks, 6)
    assert torch.allclose(feature[:, 0], pool_under(features, masks), atol=1e-6)


def test_no_more_parts_are_compared_than_memory_has_room_for(monkeypatch):
    sizes = []

    def seen(embedding, *rest):
        sizes.append(len(embedding))
        return contrastive_loss(embedding, *rest)

    monkeypatch.setattr(regions, "contrastive_loss", seen)
    loss = loss_of_parts(SliceViews(make_store(), recipe_of()), recipe_of())
    loss(network(), 0)
    monkeypatch.setattr(regions, "MOST_PARTS", 7)
    loss(network(), 0)
    assert sizes[0] < sizes[1]
    assert sizes[2:] == [sizes[0], 7]


def test_without_a_decoder_the_contrast_reaches_every_level_of_the_encoder_itself():
    net = network("linear")
    loss_of_parts(SliceViews(make_store(), recipe_of()), recipe_of())(net, 0).backward()
    assert not list(net.decoder.parameters())
    assert all(w.grad.abs().sum() > 0 for w in net.encoder.parameters())
