"""Segmentation losses against loops and against MONAI."""

import pytest
import torch
from monai.losses import DiceCELoss

from sacl.losses.segmentation import class_weights, dense_loss, merge_not_annotated, query_loss


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def dense_by_the_book(logit, reference, annotated):
    """Soft Dice plus cross-entropy, pixel by pixel."""
    n, classes, height, width = logit.shape
    overlap, total, area = [0.0] * classes, [0.0] * classes, [0] * classes
    entropy = 0.0
    for b in range(n):
        for i in range(height):
            for j in range(width):
                p = logit[b, :, i, j].double().softmax(0).tolist()
                for organ in range(1, classes):
                    if not annotated[b, organ - 1]:
                        p[0] += p[organ]
                        p[organ] = 0.0
                truth = int(reference[b, i, j])
                entropy -= torch.tensor(p[truth]).log().item()
                for organ in range(1, classes):
                    overlap[organ] += p[organ] * (truth == organ)
                    total[organ] += p[organ] + (truth == organ)
                    area[organ] += truth == organ
    held = [organ for organ in range(1, classes) if area[organ]]
    dice = [1 - 2 * overlap[organ] / total[organ] for organ in held]
    return entropy / (n * height * width) + (sum(dice) / len(dice) if dice else 0.0)


@pytest.mark.parametrize("missing", [[], [(0, 1)], [(0, 0), (1, 0)]])
def test_dense_loss_is_the_equation_in_loops(generator, missing):
    logit = torch.randn(2, 4, 5, 6, generator=generator)
    reference = torch.randint(0, 4, (2, 5, 6), generator=generator)
    annotated = torch.ones(2, 3, dtype=torch.bool)
    for case, organ in missing:
        annotated[case, organ] = False
        reference[case][reference[case] == organ + 1] = 0
    expected = dense_by_the_book(logit, reference, annotated)
    assert dense_loss(logit, reference, annotated).item() == pytest.approx(expected, rel=1e-5)


def test_dense_loss_is_that_of_monai_where_all_is_annotated(generator):
    logit = torch.randn(3, 4, 8, 8, generator=generator)
    reference = torch.randint(0, 4, (3, 8, 8), generator=generator)
    theirs = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=0
    )(logit, reference[:, None])
    ours = dense_loss(logit, reference, torch.ones(3, 3, dtype=torch.bool))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)


def test_query_loss_is_that_of_monai(generator):
    logit = torch.randn(4, 1, 8, 8, generator=generator)
    reference = torch.rand(4, 1, 8, 8, generator=generator)
    theirs = DiceCELoss(sigmoid=True, batch=False, smooth_nr=0, smooth_dr=1e-6)(
        logit, (reference >= 0.5).float()
    )
    assert query_loss(logit, reference).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_merging_keeps_the_sum_of_the_probabilities(generator):
    logit = torch.randn(2, 4, 3, 3, generator=generator)
    annotated = torch.tensor([[True, False, True], [False, False, False]])
    probability = merge_not_annotated(logit, annotated).exp()
    assert torch.allclose(probability.sum(dim=1), torch.ones(2, 3, 3))
    assert probability[0, 2].max() == 0
    assert torch.allclose(probability[1, 0], torch.ones(3, 3))


def test_what_the_network_says_of_a_not_annotated_organ_costs_nothing(generator):
    logit = torch.zeros(1, 3, 4, 4, requires_grad=True)
    annotated = torch.tensor([[True, False]])
    reference = torch.zeros(1, 4, 4, dtype=torch.long)
    reference[0, :2] = 1
    dense_loss(logit, reference, annotated).backward()
    gradient = logit.grad
    # Background and the not annotated organ are one class: pushed alike, in proportion.
    assert torch.allclose(gradient[:, 0], gradient[:, 2])
    assert torch.isfinite(gradient).all()


def test_a_label_of_a_not_annotated_organ_counts_as_background():
    logit = torch.zeros(1, 3, 2, 2)
    annotated = torch.tensor([[True, False]])
    labeled = torch.full((1, 2, 2), 2)
    empty = torch.zeros(1, 2, 2, dtype=torch.long)
    assert dense_loss(logit, labeled, annotated) == dense_loss(logit, empty, annotated)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_losses_are_finite_in_bfloat16_with_extreme_logits(generator, scale):
    logit = (scale * torch.randn(2, 3, 8, 8, generator=generator)).bfloat16().requires_grad_()
    reference = torch.zeros(2, 8, 8, dtype=torch.long)
    loss = dense_loss(logit, reference, torch.tensor([[True, False], [True, True]]))
    loss = loss + query_loss(logit[:, :1], torch.zeros(2, 1, 8, 8))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logit.grad).all()


def test_a_perfect_prediction_costs_next_to_nothing():
    reference = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    logit = 40.0 * torch.nn.functional.one_hot(reference, 3).movedim(-1, 1).float()
    assert dense_loss(logit, reference, torch.ones(2, 2, dtype=torch.bool)) < 1e-5


def test_a_class_weighs_by_the_inverse_root_of_its_share():
    weights = class_weights(torch.tensor([89.0, 10.0, 1.0]), balance=0.5)
    assert weights.tolist() == pytest.approx([0.89**-0.5, 0.1**-0.5, 0.01**-0.5])


def test_without_balance_every_class_weighs_alike():
    assert class_weights(torch.tensor([89.0, 10.0, 1.0]), balance=0.0).tolist() == [1, 1, 1]


def test_an_organ_that_no_scan_holds_keeps_a_finite_weight():
    assert class_weights(torch.tensor([5.0, 0.0]), balance=1.0).isfinite().all()


def test_a_pixel_of_no_weight_does_not_count():
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(2, 3, 6, 6, generator=generator)
    reference = torch.randint(0, 3, (2, 6, 6), generator=generator)
    annotated = torch.ones(2, 2, dtype=torch.bool)
    weight = torch.ones(2, 6, 6)
    weight[:, :, 4:] = 0
    other = reference.clone()
    other[:, :, 4:] = (other[:, :, 4:] + 1) % 3
    kept = dense_loss(logit[..., :4], reference[..., :4], annotated)
    for labels in (reference, other):
        assert torch.isclose(dense_loss(logit, labels, annotated, pixel_weight=weight), kept)
    ones = dense_loss(logit, reference, annotated, pixel_weight=torch.ones(2, 6, 6))
    assert torch.isclose(ones, dense_loss(logit, reference, annotated))


def test_half_the_weight_is_half_a_pixel():
    """By the printed equations, as loops over the pixels of one image."""
    logit = torch.tensor([[[[0.3, -1.0]], [[1.2, 0.4]]]])
    reference = torch.tensor([[[1, 0]]])
    weight = torch.tensor([[[0.5, 1.0]]])
    p = logit.softmax(dim=1)[0, :, 0]
    cross_entropy = -(0.5 * p[1, 0].log() + 1.0 * p[0, 1].log()) / 1.5
    dice = 2 * 0.5 * p[1, 0] / (0.5 * p[1, 0] + 1.0 * p[1, 1] + 0.5)
    annotated = torch.ones(1, 1, dtype=torch.bool)
    found = dense_loss(logit, reference, annotated, pixel_weight=weight)
    assert torch.isclose(found, cross_entropy + 1 - dice, atol=1e-5)
