"""Segment a whole scan by a 3-D network: overlapping windows, weighted by a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn import functional

from sacl.networks.coarse import CoarseSpec
from sacl.networks.device import autocast
from sacl.patches.coarse_grid import CoarseGrid, coarse_grid, image_to_coarse
from sacl.prediction.assemble import mean_over_copies, wider
from sacl.types import Volume

Levels = Callable[[Tensor], list[Tensor]]
"""A network on volumes `[n, 1, i, j, k]`: the logits of its levels, the finest first."""

_OVERLAP = 0.5
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
    networks: Sequence[Levels], spec: CoarseSpec, image: Float[Tensor, "i j k"]
) -> Float[Tensor, "class i j k"]:
    """Return class probabilities of a windowed image on the networks' grid, on its device."""

    def mean_of_networks(crops: Float[Tensor, "n 1 _i _j _k"]) -> Tensor:
        with autocast(image.device):
            logits = [network(crops)[0] for network in networks]
        return torch.stack([logit.float().softmax(dim=1) for logit in logits]).mean(dim=0)

    # A scan smaller than the crop is padded with 0, as in training, and the pad cut off again.
    crops = sliding_window_inference(
        image[None, None],
        roi_size=spec.crop,
        sw_batch_size=2 if 2 * math.prod(spec.crop) <= _VOXELS_AT_ONCE else 1,
        predictor=mean_of_networks,
        overlap=_OVERLAP,
        mode="gaussian",
    )
    return crops[0]


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
