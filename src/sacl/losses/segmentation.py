"""Segmentation losses: soft Dice plus cross-entropy, for all organs at once or for one.

The soft Dice is that of Milletari et al., "V-Net" (3DV 2016, doi 10.1109/3DV.2016.79) without the
squares, over the whole batch: 1 - 2 sum(p r) / (sum(p) + sum(r)). Everything is computed in
float32, whatever precision the logits come in. Each rank gives the logits of its own samples, and
gets the loss of all.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sacl import ranks

_TINY = 1e-6
_RAREST = 1e-5


def merge_not_annotated(
    logit: Float[Tensor, "batch class i j"], annotated: Bool[Tensor, "batch organ"]
) -> Float[Tensor, "batch class i j"]:
    """Return log-probabilities in which organs without annotation are part of the background.

    Where an organ was not drawn, its voxels are labeled 0; so the class "background" means
    "background or any organ that is not annotated", and its probability is their sum (marginal
    loss, Shi et al., Medical Image Analysis 70, 2021, doi 10.1016/j.media.2021.101979). The
    organs themselves get the logarithm of 0.
    """
    log_probability = logit.float().log_softmax(dim=1)
    if annotated.device.type == "cpu" and annotated.all():  # a GPU would have to be waited for
        return log_probability
    missing = ~annotated[:, :, None, None]
    organs = log_probability[:, 1:]
    hidden = organs.masked_fill(~missing, -torch.inf)
    background = torch.cat([log_probability[:, :1], hidden], dim=1).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, organs.masked_fill(missing, -torch.inf)], dim=1)


def class_weights(counts: Float[Tensor, " class"], balance: float) -> Float[Tensor, " class"]:
    """Return the weight of each class in the cross-entropy: its share of all voxels ** -balance.

    Background is first. Balance 0 weighs every voxel alike (a short training learns the large
    organs only), 1 every class alike.
    """
    return (counts / counts.sum()).clamp(min=_RAREST).pow(-balance)


def dense_loss(
    logit: Float[Tensor, "batch class i j"],
    reference: Int[Tensor, "batch i j"],
    annotated: Bool[Tensor, "batch organ"],
    class_weight: Float[Tensor, " class"] | None = None,
    pixel_weight: Float[Tensor, "batch i j"] | None = None,
) -> Float[Tensor, ""]:
    """Return soft Dice plus cross-entropy over all organs.

    The Dice is of the whole batch, its mean over the organs that the batch's reference holds; an
    organ's slices without annotation do not enter it. A batch of background gives the
    cross-entropy alone, which is the mean weighted by `class_weight` (background first) if given.
    `pixel_weight` says how much each pixel counts in both, 1 where it is not given.
    """
    log_probability = merge_not_annotated(logit, annotated)
    # A pixel that shows an organ which its own case does not list as annotated has log(0) there.
    reference = reference.long()
    listed = torch.cat([torch.ones_like(annotated[:, :1]), annotated], dim=1)
    reference = torch.where(listed.gather(1, reference.flatten(1)).view_as(reference), reference, 0)
    weight = log_probability.new_ones(reference.shape)
    if pixel_weight is not None:
        weight = weight * pixel_weight
    counted = weight if class_weight is None else weight * class_weight[reference]
    per_pixel = -log_probability.gather(1, reference[:, None])[:, 0]
    overlap, probable, there = _organ_sums(log_probability, per_pixel, reference, weight)
    entropy = torch.stack([(per_pixel * counted).sum(), counted.sum()])
    sums = ranks.total(torch.cat([entropy, overlap, probable, there]))
    overlap, probable, there = sums[2:].chunk(3)
    present = there > 0
    dice = 2 * overlap / (probable + there + _TINY)
    dice_loss = ((1 - dice) * present).sum() / present.sum().clamp(min=1)
    return sums[0] / sums[1].clamp(min=_TINY) + dice_loss


def query_loss(
    logit: Float[Tensor, "batch 1 i j"], reference: Float[Tensor, "batch 1 i j"]
) -> Float[Tensor, ""]:
    """Return soft Dice plus cross-entropy of one organ per patch.

    `reference` is the organ's area coverage in [0, 1]; at least one half counts as inside. The
    Dice is of each patch, its mean over the patches that hold the organ; the others give the
    cross-entropy alone.
    """
    logit = logit.float()
    inside = (reference >= 0.5).float()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logit, inside, reduction="sum")
    overlap = (logit.sigmoid() * inside).sum(dim=(1, 2, 3))
    total = (logit.sigmoid() + inside).sum(dim=(1, 2, 3))
    present = inside.sum(dim=(1, 2, 3)) > 0
    dice_loss = ((1 - 2 * overlap / (total + _TINY)) * present).sum()
    counts = (logit.new_tensor(logit.numel()), present.sum())
    entropy, pixels, dice_loss, patches = ranks.total(
        torch.stack([entropy, counts[0], dice_loss, counts[1]])
    )
    return entropy / pixels + dice_loss / patches.clamp(min=1)


def _organ_sums(
    log_probability: Float[Tensor, "batch class i j"],
    per_pixel: Float[Tensor, "batch i j"],
    reference: Int[Tensor, "batch i j"],
    weight: Float[Tensor, "batch i j"],
) -> tuple[Float[Tensor, " organ"], Float[Tensor, " organ"], Float[Tensor, " organ"]]:
    """Return the weighted sums of p r, of p and of r over a batch.

    Where r is 1 the probability is that of the reference, whose cross-entropy is `per_pixel`.
    """
    probable = torch.einsum("bcij,bij->c", log_probability.exp(), weight)
    classes = torch.arange(len(probable), device=reference.device)
    belongs = (reference.flatten() == classes[:, None]).to(weight.dtype)
    in_reference = torch.stack([(-per_pixel).exp() * weight, weight], dim=-1).flatten(0, 2)
    overlap, there = (belongs @ in_reference).T
    return overlap[1:], probable[1:], there[1:]
