import math

import numpy as np
import pytest

from sacl.scores.overlap import (
    FIGURES,
    dice,
    foreground_mean,
    label_figures,
    means,
    volume_ml,
)


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


# -- nnU-Net's figures per label ---------------------------------------------------------------


def by_the_book(reference, predicted, label):
    """Return the figures of one label, voxel by voxel."""
    tp = fp = fn = tn = 0
    for r, p in zip(reference.ravel() == label, predicted.ravel() == label, strict=True):
        tp, fp, fn, tn = tp + (r and p), fp + (p and not r), fn + (r and not p), tn + (not r | p)
    return {
        "Dice": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan,
        "IoU": tp / (tp + fp + fn) if tp + fp + fn else math.nan,
        "TP": tp,
        "FP": fp,
        "FN": fn,
        "TN": tn,
        "n_pred": tp + fp,
        "n_ref": tp + fn,
    }


@pytest.mark.parametrize("seed", range(4))
def test_figures_agree_with_the_definition_voxel_by_voxel(seed):
    rng = np.random.default_rng(seed)
    reference, predicted = rng.integers(0, 4, (2, 5, 4, 3)).astype(np.uint8)
    found = label_figures(reference, predicted, 4, {1, 2, 3, 4})
    for label in (1, 2, 3, 4):
        assert found[label] == pytest.approx(by_the_book(reference, predicted, label), nan_ok=True)
        assert set(found[label]) == set(FIGURES)
        ours = dice(reference == label, predicted == label)
        assert found[label]["Dice"] == pytest.approx(ours, nan_ok=True)
    assert math.isnan(found[4]["Dice"]), "label 4 is in neither map"
    assert found[4]["TN"] == reference.size


def test_a_label_in_one_of_the_maps_only_has_dice_0():
    empty, full = np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
    for reference, predicted in ((empty, full), (full, empty)):
        assert label_figures(reference, predicted, 1, {1})[1]["Dice"] == 0.0


def test_a_label_that_nobody_annotated_is_nan_throughout():
    full = np.ones((2, 2, 2), np.uint8)
    found = label_figures(full, full, 2, {2})
    assert all(math.isnan(value) for value in found[1].values())
    assert found[2]["TN"] == 8


def test_means_leave_nan_cases_out_and_the_foreground_keeps_nan_labels():
    def case(a, b):
        return {1: dict.fromkeys(FIGURES, a), 2: dict.fromkeys(FIGURES, b)}

    by_label = means([case(0.5, math.nan), case(1.0, 0.25)])
    assert (by_label[1]["Dice"], by_label[2]["Dice"]) == (0.75, 0.25)
    assert foreground_mean(by_label)["Dice"] == 0.5
    never = means([case(0.5, math.nan)])
    assert math.isnan(never[2]["IoU"])
    assert math.isnan(foreground_mean(never)["IoU"])
