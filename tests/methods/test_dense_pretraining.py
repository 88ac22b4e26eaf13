"""Pretraining on dense slices: the views, what is pooled, and every strategy's loss."""

import numpy as np
import pytest
import torch
from tests.training.test_segmentation_training import CPU, SIZE, STORED, make_store

from sacl.losses.contrastive import contrastive_loss, intensity_weights, patch_contrastive_loss
from sacl.methods import dense_pretraining
from sacl.methods.dense_pretraining import DensePretraining, loss_of, rules_of
from sacl.networks.dense_pretrainer import DenseFeatures, DensePretrainer
from sacl.networks.encoder import EncoderSpec
from sacl.patches.views import ViewRanges
from sacl.training.loop import Plan, RatedParameters, train

RANGES = ViewRanges(rotation_deg=20, scale=(0.9, 1.1), contrast=0.2)


def task(ranges=RANGES, slices=6):
    store = make_store()
    return DensePretraining(
        store, rules_of(slices, ranges, 0, CPU), np.arange(12) % 2, temperature=0.1
    )


def network(decoder="unet"):
    torch.manual_seed(0)
    return DensePretrainer(EncoderSpec(width=8, in_channels=1), decoder, SIZE, (16, 8), 3)


def test_two_views_of_a_slice_have_the_coarse_labels_of_its_pixels():
    views, _ = task(ViewRanges()).views(2)
    assert views.image.shape == (12, 1, SIZE, SIZE)
    assert torch.equal(views.slice[:6], views.slice[6:])
    edge = (STORED - SIZE) // 2
    inner = slice(edge, edge + SIZE)
    expected = make_store().dense_coarse[views.slice.numpy()][:, inner, inner]
    assert np.array_equal(views.labels.numpy(), expected)


def test_slices_without_an_organ_are_not_drawn():
    store = make_store()
    store.dense_index["holds_organ"] = [n % 3 == 0 for n in range(12)]
    pretraining = DensePretraining(
        store, rules_of(4, ViewRanges(), 0, CPU), np.zeros(12, int), temperature=0.1
    )
    views, _ = pretraining.views(0)
    assert set(views.slice.tolist()) == {0, 3, 6, 9}


PARTS = [("semantic", True), ("organ", True)]
LABELED = [(name, False) for name in ("semantic", "organ", "pixel", "self-training", "mim")]
WHOLE = [*LABELED, ("simclr-slices", False)]


@pytest.mark.parametrize(("strategy", "parts"), [*WHOLE, *PARTS])
def test_a_step_is_the_same_however_the_run_got_there(strategy, parts):
    pretrained = network()
    loss = loss_of(task(), strategy, parts)
    first = loss(pretrained.eval(), 5)
    loss(pretrained, 6)
    assert torch.equal(loss_of(task(), strategy, parts)(pretrained, 5), first)
    assert not torch.equal(loss(pretrained, 6), first)


@pytest.mark.parametrize(("strategy", "parts"), [*WHOLE, *PARTS])
def test_training_learns(strategy, parts):
    pretrained = network()
    losses = train(
        pretrained,
        loss_of(task(), strategy, parts),
        [RatedParameters(list(pretrained.parameters()), 3e-3)],
        Plan(steps=25),
        CPU,
        what="test",
    )
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


@pytest.mark.parametrize(("strategy", "parts"), [*LABELED, *PARTS])
def test_the_decoder_learns_too(strategy, parts):
    pretrained = network()
    loss_of(task(), strategy, parts)(pretrained, 0).backward()
    gradients = [p.grad for p in pretrained.decoder.parameters()]
    assert any(g is not None and g.abs().max() > 0 for g in gradients)


def test_contrast_of_slices_is_the_loss_of_two_views_and_leaves_the_decoder_alone():
    net, pretraining = network().eval(), task()
    loss = loss_of(pretraining, "simclr-slices")(net, 3)

    views, _ = pretraining.views(3)
    embedding = net.project_coarsest(net.encoder(views.image)[-1].flatten(2).mean(dim=2))
    itself = torch.eye(6, dtype=torch.bool)
    paired = embedding.view(2, 6, -1).movedim(0, 1)
    expected = patch_contrastive_loss(paired, itself, torch.ones_like(itself), 0.1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(w.grad is None for w in net.decoder.parameters())


def test_without_a_decoder_the_contrast_reaches_every_level_of_the_encoder_itself():
    net = network("linear")
    features = net(torch.randn(2, 1, SIZE, SIZE))
    assert features.finest.shape[1] == sum(net.encoder.channels)
    loss_of(task(), "semantic", parts=True)(net, 0).backward()
    assert not list(net.decoder.parameters())
    assert all(w.grad.abs().sum() > 0 for w in net.encoder.parameters())


def test_no_more_parts_are_compared_than_memory_has_room_for(monkeypatch):
    sizes = []

    def seen(embedding, *rest):
        sizes.append(len(embedding))
        return contrastive_loss(embedding, *rest)

    monkeypatch.setattr(dense_pretraining, "contrastive_loss", seen)
    loss_of(task(), "semantic", parts=True)(network(), 0)
    monkeypatch.setattr(dense_pretraining, "_MOST_PARTS", 7)
    loss_of(task(), "semantic", parts=True)(network(), 0)
    assert sizes[0] < sizes[1]
    assert sizes[2:] == [sizes[0], 7]


def test_pooled_queries_of_one_organ_and_phase_attract_each_other():
    """With features that spell out organ and phase the loss is as low as it gets."""
    pretraining = task(ViewRanges())

    class Spells(torch.nn.Module):
        def __init__(self, with_phase):
            super().__init__()
            self.with_phase = with_phase
            self.project_coarsest = self.project_finest = torch.nn.Sequential(
                torch.nn.Linear(6, 6, bias=False), Unit()
            )
            self.project_finest[0].weight.data = torch.eye(6)

        def forward(self, image):
            views, _ = pretraining.views(0)
            phase = torch.from_numpy(pretraining.scan_label)[views.slice] * int(self.with_phase)
            code = views.labels + 3 * phase[:, None, None] * (views.labels > 0)
            maps = torch.nn.functional.one_hot(code, 6).movedim(-1, 1).float()
            return DenseFeatures(maps, maps)

    semantic = pretraining.pooled("semantic")
    assert semantic(Spells(True), 0) < semantic(Spells(False), 0) - 0.5


class Unit(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.normalize(x, dim=1)


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
    found = contrastive_loss(z, positive, torch.ones_like(positive), 0.2, weight)
    assert found.item() == pytest.approx(float(expected) / anchors, rel=1e-9)
