import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch.nn import functional

from sacl.losses.contrastive import (
    contrastive_loss,
    own_views,
    patch_contrastive_loss,
    semantic_contrastive_loss,
    semantic_relations,
)

RELATIONS = {
    "semantic": semantic_relations,
    "organ": lambda organ, scan_label: semantic_relations(organ, 0 * scan_label),
    "own views": lambda organ, scan_label: own_views(len(organ), organ.device),
}


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def embeddings(rng, batch, dim=8, dtype=torch.float64):
    return functional.normalize(torch.randn(batch, 2, dim, generator=rng, dtype=dtype), dim=-1)


def loss_by_the_book(z, positive, candidate, temperature):
    """Return the printed equation, term by term."""
    per_anchor = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i and candidate[i][a]]
        positives = [p for p in others if positive[i][p]]
        if not positives:
            continue
        total = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in others)
        terms = [math.log(math.exp(float(z[i] @ z[p]) / temperature) / total) for p in positives]
        per_anchor.append(-sum(terms) / len(positives))
    return sum(per_anchor) / len(per_anchor) if per_anchor else 0.0


def over_views(relation):
    return relation.repeat_interleave(2, 0).repeat_interleave(2, 1)


@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 0, 1], [4, 4, 4], [7]])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_agrees_with_the_printed_equation(rng, classes, temperature):
    z, label = embeddings(rng, len(classes)), torch.tensor(classes)

    loss = semantic_contrastive_loss(z, label, temperature)

    positive = over_views(label[:, None] == label[None, :])
    book = loss_by_the_book(z.flatten(0, 1), positive, torch.ones_like(positive), temperature)
    assert loss.item() == pytest.approx(book, rel=1e-6, abs=1e-9)


@given(seed=st.integers(0, 10**6), batch=st.integers(1, 6), name=st.sampled_from(sorted(RELATIONS)))
@settings(max_examples=60, deadline=None)
def test_agrees_with_the_printed_equation_under_all_relations(seed, batch, name):
    rng = torch.Generator().manual_seed(seed)
    z = embeddings(rng, batch)
    organ = torch.randint(0, 3, (batch,), generator=rng)
    scan_label = torch.randint(-1, 2, (batch,), generator=rng)
    positive, candidate = RELATIONS[name](organ, scan_label)

    loss = patch_contrastive_loss(z, positive, candidate, 0.2)

    book = loss_by_the_book(z.flatten(0, 1), over_views(positive), over_views(candidate), 0.2)
    assert loss.item() == pytest.approx(book, rel=1e-6, abs=1e-9)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_agrees_with_the_printed_equation_for_any_relations(seed):
    rng = torch.Generator().manual_seed(seed)
    z = embeddings(rng, 4).flatten(0, 1).requires_grad_()
    positive = torch.rand(8, 8, generator=rng) < 0.3
    candidate = torch.rand(8, 8, generator=rng) < 0.6

    loss = contrastive_loss(z, positive, candidate, 0.3)

    book = loss_by_the_book(z.detach(), positive, candidate, 0.3)
    assert loss.item() == pytest.approx(book, rel=1e-6, abs=1e-9)
    loss.backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("temperature", [0.07, 0.3])
def test_agrees_with_an_independent_implementation_and_its_gradient(rng, temperature):
    z = embeddings(rng, 12)
    label = torch.randint(0, 4, (12,), generator=rng)
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()

    loss = semantic_contrastive_loss(functional.normalize(ours, dim=-1), label, temperature)
    oracle = SupConLoss(temperature=temperature)(theirs.flatten(0, 1), label.repeat_interleave(2))
    loss.backward()
    oracle.backward()

    assert loss.item() == pytest.approx(oracle.item(), rel=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8)


def test_is_nt_xent_where_only_own_views_are_positive(rng):
    z, patch = embeddings(rng, 6), torch.arange(6)
    positive, candidate = own_views(6, z.device)

    loss = patch_contrastive_loss(z, positive, candidate, 0.2)

    oracle = NTXentLoss(temperature=0.2)(z.flatten(0, 1), patch.repeat_interleave(2))
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-6)


def test_gradient_is_that_of_finite_differences(rng):
    z = embeddings(rng, 4, dim=3).requires_grad_()
    label = torch.tensor([0, 0, 1, 2])

    assert torch.autograd.gradcheck(lambda x: semantic_contrastive_loss(x, label, 0.5), (z,))


