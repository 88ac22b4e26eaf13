"""Assemble a label map from predictions of patches and of their copies, and remove its islands.

The organs compete for voxels in logits, where 0 is a probability of one half: interpolating them
places an edge to a fraction of a pixel, and comparing them is comparing the probabilities.

Test-time augmentation is the mean over turned and scaled copies of the pixels. Copy m of n is
turned by 20 degrees times cos(2 pi m / n) and magnified by 1.2 to the power of sin(2 pi m / n):
evenly around the plain one, which takes part too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt
from scipy import ndimage
from torch import Tensor

from sacl.files.arrays import label_boxes
from sacl.patches.query import round_to_even
from sacl.patches.region import without_islands
from sacl.patches.views import resample
from sacl.types import Box

Region = tuple[slice, slice]
_NEIGHBORS = ndimage.generate_binary_structure(3, 1)
MARGIN = 1.3
"""Copies reach this many sides, so the pixels are cut this much wider."""
_TURN_DEG = 20.0
_MAGNIFICATION = 1.2
_LEAST = 1e-6


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
    cleaned = voxels.copy(order="K")
    boxes = label_boxes(voxels, labels)
    for label, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = voxels[box] == label
        kept = without_islands(mask, keep_share, _NEIGHBORS) if keep_share > 0 else mask
        if np.count_nonzero(kept) < min_voxels:
            kept = np.zeros_like(mask)
        cleaned[box][mask & ~kept] = 0
    return cleaned


def wider(size: int, copies: int) -> float:
    """Return how many times wider than `size` pixels what is predicted has to be cut."""
    return round_to_even(size * MARGIN) / size if copies else 1.0


def mean_over_copies(
    network: Callable[[Tensor], Tensor],
    pixels: Float[Tensor, "n channel stored stored"],
    size: int,
    copies: int,
) -> Float[Tensor, "n class size size"]:
    """Return logits of the mean probability, over the pixels as they are and over their copies.

    One logit is that of an organ against all else, several those of exclusive classes. A copy does
    not count where it does not show the pixel. The network reads pixels of side `size`; `pixels`
    are cut `wider(size, copies)` times as wide.
    """
    scale, count = pixels.shape[-1] / size, len(pixels)
    total, weight = pixels.new_zeros(()), pixels.new_zeros(())
    for theta in (torch.eye(2, 3), *_maps(copies)):
        forth, back = (m.to(pixels).expand(count, 2, 3) for m in (theta, _inverse(theta)))
        logit = network(resample(pixels, forth, size, scale)).float()
        probability = logit.softmax(dim=1) if logit.shape[1] > 1 else logit.sigmoid()
        total = total + resample(probability, back, size, 1.0)
        weight = weight + resample(torch.ones_like(probability[:, :1]), back, size, 1.0)
    mean = (total / weight).clamp(_LEAST, 1 - _LEAST)
    return mean.log() if mean.shape[1] > 1 else mean.logit()


def _maps(copies: int) -> list[Float[Tensor, "2 3"]]:
    """Return the map of every copy, from its own (j, i) to that of the pixels."""
    maps = []
    for number in range(copies):
        around = 2 * math.pi * number / copies
        turn = math.radians(_TURN_DEG) * math.cos(around)
        magnification = _MAGNIFICATION ** math.sin(around)
        cosine, sine = math.cos(turn) / magnification, math.sin(turn) / magnification
        maps.append(torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]))
    return maps


def _inverse(theta: Float[Tensor, "2 3"]) -> Float[Tensor, "2 3"]:
    """Return the map back; the maps turn and scale about the middle and do not shift."""
    return torch.cat([torch.linalg.inv(theta[:, :2]), theta[:, 2:]], dim=1)
