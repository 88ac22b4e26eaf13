import math

import numpy as np
import pytest

from sacl.scores.organs_of_case import dice, measure_organs, volume_ml
from sacl.types import Grid, LabelMap, LabelScheme, Volume


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


def test_volume_mean_and_spread_of_organs_are_those_of_their_voxels():
    rng = np.random.default_rng(0)
    grid = Grid((7, 8, 9), np.diag([0.5, 2.0, 3.0, 1.0]))
    labels = rng.integers(0, 3, grid.shape).astype(np.uint8)
    whole = rng.integers(-1000, 2000, grid.shape).astype(np.int16)
    for image in (rng.normal(3e4, 1, grid.shape).astype(np.float32), whole):
        scheme = LabelScheme("three", ("a", "b", "none"))
        a, b, none = measure_organs(Volume(image, grid), LabelMap(labels, grid, scheme))
        for n, organ in enumerate((a, b), start=1):
            inside = image[labels == n].astype(float)
            assert organ.volume_ml == pytest.approx(inside.size * 0.003)
            assert organ.mean == pytest.approx(inside.mean(), rel=1e-12)
            assert organ.sd == pytest.approx(inside.std(), rel=1e-6)
        assert (none.organ, none.volume_ml) == ("none", 0)
        assert math.isnan(none.mean)
        assert math.isnan(none.sd)
