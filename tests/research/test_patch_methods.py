"""Query patches without parts of the semantic method: attention hidden, weights by intensity."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.methods.test_patch_batches import RECIPE, arrays, patch_store

import research.methods  # noqa: F401 - enters the methods into the table
from research.methods.patches import Contrast, hide_attention, intensity_weights
from sacl.losses.contrastive import contrastive_loss
from sacl.methods import method_named
from sacl.methods.batches import training_patches

__all__ = ["arrays"]


def contrast_of(arrays, **changes):
    store = patch_store(arrays)
    patches = training_patches(store, ("phase",))
    options = {"balanced": True, "attention": True, **changes}
    return Contrast(store, RECIPE, patches, **options)


def test_hides_the_attention_of_a_share_of_the_views_and_changes_nothing_else(arrays):
    drawn = [contrast_of(arrays).views.draw(step) for step in range(40)]
    plain = torch.stack([views for views, _, _ in drawn])
    views = plain.clone()
    for each, (_, _, generator) in zip(views, drawn, strict=True):
        hide_attention(each, 0.3, generator)

    hidden = (views[..., 1, :, :] == 0).flatten(-2).all(dim=-1)  # [step, patch, view]
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.06)
    assert (hidden[..., 0] != hidden[..., 1]).any(), "the views of a patch are drawn apart"
    torch.testing.assert_close(views[..., 0, :, :], plain[..., 0, :, :], atol=0, rtol=0)
    torch.testing.assert_close(
        views[..., 1, :, :], plain[..., 1, :, :] * ~hidden[..., None, None], atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "channels"),
    [("supcon", 1), ("simclr-attention", 2), ("correlation", 2), ("semantic-hidden-half", 2)],
)
def test_every_method_has_a_step_with_a_gradient(arrays, name, channels):
    method = method_named(name)
    pretraining = method.build(patch_store(arrays), replace(RECIPE, batch=12))
    assert pretraining.network.encoder.spec.in_channels == channels
    assert method.reads_attention == (channels == 2)
    pretraining.loss(pretraining.network, 0).backward()
    stem = pretraining.network.encoder.stem[0].conv.weight
    assert torch.isfinite(stem.grad).all()
    assert stem.grad.abs().sum() > 0


def test_weights_fall_with_the_difference_of_the_intensities():
    organ = torch.tensor([0, 0, 0, 1])
    intensity = torch.tensor([0.5, 0.5, 0.7, 0.5])
    weight = intensity_weights(organ, intensity, torch.tensor([0.1, 0.2]))
    assert weight[0, 1] == 1
    assert weight[0, 2].item() == pytest.approx(np.exp(-2.0), rel=1e-5)


def test_the_weighted_loss_is_the_weighted_mean_over_the_positives():
    """The printed equation as loops, with a weight per positive."""
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    classes = [0, 0, 0, 1, 1, 2]
    weight = torch.rand(6, 6, generator=generator, dtype=torch.float64) + 0.1
    positive = torch.tensor([[a == b for b in classes] for a in classes])
    expected, anchors = 0.0, 0
    for i in range(6):
        mates = [p for p in range(6) if p != i and classes[p] == classes[i]]
        if not mates:
            continue
        total = sum(torch.exp(z[i] @ z[a] / 0.2) for a in range(6) if a != i)
        terms = [weight[i, p] * torch.log(torch.exp(z[i] @ z[p] / 0.2) / total) for p in mates]
        expected -= sum(terms) / sum(weight[i, p] for p in mates)
        anchors += 1
    loss = contrastive_loss(z, positive, torch.ones_like(positive), 0.2, weight)
    assert loss.item() == pytest.approx(float(expected) / anchors, rel=1e-9)
