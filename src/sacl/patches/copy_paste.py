"""Copy-paste: a square of one image, with its labels, replaces that square of another.

Labeled and unlabeled slices that are mixed both ways teach a network on images whose labels are
partly drawn by hand and partly its teacher's (bidirectional copy-paste, Bai et al., CVPR 2023,
doi 10.1109/CVPR52729.2023.01108).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

_SHARE = 2 / 3
"""Side of the pasted square in units of the image's side, as published."""


def random_squares(
    count: int, size: int, generator: torch.Generator, device: torch.device
) -> Bool[Tensor, "count size size"]:
    """Draw a square anywhere inside every image: True inside."""
    side = round(_SHARE * size)
    places = size - side + 1
    start = torch.randint(places, (count, 2, 1), generator=generator, device=generator.device)
    start = start.to(device)
    position = torch.arange(size, device=device)
    inside = (position >= start) & (position < start + side)
    return inside[:, 0, :, None] & inside[:, 1, None, :]
