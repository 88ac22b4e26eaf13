import math

import pytest
import torch
from torch.nn import functional

from sacl.errors import DataError
from sacl.losses.segmentation import dense_loss
from sacl.networks.coarse import CoarseSpec, plan_levels
from sacl.training.coarse import (
    CoarseCase,
    draw_crops,
    random_turns,
)
from sacl.training.finetune import Labeled, loss_of_levels
from sacl.training.locators import train_coarse
from sacl.training.pace import Plan

CPU = torch.device("cpu")


def case_of(shape=(20, 18, 10), annotated=(True, True), spacing_mm=(2.0, 2.0, 2.0)) -> CoarseCase:
    """Return a scan whose organ 1 is dim and organ 2 bright, on a background of 0.1."""
    labels = torch.zeros(shape, dtype=torch.int16)
    labels[3:9, 4:12, 2:8] = 1
    labels[12:17, 6:14, 3:9] = 2
    image = torch.tensor([0.1, 0.5, 0.9])[labels.long()]
    return CoarseCase(image, labels, torch.tensor(annotated), spacing_mm)


def spec_of(crop=(16, 16, 8)) -> CoarseSpec:
    crop, kernels, strides = plan_levels(crop, (2.0, 2.0, 2.0))
    return CoarseSpec(
        scheme="two",
        organs=("dim", "bright"),
        spacing_mm=(2.0, 2.0, 2.0),
        in_plane_size=None,
        crop=crop,
        channels=4,
        kernels=kernels,
        strides=strides,
    )


def test_image_and_labels_are_turned_together():
    crops = draw_crops([case_of()], (16, 16, 8), 8, torch.Generator().manual_seed(0), CPU)
    assert crops.image.shape == (8, 1, 16, 16, 8)
    inside = functional.avg_pool3d(crops.image, 3, 1, 1)[:, 0]
    for label, intensity in ((1, 0.5), (2, 0.9)):
        mask = (crops.labels == label).float()
        core = functional.avg_pool3d(mask[:, None], 3, 1, 1)[:, 0] > 0.999
        assert core.any()
        assert (inside[core] - intensity).abs().max() < 0.25


def test_most_crops_hold_an_organ():
    case = case_of((60, 60, 40))
    crops = draw_crops([case], (12, 12, 8), 40, torch.Generator().manual_seed(1), CPU)
    assert crops.labels.flatten(1).any(dim=1).float().mean() > 0.5


def test_a_crop_larger_than_the_scan_is_padded_with_zeros():
    case = case_of((20, 18, 10))
    crops = draw_crops([case], (64, 64, 32), 4, torch.Generator().manual_seed(1), CPU)
    assert crops.image.shape == (4, 1, 64, 64, 32)
    assert (crops.image == 0).float().mean() > 0.7
    assert (crops.labels == 2).flatten(1).any(dim=1).all()


def test_the_same_generator_draws_the_same_crops():
    cases = [case_of(), case_of((24, 24, 12))]
    first, second = (
        draw_crops(cases, (16, 16, 8), 3, torch.Generator().manual_seed(7), CPU) for _ in range(2)
    )
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.labels, second.labels)


def test_thick_slices_are_turned_in_their_plane_only():
    spacing = torch.tensor([[1.0, 1.0, 8.0], [1.0, 1.0, 1.0]])
    theta = random_turns(spacing, (8, 8, 8), (8, 8, 8), torch.Generator().manual_seed(0))
    # Axes of affine_grid run from the last to the first: row and column 0 are k.
    assert theta[0, 0, 1:3].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert theta[0, 1:, 0].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert theta[1, 0, 1:3].abs().min() > 1e-4


def test_a_rotation_is_one_in_mm_and_never_a_reflection():
    spacing = torch.tensor([[1.0, 3.0, 2.0]]).repeat(50, 1)
    theta = random_turns(spacing, (8, 10, 6), (8, 10, 6), torch.Generator().manual_seed(0))
    linear = theta[:, :, :3].flip(1, 2)  # back to i, j, k, in half sides of the crop
    half_mm = torch.tensor([8.0, 10.0, 6.0]) * spacing[0]
    in_mm = linear * half_mm[None, :, None] / half_mm[None, None, :]
    assert (torch.linalg.det(in_mm) > 0).all()
    columns = in_mm / in_mm.norm(dim=1, keepdim=True)
    product = columns.transpose(1, 2) @ columns
    assert torch.allclose(product, torch.eye(3).expand(50, 3, 3), atol=1e-5)
    assert (in_mm[:, 0, 0].abs() > math.cos(math.radians(30)) / 1.6).all()


def test_learns_to_tell_two_blobs_apart_and_gives_a_loss_per_step():
    plan = Plan(steps=30, batch=2, learning_rate=3e-2, seed=0)
    network, losses = train_coarse(spec_of(), [case_of(), case_of()], plan, CPU, what="test")
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert not network.training


def test_training_is_the_same_twice():
    plan = Plan(steps=2, batch=1, learning_rate=1e-3, seed=3)
    runs = [train_coarse(spec_of(), [case_of()], plan, CPU, what="test") for _ in range(2)]
    assert runs[0][1] == runs[1][1]


def test_an_organ_nobody_annotated_is_not_trained_as_background():
    """Where organ 2 is not annotated, calling its voxels organ 2 must cost nothing."""
    plan = Plan(steps=60, batch=2, learning_rate=3e-2, seed=0)
    full, partial = case_of(), case_of(annotated=(True, False))
    partial.labels[partial.labels == 2] = 0
    network, _ = train_coarse(spec_of(), [full, partial], plan, CPU, what="test")
    image = full.image[2:18, 1:17, 1:9]
    with torch.no_grad():
        found = network(image[None, None])[0].argmax(dim=1)[0]
    bright = full.labels[2:18, 1:17, 1:9] == 2
    assert (found[bright] == 2).float().mean() > 0.7


def test_scans_without_any_organ_cannot_train_a_network():
    case = case_of()
    case.labels.zero_()
    with pytest.raises(DataError, match="hold no organ"):
        train_coarse(
            spec_of(),
            [case],
            Plan(steps=1, batch=1, learning_rate=1e-3, seed=0),
            CPU,
            what="test",
        )


def test_every_level_counts_half_of_the_one_above():
    labels = torch.randint(0, 3, (2, 8, 8, 4), generator=torch.Generator().manual_seed(0))
    annotated = torch.ones(2, 2, dtype=torch.bool)
    crops = Labeled(torch.rand(2, 1, 8, 8, 4), labels, annotated)
    fine, coarse = torch.randn(2, 3, 8, 8, 4), torch.randn(2, 3, 4, 4, 4)
    weights = torch.tensor([1.0, 2.0, 4.0])
    middle = labels[:, 1::2, 1::2]
    losses = [
        dense_loss(logit.flatten(3), label.flatten(2), annotated, weights).item()
        for logit, label in ((fine, labels), (coarse, middle))
    ]
    actual = loss_of_levels([fine, coarse], crops, weights)
    assert actual.item() == pytest.approx((losses[0] + losses[1] / 2) / 1.5, rel=1e-5)
