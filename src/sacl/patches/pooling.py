"""Attention as pooling: an organ's feature is the mean of a feature map under its mask.

Over the whole mask, or over the part of it in every square of a grid.
"""

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
    masks = _at_size_of(features, masks)
    weight = masks / masks.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    return torch.einsum("ncij,nrij->nrc", features.float(), weight)


def pool_parts(
    features: Float[Tensor, "n channel a b"],
    masks: Float[Tensor, "n region i j"],
    side: int,
    offset: tuple[int, int] = (0, 0),
) -> tuple[Float[Tensor, "n square region channel"], Float[Tensor, "n square region"]]:
    """Return the mean feature under each mask in every square of a grid, and the mask's area there.

    The feature is 0 where a square holds nothing of a mask. Masks finer than the features are
    averaged down to their size first.

    Args:
        features: Feature maps.
        masks: Masks of every image's regions.
        side: Side of a square, in pixels of the features.
        offset: How many pixels of the features the first row and column of squares lie outside of
            the map, each less than `side`.

    Returns:
        Features, and areas in pixels of the masks.
    """
    pixels = masks.shape[2:].numel() / features.shape[2:].numel()
    part = _squares(_at_size_of(features, masks), side, offset)
    area = part.sum(dim=3)
    weight = part / area[..., None].clamp_min(1e-6)
    return weight @ _squares(features, side, offset).transpose(2, 3), area * pixels


def _squares(
    maps: Float[Tensor, "n channel a b"], side: int, offset: tuple[int, int]
) -> Float[Tensor, "n square channel pixel"]:
    """Return the pixels of every square of a grid, 0 outside of the map."""
    height, width = maps.shape[2:]
    top, left = offset
    padding = (left, -(width + left) % side, top, -(height + top) % side)
    split = functional.pad(maps.float(), padding).unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return split.permute(0, 2, 4, 1, 3, 5).flatten(4, 5).flatten(1, 2)


def _at_size_of(
    features: Float[Tensor, "n channel a b"], masks: Float[Tensor, "n region i j"]
) -> Float[Tensor, "n region a b"]:
    """Return masks that are averaged down to the size of the features where they are finer."""
    if masks.shape[2:] == features.shape[2:]:
        return masks
    return functional.adaptive_avg_pool2d(masks, features.shape[2:])


def shown(masks: Float[Tensor, "n region i j"], least: int) -> Bool[Tensor, "n region"]:
    """Return which masks have at least so many pixels."""
    return masks.sum(dim=(2, 3)) >= least
