"""Attention as pooling, against what loops over pixels give."""

import numpy as np
import pytest
import torch

from sacl.patches.pooling import organ_masks, pool_parts, pool_under, shown


def test_pooling_is_the_mean_under_the_mask():
    features = torch.arange(32.0).view(1, 2, 4, 4)
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, 1, 1:3] = 1
    pooled = pool_under(features, masks)
    assert pooled[0, 0].tolist() == [5.5, 21.5]
    assert pooled[0, 1].tolist() == [0.0, 0.0]
    assert shown(masks, 2).tolist() == [[True, False]]


def test_a_finer_mask_is_averaged_down_to_the_features():
    features = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, :2, 1:] = 1  # two pixels of the first quarter, four of the second
    assert pool_under(features, mask).item() == pytest.approx((2 * 1.0 + 4 * 3.0) / 6)


def test_surroundings_are_background_near_an_organ():
    labels = torch.zeros(1, 9, 9, dtype=torch.long)
    labels[0, 4, 4], labels[0, 4, 5] = 1, 2
    masks = organ_masks(labels, organs=2, surround=1)
    assert masks[0].sum(dim=(1, 2)).tolist() == [3 * 4 - 2, 1, 1]
    assert masks[0, 0, 4, 4] == 0
    assert masks.sum(dim=1).max() == 1


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
