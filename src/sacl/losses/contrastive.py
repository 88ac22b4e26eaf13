"""The semantic-aware contrastive loss, and which patches are alike.

    L = mean over anchors i that have a positive of
        -1/|P(i)| sum_{p in P(i)} log( exp(z_i.z_p / t) / sum_{a in A(i)} exp(z_i.z_a / t) )

This is L_out of Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, Eq. 2. P(i) are the
other views of i's semantic class. A(i) are all other views but those that may or may not be of i's
class, since their scan-wise label is unknown.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sacl import ranks

_TINY = 1e-12


def semantic_contrastive_loss(
    embedding: Float[Tensor, "batch view dim"],
    semantic_class: Int[Tensor, " batch"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the loss where every view's semantic class is known; embeddings are L2-normalized.

    Example:
        >>> embedding = torch.eye(4).view(2, 2, 4)
        >>> loss = semantic_contrastive_loss(embedding, torch.tensor([0, 1]), temperature=0.1)
        >>> round(loss.item(), 4)  # all at right angles: log of the three others
        1.0986
    """
    positive = semantic_class[:, None] == semantic_class[None, :]
    return patch_contrastive_loss(embedding, positive, torch.ones_like(positive), temperature)


def patch_contrastive_loss(
    embedding: Float[Tensor, "own view dim"],
    positive: Bool[Tensor, "batch batch"],
    candidate: Bool[Tensor, "batch batch"],
    temperature: float,
    weight: Float[Tensor, "batch batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss for relations between patches, which all their views inherit."""
    views = embedding.shape[1]

    def of_views(relation: Shaped[Tensor, "batch batch"]) -> Shaped[Tensor, "n n"]:
        return relation.repeat_interleave(views, 0).repeat_interleave(views, 1)

    return contrastive_loss(
        embedding.flatten(0, 1),
        of_views(positive),
        of_views(candidate),
        temperature,
        None if weight is None else of_views(weight),
    )


def contrastive_loss(
    embedding: Float[Tensor, "own dim"],
    positive: Bool[Tensor, "n n"],
    candidate: Bool[Tensor, "n n"],
    temperature: float,
    weight: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss for given relations between views; itself is never a view's candidate.

    It is computed in float32 (float64 stays), also under autocast. Anchors without a positive do
    not enter the mean; where no anchor has one, the loss is 0 and its gradient too.

    Args:
        embedding: L2-normalized embeddings, of this rank's views. Over several ranks the relations
            are of the views of all ranks, one rank after the other.
        positive: Pairs in P; those that are not candidates are ignored.
        candidate: Pairs in A; the others are in neither numerator nor denominator.
        temperature: Soft-max temperature t.
        weight: How much each positive counts in its anchor's mean, above 0; all alike where unset.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        if embedding.dtype != torch.float64:
            embedding = embedding.float()
        everyone, own = ranks.gathered(embedding)
        others = ~torch.eye(len(everyone), dtype=torch.bool, device=embedding.device)
        candidate = candidate[own] & others[own]
        positive = positive[own] & candidate
        positives = positive.sum(dim=1)
        anchor = positives > 0
        logit = embedding @ everyone.T / temperature
        # A row without a candidate would be the logarithm of 0: its gradient is NaN even where
        # its value is not used. Such a row has no positive either, so its denominator may be any.
        counted = candidate | ~anchor[:, None]
        total = logit.masked_fill(~counted, -torch.inf).logsumexp(dim=1)
        share = positive.to(logit.dtype)
        share = share if weight is None else share * weight[own]
        mean_logit = (logit * share).sum(dim=1) / share.sum(dim=1).clamp_min(_TINY)
        per_anchor = torch.where(anchor, total - mean_logit, 0.0)
        loss, anchors = ranks.total(torch.stack([per_anchor.sum(), anchor.sum()]))
        return loss / anchors.clamp_min(1)


def semantic_relations(
    organ: Int[Tensor, " batch"], scan_label: Int[Tensor, " batch"]
) -> tuple[Bool[Tensor, "batch batch"], Bool[Tensor, "batch batch"]]:
    """Return which pairs of patches are positive, and which are candidates at all.

    Positive are patches of the same organ and scan-wise label, and a patch with itself, since its
    views attract each other. Two patches of one organ of which a scan-wise label is unknown are
    neither positive nor negative; of different organs they are negative, whatever their labels.

    Args:
        organ: Organ of each patch.
        scan_label: Scan-wise label of each patch, -1 where it is unknown. All alike, organs alone
            make the classes.
    """
    itself = torch.eye(len(organ), dtype=torch.bool, device=organ.device)
    same_organ = organ[:, None] == organ[None, :]
    known = scan_label >= 0
    undecided = same_organ & ~(known[:, None] & known[None, :])
    same_label = scan_label[:, None] == scan_label[None, :]
    return (same_organ & same_label & ~undecided) | itself, ~undecided | itself


def own_views(
    count: int, device: torch.device
) -> tuple[Bool[Tensor, "batch batch"], Bool[Tensor, "batch batch"]]:
    """Return relations in which a patch's own views alone are positive (NT-Xent; Chen et al.,
    "SimCLR", ICML 2020), and all others negative.
    """  # noqa: D205
    itself = torch.eye(count, dtype=torch.bool, device=device)
    return itself, torch.ones_like(itself)
