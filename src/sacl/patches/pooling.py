"""Attention as pooling: an organ's feature is the mean of a feature map under its mask."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def organ_masks(
    labels: Int[Tensor, "n i j"], organs: int, surround: int
) -> Float[Tensor, "n region i j"]:
    """Return the masks of all organs, and before them that of their surroundings.

    The surroundings are the background within `surround` pixels of an organ: what a segmenter has
    to tell the organs from.
    """
    one_hot = functional.one_hot(labels.long(), organs + 1).movedim(-1, 1).float()
    inside = (labels > 0).float()[:, None]
    # A square's maximum is that of its rows' maxima: one axis after the other costs far less.
    side = 2 * surround + 1
    near = functional.max_pool2d(inside, (side, 1), stride=1, padding=(surround, 0))
    near = functional.max_pool2d(near, (1, side), stride=1, padding=(0, surround))
    return torch.cat([near - inside, one_hot[:, 1:]], dim=1)


def pool_under(
    features: Float[Tensor, "n channel a b"], masks: Float[Tensor, "n region i j"]
) -> Float[Tensor, "n region channel"]:
    """Return the mean feature under each mask; 0 where a mask is empty.

    Masks finer than the features are averaged down to their size first.
    """
    if masks.shape[2:] != features.shape[2:]:
        masks = functional.adaptive_avg_pool2d(masks, features.shape[2:])
    weight = masks / masks.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    return torch.einsum("ncij,nrij->nrc", features.float(), weight)


def shown(masks: Float[Tensor, "n region i j"], least: int) -> Bool[Tensor, "n region"]:
    """Return which masks have at least so many pixels."""
    return masks.sum(dim=(2, 3)) >= least
