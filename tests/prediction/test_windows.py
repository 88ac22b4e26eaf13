"""Prediction by windows: in place whatever the copies, the window or the size of the scan."""

import numpy as np
import pytest
import torch
from test_coarse_inference import ByIntensity, cylinders, grid_of, spec_for

from sacl.patches.coarse_grid import arg_max_on_scan, slices_on_scan
from sacl.prediction.windows import probability_by_windows
from sacl.scores.organs_of_case import dice
from sacl.types import Volume

CPU = torch.device("cpu")


def labels_of(shape, spacing_mm, copies=0):
    image, labels = cylinders(shape, spacing_mm)
    how = (spec_for(), CPU, Volume(image, grid_of(shape, spacing_mm)), (0.0, 1000.0), copies)
    return arg_max_on_scan(*probability_by_windows((ByIntensity(),), *how)), labels


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("shape", [(40, 31, 12), (33, 40, 9)])
def test_turned_copies_are_turned_back_to_where_they_were(shape, copies):
    predicted, labels = labels_of(shape, (1.0, 1.0, 2.0), copies)
    assert predicted.shape == shape
    # The dim organ is found in the rim of the bright one too, half as bright as its inside.
    shift = np.mean(np.nonzero(predicted == 2), axis=1) - np.mean(np.nonzero(labels == 2), axis=1)
    assert np.abs(shift).max() < 0.35
    assert dice(labels == 2, predicted == 2) > 0.85


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((9, 9, 3), (2.0, 2.0, 2.0)), ((40, 40, 1), (1.0, 1.0, 5.0)), ((90, 90, 4), (0.3, 0.3, 12.0))],
)
def test_a_scan_smaller_than_a_window_or_of_one_slice_is_predicted_on_its_own_grid(
    shape, spacing_mm
):
    predicted, _ = labels_of(shape, spacing_mm)
    assert predicted.shape == shape
    assert predicted.dtype == np.uint8


def test_the_probabilities_of_slices_are_those_that_the_label_map_is_made_of():
    image, _ = cylinders((33, 40, 9), (1.0, 1.0, 2.0))
    volume = Volume(image, grid_of(image.shape, (1.0, 1.0, 2.0)))
    on_grid = probability_by_windows((ByIntensity(),), spec_for(), CPU, volume, (0.0, 1000.0))
    slices = torch.stack(list(slices_on_scan(*on_grid)), dim=-1)
    assert torch.allclose(slices.sum(dim=0), torch.ones(image.shape), atol=1e-5)
    assert np.array_equal(slices.numpy().argmax(axis=0), arg_max_on_scan(*on_grid))
