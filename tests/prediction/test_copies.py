"""Test-time augmentation: the mean over turned and scaled copies lies where the pixels lie."""

import pytest
import torch

from sacl.prediction.assemble import _inverse, _maps, mean_over_copies, wider


def blob(side=84, center=(40.0, 46.0), radius=14.0):
    axis = torch.arange(side)
    i, j = torch.meshgrid(axis, axis, indexing="ij")
    return ((i - center[0]) ** 2 + (j - center[1]) ** 2 < radius**2).float()[None, None]


def by_intensity(pixels):
    """Return logits of two classes: bright pixels are an organ."""
    return torch.cat([0.5 - pixels[:, :1], pixels[:, :1] - 0.5], dim=1) * 20


def test_the_organ_stays_in_its_place_whatever_the_copies():
    pixels = blob()
    alone = by_intensity(pixels[:, :, 10:74, 10:74]).argmax(dim=1)
    mean = mean_over_copies(by_intensity, pixels, 64, 6).argmax(dim=1)
    assert mean.shape == (1, 64, 64)
    assert (mean != alone).float().mean() < 0.01


def test_every_map_has_an_inverse_and_no_two_are_alike():
    maps = _maps(5)
    for theta in maps:
        assert torch.allclose(theta[:, :2] @ _inverse(theta)[:, :2], torch.eye(2), atol=1e-6)
    different = {tuple(theta.flatten().tolist()) for theta in maps}
    assert len(different) == 5


def test_one_logit_is_an_organ_against_all_else():
    def constant(pixels):
        return torch.full((len(pixels), 1, 64, 64), 1.5)

    mean = mean_over_copies(constant, torch.rand(2, 2, 84, 84), 64, 4)
    assert mean.shape == (2, 1, 64, 64)
    assert mean[:, :, 8:56, 8:56].flatten().tolist() == pytest.approx([1.5] * 2 * 48**2, abs=1e-4)


def test_a_pixel_that_no_copy_shows_has_the_plain_prediction():
    def constant(pixels):
        return torch.full((len(pixels), 1, 64, 64), -0.7)

    mean = mean_over_copies(constant, torch.rand(1, 1, 84, 84), 64, 4)
    # In the corners fewer views count, and none pulls towards 0.
    assert mean.flatten().tolist() == pytest.approx([-0.7] * 64**2, abs=1e-3)


def test_without_copies_nothing_is_cut_wider():
    assert wider(64, 0) == 1.0
    assert wider(64, 4) == pytest.approx(84 / 64)
