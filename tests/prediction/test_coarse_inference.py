import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sacl.networks.coarse import CoarseNetwork, CoarseSpec, plan_levels
from sacl.patches.coarse_grid import (
    arg_max_on_scan,
    coarse_grid,
    image_to_coarse,
    labels_to_coarse,
    linear_weights,
)
from sacl.prediction.coarse import Ensemble, ensemble_of, read_networks, save_network
from sacl.prediction.windows import probability
from sacl.scores.organs_of_case import dice
from sacl.types import Grid, Volume

CPU = torch.device("cpu")


def grid_of(shape, spacing_mm) -> Grid:
    return Grid(shape, np.diag([*spacing_mm, 1.0]))


def spec_for(in_plane_size=None, crop=(16, 16, 8)) -> CoarseSpec:
    crop, kernels, strides = plan_levels(crop, (2.0, 2.0, 2.0))
    return CoarseSpec(
        scheme="bright",
        organs=("dim", "bright"),
        spacing_mm=(2.0, 2.0, 2.0),
        in_plane_size=in_plane_size,
        crop=crop,
        channels=4,
        kernels=kernels,
        strides=strides,
    )


class ByIntensity(nn.Module):
    """Background at 0, organ 1 at 0.5, organ 2 at 1."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        center = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1)
        return [-40 * (image - center).square()]


def cylinders(shape, spacing_mm) -> tuple[np.ndarray, np.ndarray]:
    """Return an image whose intensity says the label, and the labels; sizes are in mm."""
    x, y, _ = np.meshgrid(
        *[s * (np.arange(n) - (n - 1) / 2) for n, s in zip(shape, spacing_mm, strict=True)],
        indexing="ij",
    )
    labels = np.zeros(shape, dtype=np.uint8)
    labels[np.hypot(x + 8, y) < 6] = 1
    labels[np.hypot(x - 8, y) < 6] = 2
    return labels.astype(np.int16) * 500, labels


@pytest.mark.parametrize(("size", "count"), [(20, 10), (17, 10), (9, 31), (12, 12), (5, 1)])
def test_linear_weights_agree_with_interpolate(size, count):
    # Six columns: of a single one, interpolate(antialias=True) returns nonsense (torch 2.13).
    signal = torch.rand(1, 1, size, 6)
    expected = functional.interpolate(
        signal, (count, 6), mode="bilinear", antialias=size > count, align_corners=False
    )
    step = size / count
    weights = linear_weights(count, size, 0.5 * step - 0.5, step)
    assert torch.allclose(weights @ signal[0, 0], expected[0, 0], atol=1e-5)


def test_linear_weights_are_zero_outside_the_scan():
    weights = linear_weights(6, 3, start=-1.4, step=1.0)
    assert weights.sum(dim=1).tolist() == pytest.approx([0, 1, 1, 1, 0, 0])


def test_a_coarse_grid_has_the_asked_spacing_covers_the_scan_and_shares_its_center():
    grid = coarse_grid(grid_of((101, 64, 30), (0.7, 0.7, 3.0)), (2.0, 2.0, 6.0))
    assert grid.spacing_mm == (2.0, 2.0, 6.0)
    assert grid.shape == (36, 23, 15)
    for weights in grid.to_coarse:
        positions = weights @ torch.arange(weights.shape[1], dtype=torch.float32)
        assert positions.mean() == pytest.approx((weights.shape[1] - 1) / 2, rel=1e-5)
        assert (weights.sum(dim=0) > 0).all()


def test_an_in_plane_size_takes_the_centered_square_in_mm_and_leaves_k_alone():
    grid = coarse_grid(grid_of((40, 20, 9), (1.5, 2.0, 10.0)), (9.0, 9.0, 9.0), in_plane_size=30)
    assert grid.shape == (30, 30, 9)
    assert grid.spacing_mm == pytest.approx((2.0, 2.0, 10.0))
    voxels = np.full((40, 20, 9), 100, dtype=np.int16)
    image = image_to_coarse(voxels, (0.0, 100.0), grid, CPU)
    assert torch.equal(image[:, :5], torch.zeros(30, 5, 9))
    assert torch.equal(image[:, 25:], torch.zeros(30, 5, 9))
    assert torch.allclose(image[:, 5:25], torch.ones(30, 20, 9), atol=1e-5)


def test_the_window_becomes_zero_to_one():
    voxels = np.linspace(-1000, 1000, 6 * 6 * 6).reshape(6, 6, 6).astype(np.float32)
    grid = coarse_grid(grid_of((6, 6, 6), (1, 1, 1)), (1.0, 1.0, 1.0))
    image = image_to_coarse(voxels, (-100.0, 300.0), grid, CPU)
    assert np.allclose(image, np.clip((voxels + 100) / 400, 0, 1), atol=1e-5)


def test_a_coarse_label_is_that_of_the_largest_coverage():
    voxels = np.zeros((6, 2, 2), dtype=np.uint8)
    voxels[:2], voxels[2:4], voxels[2, 0, 0] = 1, 2, 1
    voxels[4, 0] = 2
    grid = coarse_grid(grid_of((6, 2, 2), (1, 1, 1)), (2.0, 2.0, 2.0))
    assert labels_to_coarse(voxels, 2, grid, CPU).flatten().tolist() == [1, 2, 0]


@pytest.mark.parametrize("in_plane_size", [None, 20])
def test_the_arg_max_in_slabs_is_that_of_the_whole_volume(monkeypatch, in_plane_size):
    monkeypatch.setattr("sacl.patches.coarse_grid._SLAB_VOXELS", 800)
    grid = coarse_grid(grid_of((30, 26, 14), (1.0, 1.3, 2.0)), (2.1, 2.1, 3.0), in_plane_size)
    probability = (3 * torch.randn(5, *grid.shape)).softmax(dim=0)
    whole = torch.einsum("xi,yj,zk,cijk->cxyz", *grid.to_scan, probability)
    labels = arg_max_on_scan(probability, grid)
    assert labels.shape == (30, 26, 14)
    assert (labels != whole.argmax(dim=0).numpy()).mean() < 1e-3  # ties of rounding


@pytest.mark.parametrize("in_plane_size", [None, 24])
@pytest.mark.parametrize(
    ("shape", "spacing_mm"), [((40, 40, 9), (1.0, 1.0, 2.0)), ((23, 47, 3), (1.9, 0.8, 8.0))]
)
def test_locates_on_the_scans_own_grid_whatever_its_size(shape, spacing_mm, in_plane_size):
    voxels, labels = cylinders(shape, spacing_mm)
    ensemble = Ensemble(spec_for(in_plane_size), (ByIntensity(), ByIntensity()), CPU)
    located = ensemble.locate(Volume(voxels, grid_of(shape, spacing_mm)), (0.0, 1000.0))
    assert located.scheme.names == ("dim", "bright")
    assert dice(labels == 2, located.voxels == 2) > 0.85


def test_an_organ_below_the_smallest_volume_is_absent(monkeypatch):
    voxels, _ = cylinders((40, 40, 9), (1.0, 1.0, 2.0))
    volume = Volume(voxels, grid_of((40, 40, 9), (1.0, 1.0, 2.0)))
    ensemble = Ensemble(spec_for(), (ByIntensity(),), CPU)
    assert (ensemble.locate(volume, (0.0, 1000.0)).voxels == 2).any()
    monkeypatch.setattr("sacl.prediction.coarse.MIN_VOLUME_ML", 9.0)
    assert not ensemble.locate(volume, (0.0, 1000.0)).voxels.any()


def test_an_ensemble_averages_probabilities_not_labels():
    class Sure(nn.Module):
        def __init__(self, probability: list[float]) -> None:
            super().__init__()
            self.logit = torch.tensor(probability).log().view(1, 3, 1, 1, 1)

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [self.logit.expand(len(image), -1, *image.shape[2:])]

    networks = (Sure([0.8, 0.1, 0.1]), Sure([0.2, 0.6, 0.2]))
    mean = probability(networks, spec_for(), torch.rand(16, 16, 8))
    assert mean[:, 3, 3, 3].tolist() == pytest.approx([0.5, 0.35, 0.15], abs=0.01)


def test_saved_networks_are_read_back_and_locate_the_same(tmp_path):
    torch.manual_seed(0)
    spec = spec_for()
    networks = [CoarseNetwork(spec).eval() for _ in range(2)]
    for name, network in zip(("fold-0", "all"), networks, strict=True):
        save_network(tmp_path, name, Ensemble(spec, (network,), CPU))
    loaded = ensemble_of(read_networks(tmp_path), CPU, "here")
    assert loaded.spec == spec
    image = torch.rand(20, 18, 9)
    expected = probability(networks, spec, image)
    assert torch.allclose(probability(loaded.networks, spec, image), expected, atol=1e-6)


def test_a_folder_of_given_maps_has_no_network_to_load(tmp_path):
    assert ensemble_of(read_networks(tmp_path), CPU, "here") is None
