"""Put what a network says of a patch back into the slice, and let the organs compete for voxels.

Everything is in logits, where 0 is a probability of one half: interpolating them places an edge to
a fraction of a pixel, and comparing them is comparing the probabilities.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt
from torch import Tensor

from sacl.types import Box

Region = tuple[slice, slice]


def to_voxels(
    logit: Float[Tensor, "class side side"], box: Box, shape: tuple[int, int]
) -> tuple[Region, Float[Tensor, "class i j"]]:
    """Resample a patch's logits to the voxels of its box, the inverse of `query.cut`.

    Linear, widened where the box has fewer voxels than the patch has pixels.

    Args:
        logit: Of the box without margin.
        box: Where the patch was cut; its k extent is not looked at.
        shape: Voxels of the slice along i and j.

    Returns:
        The part of the slice that the box covers and its logits; both are empty where the box lies
        outside the slice.
    """
    target = box.shape[:2]
    shrinks = min(target) < logit.shape[-1]
    voxels = torch.nn.functional.interpolate(
        logit[None].float(), target, mode="bilinear", align_corners=False, antialias=shrinks
    )[0]
    low = [max(0, start) for start in box.start[:2]]
    high = [max(a, min(n, stop)) for a, n, stop in zip(low, shape, box.stop[:2], strict=True)]
    region = (slice(low[0], high[0]), slice(low[1], high[1]))
    inner = [slice(a - s, b - s) for a, b, s in zip(low, high, box.start[:2], strict=True)]
    return region, voxels[:, inner[0], inner[1]]


def labels_of_slice(
    logit: Float[Tensor, "class side side"], box: Box, shape: tuple[int, int]
) -> UInt[np.ndarray, "i j"]:
    """Return the most probable class of every voxel of a slice, uint8 (uint16 beyond 255).

    Args:
        logit: Of all classes, background first.
        box: Where the slice was cut; what lies outside it is background.
        shape: Voxels of the slice along i and j.
    """
    # Interpolation takes weighted means, so a class that is nowhere above the background before it
    # is nowhere above it afterwards: most organs need no interpolation in most slices.
    wins = (logit > logit[:1]).flatten(1).any(dim=1)
    wins[0] = True
    region, voxels = to_voxels(logit[wins], box, shape)
    labels = np.zeros(shape, np.uint8 if len(logit) <= 256 else np.uint16)
    # NumPy's arg-max over the first axis is several times as fast as torch's on a CPU.
    winner = voxels.argmax(dim=0).cpu().numpy() if voxels.is_cuda else voxels.numpy().argmax(axis=0)
    labels[region] = np.flatnonzero(wins.cpu().numpy())[winner]
    return labels


def fuse(
    best: Float[np.ndarray, "i j"],
    labels: UInt[np.ndarray, "i j"],
    logit: Float[Tensor, "side side"],
    box: Box,
    label: int,
) -> None:
    """Give an organ the voxels of a slice where it is more probable than all organs so far.

    Start with `best` and `labels` 0: a voxel in which no organ's probability exceeds one half
    stays background. Of two equally probable organs the first one keeps the voxel.

    Args:
        best: Largest logit so far; changed in place.
        labels: Whose it is; changed in place.
        logit: Of the organ.
        box: Where its patch was cut.
        label: The organ's label value.
    """
    region, voxels = to_voxels(logit[None], box, (best.shape[0], best.shape[1]))
    value = voxels[0].cpu().numpy()
    labels[region][value > best[region]] = label
    np.maximum(best[region], value, out=best[region])
