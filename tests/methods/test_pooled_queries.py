"""Attention as pooling, against what loops over pixels give."""

import pytest
import torch

from sacl.methods.pooled import large_enough, pool_under, region_masks


def test_pooling_is_the_mean_under_the_mask():
    features = torch.arange(32.0).view(1, 2, 4, 4)
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, 1, 1:3] = 1
    pooled = pool_under(features, masks)
    assert pooled[0, 0].tolist() == [5.5, 21.5]
    assert pooled[0, 1].tolist() == [0.0, 0.0]


def test_a_mask_of_a_few_pixels_makes_no_query():
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :2, :2] = 1
    masks[0, 1, 0, :3] = 1
    assert large_enough(masks).tolist() == [[True, False]]


def test_a_finer_mask_is_averaged_down_to_the_features():
    features = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, :2, 1:] = 1  # two pixels of the first quarter, four of the second
    assert pool_under(features, mask).item() == pytest.approx((2 * 1.0 + 4 * 3.0) / 6)


def test_surroundings_are_background_near_an_organ():
    labels = torch.zeros(1, 9, 9, dtype=torch.long)
    labels[0, 4, 4], labels[0, 4, 5] = 1, 2
    masks = region_masks(labels, organs=2, reach=(1, 1))
    assert masks[0].sum(dim=(1, 2)).tolist() == [3 * 4 - 2, 1, 1]
    assert masks[0, 0, 4, 4] == 0
    assert masks.sum(dim=1).max() == 1
