"""Test-time augmentation: the mean prediction over turned and scaled copies of the pixels.

Copy m of n is turned by 20 degrees times cos(2 pi m / n) and magnified by 1.2 to the power of
sin(2 pi m / n): evenly around the plain one, which takes part too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sacl.patches.query import round_to_even
from sacl.patches.views import resample

MARGIN = 1.3
"""Copies reach this many sides, so the pixels are cut this much wider."""
_TURN_DEG = 20.0
_MAGNIFICATION = 1.2
_LEAST = 1e-6


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
