"""A decoder that learns nothing: with a head of 1 x 1 on a frozen encoder it is a linear probe.

Every feature map is raised to the finest one's size, side by side (Hariharan et al.,
"Hypercolumns", CVPR 2015), after batch normalization as in He et al., "Masked autoencoders", CVPR
2022, so that the scale of a feature does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sacl.networks.decoder import DECODERS, resize


class LinearDecoder(nn.Module):
    """All maps side by side, normalized over the batch, without a weight of its own."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = sum(channels)
        self.normalize = nn.ModuleList(nn.BatchNorm2d(n, affine=False) for n in channels)

    def forward(self, features: Sequence[Float[Tensor, ...]]) -> Float[Tensor, "n out *space"]:
        """Return a map of the first feature map's size."""
        finest = features[0].shape[2:]
        normalized = zip(self.normalize, features, strict=True)
        return torch.cat([resize(norm(each), finest) for norm, each in normalized], dim=1)


DECODERS["linear"] = lambda channels, map_size: LinearDecoder(channels)
