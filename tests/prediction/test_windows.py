"""Prediction by windows: in place whatever the copies, the window or the size of the scan."""

import numpy as np
import pytest
import torch
from test_coarse_inference import ByIntensity, cylinders, grid_of, spec_for

from sacl.patches.coarse_grid import arg_max_on_scan, slices_on_scan
from sacl.prediction.windows import probability, probability_by_windows
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


class Counted(torch.nn.Module):
    """Gives every voxel the class of its own brightness, and keeps the windows that it was given.

    What it says also depends on the window as a whole, as that of a real network does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.windows += list(image)
        bright = 20 * (image - 0.5) + image.mean(dim=(1, 2, 3, 4), keepdim=True)
        return [torch.cat([-bright, bright, bright - 5], dim=1)]


def fused_in_loops(image, crop):
    """The mean of all windows that overlap by half, weighted by a Gaussian."""
    total, weight = np.zeros((3, *image.shape)), np.zeros(image.shape)
    of_axis = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in crop]
    gaussian = np.maximum(np.einsum("i,j,k->ijk", *of_axis), 1e-3)
    starts = []
    for length, size in zip(image.shape, crop, strict=True):
        of = list(range(0, length - size, size // 2))
        starts.append([*of, length - size])
    for i in starts[0]:
        for j in starts[1]:
            for k in starts[2]:
                at = (slice(i, i + crop[0]), slice(j, j + crop[1]), slice(k, k + crop[2]))
                logits = Counted()(image[at][None, None])[0][0]
                total[:, *at] += gaussian * logits.softmax(dim=0).numpy()
                weight[at] += gaussian
    return total / weight


def test_windows_that_overlap_are_fused_as_in_loops():
    spec, image = spec_for(), torch.rand(40, 23, 20, generator=torch.manual_seed(0))
    fused = probability((Counted(),), spec, image).numpy()
    assert np.allclose(fused, fused_in_loops(image, spec.crop), atol=0.02)  # bfloat16 on some CPUs


def test_background_is_read_once_and_the_surroundings_of_an_organ_by_all_windows():
    spec = spec_for()
    i, j, k = spec.crop
    image = torch.zeros(6 * i, 3 * j, 2 * k)
    network = Counted()
    probability((network,), spec, image)
    tiles = 6 * 3 * 2
    assert len(network.windows) == tiles
    image[i // 4, j // 4, k // 4] = 1.0  # in the first window of the scan alone
    network = Counted()
    probability((network,), spec, image)
    assert len(network.windows) == tiles
    image[3 * i, j, k] = 1.0
    network = Counted()
    fused = probability((network,), spec, image).numpy()
    assert tiles < len(network.windows) < tiles + 2**3
    at = (slice(2 * i + 2, 4 * i - 2), slice(2, 2 * j - 2), slice(2, 2 * k - 2))
    organ = fused_in_loops(image, spec.crop)[1:]
    assert np.allclose(fused[1:][:, 3 * i, j, k], organ[:, 3 * i, j, k], atol=0.02)
    assert np.array_equal(fused.argmax(axis=0)[at], fused_in_loops(image, spec.crop).argmax(0)[at])


def test_every_voxel_of_any_scan_lies_in_a_tile():
    network, spec = Counted(), spec_for()
    for shape in ((1, 1, 1), (17, 31, 9), (50, 16, 33), (16, 16, 8)):
        mean = probability((network,), spec, torch.zeros(shape))
        assert mean.shape == (3, *shape)
        assert torch.isfinite(mean).all()


def test_without_overlap_the_tiles_alone_are_read():
    spec, network = spec_for(), Counted()
    image = torch.rand(40, 23, 20, generator=torch.manual_seed(0))
    probability((network,), spec, image, overlapping=False)
    assert len(network.windows) == 3 * 2 * 3
