"""Put what a network says of patches back into the scan, and clean the label map.

The organs compete for voxels in logits, where 0 is a probability of one half: interpolating them
places an edge to a fraction of a pixel, and comparing them is comparing the probabilities.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt
from scipy import ndimage
from torch import Tensor

from sacl.patches.region import without_islands
from sacl.types import Box

Region = tuple[slice, slice]
_NEIGHBORS = ndimage.generate_binary_structure(3, 1)


def to_voxels(
    logit: Float[Tensor, "class side side"], box: Box, shape: tuple[int, int]
) -> tuple[Region, Float[Tensor, "class i j"]]:
    """Resample a patch's logits to the voxels of its box, the inverse of `query.cut`.

    Linear, widened where the box has fewer voxels than the patch has pixels. Returns the part of
    the slice of `shape` that the box covers and its logits; both are empty where it covers none.
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

    The background is the first class; what lies outside the box is background.
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
    stays background. Of two equally probable organs the first one keeps the voxel. `best` holds the
    largest logit so far and `labels` whose it is; both are changed in place.
    """
    region, voxels = to_voxels(logit[None], box, (best.shape[0], best.shape[1]))
    value = voxels[0].cpu().numpy()
    labels[region][value > best[region]] = label
    np.maximum(best[region], value, out=best[region])


def clean_components(
    voxels: Integer[np.ndarray, "i j k"], labels: int, keep_share: float, min_voxels: float
) -> Integer[np.ndarray, "i j k"]:
    """Return the labels without small components, and without organs that are too small.

    Voxels of one label are connected through their 6 faces. A component with fewer voxels than
    `keep_share` (0 to 1) times the organ's largest one becomes background; of what is left, an
    organ with fewer than `min_voxels` voxels is removed entirely, so that it counts as absent.
    Values above `labels` are left alone. Every organ is worked on inside its own bounding box.
    """
    cleaned = voxels.copy()
    boxes = ndimage.find_objects(voxels, max_label=labels)
    for label, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = voxels[box] == label
        kept = without_islands(mask, keep_share, _NEIGHBORS) if keep_share > 0 else mask
        if np.count_nonzero(kept) < min_voxels:
            kept = np.zeros_like(mask)
        cleaned[box][mask & ~kept] = 0
    return cleaned
