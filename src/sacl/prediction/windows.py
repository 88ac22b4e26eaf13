"""Segment a whole scan by a 3-D network: overlapping windows, weighted by a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from jaxtyping import Float
from monai.data.utils import compute_importance_map
from torch import Tensor
from torch.nn import functional

from sacl.networks.coarse import CoarseSpec, Triple
from sacl.networks.device import autocast
from sacl.patches.coarse_grid import CoarseGrid, coarse_grid, image_to_coarse
from sacl.prediction.assemble import mean_over_copies, wider
from sacl.types import Volume

Levels = Callable[[Tensor], list[Tensor]]
"""A network on volumes `[n, 1, i, j, k]`: the logits of its levels, the finest first."""

Window = tuple[slice, slice, slice]
"""A part of a volume as large as a network's crop."""

_SIGN = 0.02
"""Probability of any organ, by a window, where the windows that overlap with it are looked at."""
_VOXELS_AT_ONCE = 1_000_000
"""Voxels of the windows that go through a network together, of one window at least: two windows of
176 x 176 x 64 voxels took 2.3 GB."""
_LEAST_PROBABILITY = 1e-6


def probability_by_windows(
    networks: Sequence[Levels],
    spec: CoarseSpec,
    device: torch.device,
    volume: Volume,
    window: tuple[float, float],
    copies: int = 0,
) -> tuple[Float[Tensor, "class a b c"], CoarseGrid]:
    """Return a scan's class probabilities on the grid on which the networks work, and that grid.

    The scan is canonical, of any size and spacing. The mean is over the networks, all of one spec,
    and over `copies` turned and scaled copies (`prediction.assemble`).
    """
    grid = coarse_grid(volume.grid, spec.spacing_mm, spec.in_plane_size)
    image = image_to_coarse(volume.voxels, window, grid, device)
    return _over_copies(networks, spec, image, copies), grid


@torch.inference_mode()
def probability(
    networks: Sequence[Levels],
    spec: CoarseSpec,
    image: Float[Tensor, "i j k"],
    overlapping: bool = True,
) -> Float[Tensor, "class i j k"]:
    """Return class probabilities of a windowed image on the networks' grid, on its device.

    Windows overlap by half, and where they do a voxel is the mean of them, weighted by a Gaussian.
    Those that tile the scan come first. Of the others only those are computed in which a tile gives
    some voxel an organ's probability of `_SIGN`: what holds background alone is read once. Without
    `overlapping` nothing but the tiles is read.
    """
    # A scan smaller than the crop is padded with 0, as in training, and the pad cut off again.
    lacking = [max(0, size - n) for size, n in zip(spec.crop, image.shape, strict=True)]
    pads = [(n // 2, n - n // 2) for n in lacking]
    padded = functional.pad(image, [n for pad in reversed(pads) for n in pad])
    starts = [_starts(n, size) for n, size in zip(padded.shape, spec.crop, strict=True)]
    tiles = [_tiling(of, size) for of, size in zip(starts, spec.crop, strict=True)]
    total = image.new_zeros(1 + len(spec.organs), *padded.shape)
    weight = image.new_zeros(padded.shape)
    gaussian = compute_importance_map(spec.crop, "gaussian", device=image.device)
    at_once = 2 if 2 * math.prod(spec.crop) <= _VOXELS_AT_ONCE else 1

    def add(windows: Sequence[Window]) -> None:
        for first in range(0, len(windows), at_once):
            batch = windows[first : first + at_once]
            crops = torch.stack([padded[window] for window in batch])[:, None]
            with autocast(crops.device):
                logits = [network(crops)[0] for network in networks]
            means = torch.stack([logit.float().softmax(dim=1) for logit in logits]).mean(dim=0)
            for window, mean in zip(batch, means, strict=True):
                total[:, *window] += gaussian * mean
                weight[window] += gaussian

    tiling = list(product(*tiles))
    add([_window(start, spec.crop) for start in tiling])
    if overlapping:
        organ = total[0] < (1 - _SIGN) * weight
        others = (_window(s, spec.crop) for s in product(*starts) if s not in tiling)
        add([window for window in others if organ[window].any()])
    total /= weight
    (i, j, k), (height, length, depth) = (low for low, _ in pads), image.shape
    return total[:, i : i + height, j : j + length, k : k + depth]


def _starts(length: int, size: int) -> list[int]:
    """Return where windows start that overlap by half, along an axis no shorter than one."""
    step, last = max(1, size // 2), length - size
    return [min(n * step, last) for n in range(1 + math.ceil(last / step))]


def _tiling(starts: Sequence[int], size: int) -> list[int]:
    """Return the fewest of these starts whose windows leave no gap."""
    chosen = [starts[0]]
    while chosen[-1] != starts[-1]:
        chosen.append(max(start for start in starts if start <= chosen[-1] + size))
    return chosen


def _window(start: Sequence[int], crop: Triple) -> Window:
    i, j, k = (slice(first, first + size) for first, size in zip(start, crop, strict=True))
    return i, j, k


def _over_copies(
    networks: Sequence[Levels], spec: CoarseSpec, image: Float[Tensor, "i j k"], copies: int
) -> Float[Tensor, "class i j k"]:
    """Return the mean probability over copies: the slices of a volume are turned all alike."""
    if copies == 0:
        return probability(networks, spec, image)
    height, length, _ = image.shape
    size = 2 * math.ceil(max(height, length) / 2)
    wide = round(size * wider(size, copies))
    left, low = (wide - height) // 2, (wide - length) // 2
    pad = (0, 0, low, wide - length - low, left, wide - height - left)
    slices = functional.pad(image, pad).permute(2, 0, 1)[:, None]

    def logits(turned: Float[Tensor, "k 1 size size"]) -> Float[Tensor, "k class size size"]:
        of_copy = probability(networks, spec, turned[:, 0].permute(1, 2, 0))
        return of_copy.clamp_min(_LEAST_PROBABILITY).log().permute(3, 0, 1, 2)

    mean = mean_over_copies(logits, slices, size, copies).exp()
    left, low = left - (wide - size) // 2, low - (wide - size) // 2
    return mean[:, :, left : left + height, low : low + length].permute(1, 2, 3, 0)
