from dataclasses import replace

import pytest
import torch
from scipy import ndimage

from sacl.patches.views import (
    ViewRanges,
    change_intensity,
    random_affine,
    resample,
    two_views,
)

SIZE, STORED = 16, 24
SCALE = STORED / SIZE
CPU = torch.device("cpu")
STILL = ViewRanges()
STRONG = ViewRanges(
    rotation_deg=30,
    scale=(0.7, 1.25),
    shift=0.1,
    brightness=0.1,
    contrast=0.25,
    gamma=0.25,
    noise=0.05,
    blur=1.0,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def pixels(generator):
    return torch.rand(6, 2, STORED, STORED, generator=generator)


def identity(count):
    return torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(count, 1, 1)


def center(pixels):
    edge = (STORED - SIZE) // 2
    return pixels[..., edge : edge + SIZE, edge : edge + SIZE]


def test_the_identity_is_the_crop_of_the_center(pixels):
    views = resample(pixels, identity(6), SIZE, SCALE)

    torch.testing.assert_close(views, center(pixels), atol=2e-6, rtol=0)


def test_ranges_of_zero_change_nothing(pixels, generator):
    views = two_views(pixels, STILL, SIZE, SCALE, generator)

    torch.testing.assert_close(
        views, center(pixels)[:, None].expand(-1, 2, -1, -1, -1), atol=2e-6, rtol=0
    )


def test_a_quarter_turn_is_that_of_rot90(pixels):
    turned = torch.tensor([[0.0, -1, 0], [1, 0, 0]]).repeat(6, 1, 1)

    views = resample(pixels, turned, SIZE, SCALE)

    expected = torch.rot90(center(pixels), 1, (2, 3))
    torch.testing.assert_close(views, expected, atol=1e-5, rtol=0)


def test_draws_maps_within_their_ranges(generator):
    theta = random_affine(500, STRONG, generator, CPU)

    magnification = torch.linalg.det(theta[:, :, :2]) ** -0.5
    turn = torch.rad2deg(torch.atan2(theta[:, 1, 0], theta[:, 0, 0]))
    assert 0.7 <= magnification.min() < 0.75
    assert 1.2 < magnification.max() <= 1.2501
    assert 28 < turn.abs().max() <= 30.001
    # A shift of a tenth of the side is 0.2 half sides.
    assert (theta[:, :, 2].abs().amax(dim=0) > 0.19).all()
    assert theta[:, :, 2].abs().max() <= 0.2001


def test_never_shears_stretches_or_mirrors(generator):
    theta = random_affine(50, STRONG, generator, CPU)[:, :, :2]

    square = theta.transpose(1, 2) @ theta
    area = torch.linalg.det(theta)
    assert (area > 0).all()
    torch.testing.assert_close(square, area[:, None, None] * torch.eye(2).expand(50, 2, 2))


def test_a_magnification_shows_less_of_the_patch(pixels):
    blob = torch.zeros(1, 1, STORED, STORED)
    blob[:, :, 8:16, 8:16] = 1.0

    views = resample(blob, identity(1) / 1.5, SIZE, SCALE)

    assert views.sum() == pytest.approx(64 * 1.5**2, rel=0.01)


def test_moves_image_and_attention_together(generator):
    one = torch.rand(8, 1, STORED, STORED, generator=generator)
    only_affine = replace(STRONG, brightness=0, contrast=0, gamma=0, noise=0, blur=0)

    views = two_views(one.repeat(1, 2, 1, 1), only_affine, SIZE, SCALE, generator)

    torch.testing.assert_close(views[:, :, 0], views[:, :, 1], atol=1e-6, rtol=0)


def test_changes_the_intensity_of_the_image_only(pixels, generator):
    only_intensity = replace(STRONG, rotation_deg=0, scale=(1.0, 1.0), shift=0)

    views = two_views(pixels, only_intensity, SIZE, SCALE, generator)

    for view in (0, 1):
        torch.testing.assert_close(views[:, view, 1], center(pixels)[:, 1], atol=2e-6, rtol=0)
        assert (views[:, view, 0] - center(pixels)[:, 0]).abs().max() > 0.05


def test_the_two_views_of_a_patch_differ_and_so_do_the_patches(generator):
    same = torch.rand(1, 1, STORED, STORED, generator=generator).repeat(4, 1, 1, 1)

    views = two_views(same, STRONG, SIZE, SCALE, generator).flatten(0, 1)

    distance = torch.cdist(views.flatten(1), views.flatten(1))
    assert distance[~torch.eye(8, dtype=torch.bool)].min() > 0.1


def test_is_the_same_for_the_same_seed(pixels):
    first, second = (
        two_views(pixels, STRONG, SIZE, SCALE, torch.Generator().manual_seed(7)) for _ in range(2)
    )

    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_leaves_the_stored_pixels_alone(pixels, generator):
    before = pixels.clone()

    two_views(pixels, STRONG, SIZE, SCALE, generator)

    torch.testing.assert_close(pixels, before, atol=0, rtol=0)


def test_works_without_attention(generator):
    image = torch.rand(3, 1, STORED, STORED, generator=generator)

    assert two_views(image, STRONG, SIZE, SCALE, generator).shape == (3, 2, 1, SIZE, SIZE)


def test_is_zero_beyond_what_is_stored(generator):
    views = resample(torch.ones(1, 1, STORED, STORED), identity(1) * 2, SIZE, SCALE)

    assert views[0, 0, 0].max() == 0
    assert views[0, 0, SIZE // 2, SIZE // 2] == 1


def test_never_mixes_labels(generator):
    labels = torch.randint(0, 4, (5, 1, STORED, STORED), generator=generator).float()
    image = torch.rand(5, 1, STORED, STORED, generator=generator)
    theta = random_affine(5, STRONG, generator, CPU)

    views = resample(torch.cat([image, labels], 1), theta, SIZE, SCALE, nearest_channels=(1,))

    assert set(views[:, 1].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    torch.testing.assert_close(views[:, :1], resample(image, theta, SIZE, SCALE))


def test_keeps_intensities_between_zero_and_one(generator):
    image = torch.rand(20, 1, SIZE, SIZE, generator=generator)

    changed = change_intensity(image, STRONG, generator)

    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.isfinite(changed).all()


def test_blurs_like_a_gaussian_filter(generator):
    image = torch.rand(4, 1, 33, 33, generator=generator)

    blurred = change_intensity(image, ViewRanges(blur=2.0), torch.Generator().manual_seed(3))

    sigma = 2.0 * torch.rand(4, generator=torch.Generator().manual_seed(3))
    for n in range(4):
        oracle = ndimage.gaussian_filter(image[n, 0].double().numpy(), float(sigma[n]), truncate=8)
        inner = slice(12, -12)
        assert blurred[n, 0, inner, inner].numpy() == pytest.approx(oracle[inner, inner], abs=1e-4)