def test_does_not_depend_on_the_order_of_the_patches(rng):
    z, label = embeddings(rng, 7), torch.tensor([0, 1, 1, 2, 0, 0, 3])
    order = torch.randperm(7, generator=rng)

    loss = semantic_contrastive_loss(z, label, 0.1)

    assert semantic_contrastive_loss(z[order], label[order], 0.1).item() == pytest.approx(
        loss.item(), rel=1e-9
    )


def test_does_not_depend_on_the_names_of_the_classes(rng):
    z = embeddings(rng, 3)

    one, other = (
        semantic_contrastive_loss(z, torch.tensor(label), 0.1) for label in ([0, 0, 1], [9, 9, 4])
    )

    assert one.item() == other.item()


def test_ignores_anchors_without_a_positive(rng):
    z = embeddings(rng, 3).flatten(0, 1)
    positive = torch.zeros(6, 6, dtype=torch.bool)
    positive[0, 1] = True

    loss = contrastive_loss(z, positive, torch.ones_like(positive), 0.5)

    logit = z[0] @ z.T / 0.5
    assert loss.item() == pytest.approx((logit[1:].logsumexp(0) - logit[1]).item(), rel=1e-9)


def test_is_zero_with_a_gradient_where_nothing_has_a_positive(rng):
    z = embeddings(rng, 2, dtype=torch.float32).flatten(0, 1).requires_grad_()
    nothing = torch.zeros(4, 4, dtype=torch.bool)

    for candidate in (nothing, ~nothing):
        loss = contrastive_loss(z, nothing, candidate, 0.1)
        (gradient,) = torch.autograd.grad(loss, z)

        assert loss.item() == 0
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_is_never_its_own_candidate(rng):
    z = embeddings(rng, 1).flatten(0, 1)
    everything = torch.ones(2, 2, dtype=torch.bool)

    # With two views, the only candidate is the positive: nothing is left to tell apart.
    assert contrastive_loss(z, everything, everything, 0.1).item() == pytest.approx(0, abs=1e-12)


def test_falls_as_a_class_draws_together(rng):
    z, label = embeddings(rng, 8), torch.arange(8) % 2
    poles = torch.stack([torch.eye(8, dtype=torch.float64)[n % 2] for n in range(8)])[:, None]

    spread, closer = (
        semantic_contrastive_loss(functional.normalize(z + pull * poles, dim=-1), label, 0.1)
        for pull in (0.0, 1.0)
    )

    assert closer < spread


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32_whatever_precision_it_is_given(rng, dtype):
    z = embeddings(rng, 16, dtype=torch.float32).to(dtype)
    label = torch.arange(16) % 4

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = semantic_contrastive_loss(z, label, 0.05)

    assert loss.dtype == torch.float32
    exact = semantic_contrastive_loss(z.double(), label, 0.05)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_is_finite_at_a_temperature_near_zero(rng):
    z = embeddings(rng, 8, dtype=torch.float32).requires_grad_()

    loss = semantic_contrastive_loss(z, torch.arange(8) % 3, 1e-3)
    loss.backward()

    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


ORGAN = torch.tensor([0, 0, 0, 1])
PHASE = torch.tensor([0, 1, -1, -1])


def test_takes_organ_and_scan_label_for_the_semantic_class():
    positive, candidate = semantic_relations(ORGAN[:2], PHASE[:2])

    assert positive.tolist() == [[True, False], [False, True]]
    assert candidate.all()


def test_leaves_open_whether_patches_of_unknown_label_are_alike():
    positive, candidate = semantic_relations(torch.tensor([0, 0, 0]), torch.tensor([0, -1, -1]))

    assert torch.equal(positive, torch.eye(3, dtype=torch.bool))
    assert torch.equal(candidate, torch.eye(3, dtype=torch.bool))


def test_sets_different_organs_apart_whatever_their_labels():
    positive, candidate = semantic_relations(ORGAN, PHASE)

    assert not positive[:3, 3].any()
    assert candidate[:3, 3].all()


@pytest.mark.parametrize("name", RELATIONS)
def test_a_patch_is_always_its_own_positive_and_relations_are_mutual(name):
    positive, candidate = RELATIONS[name](ORGAN, PHASE)

    assert positive.diagonal().all()
    assert candidate.diagonal().all()
    assert torch.equal(positive, positive.T)
    assert torch.equal(candidate, candidate.T)
    assert not (positive & ~candidate).any()


def test_organs_alone_make_the_classes_where_all_labels_are_alike():
    positive, candidate = semantic_relations(ORGAN, torch.zeros_like(ORGAN))

    assert torch.equal(positive, ORGAN[:, None] == ORGAN[None, :])
    assert candidate.all()
