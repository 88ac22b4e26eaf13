import math

import numpy as np
import pytest

from sacl.scores.organs_of_case import dice, volume_ml


def _mask(*voxels):
    mask = np.zeros((3, 3, 3), dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def test_dice_is_twice_the_overlap_over_the_sum():
    reference = _mask((0, 0, 0), (0, 0, 1), (0, 0, 2))
    predicted = _mask((0, 0, 1), (0, 0, 2), (1, 1, 1), (2, 2, 2), (2, 2, 1))
    assert dice(reference, predicted) == pytest.approx(2 * 2 / (3 + 5))


def test_dice_of_two_empty_masks_is_undefined():
    assert math.isnan(dice(_mask(), _mask()))


def test_dice_is_zero_when_exactly_one_mask_is_empty():
    assert dice(_mask((0, 0, 0)), _mask()) == 0
    assert dice(_mask(), _mask((0, 0, 0))) == 0


def test_dice_of_a_mask_with_itself_is_one():
    assert dice(_mask((1, 1, 1)), _mask((1, 1, 1))) == 1


def test_volume_counts_voxels_in_milliliters():
    assert volume_ml(_mask((0, 0, 0), (2, 2, 2)), 0.012) == pytest.approx(0.024)
    assert volume_ml(_mask(), 0.012) == 0
