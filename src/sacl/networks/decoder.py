"""Decoders: from the encoder's feature maps, fine to coarse, to one map that a head can read.

`aspp` is the paper's: atrous spatial pyramid pooling of the last map, no skips. `unet` has a skip
at every level (Ronneberger et al., "U-Net", MICCAI 2015). Both normalize per group of channels, so
that a batch may be small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sacl.errors import ConfigError
from sacl.networks.device import channels_last, in_own_order

_GROUPS = 8


def resize(maps: Float[Tensor, "n c i j"], size: Sequence[int]) -> Float[Tensor, "n c a b"]:
    """Resample maps linearly to a size, pixel centers kept in proportion."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return nn.functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def aspp_dilations(map_size: int) -> tuple[int, ...]:
    """Return the dilations of a pyramid on a map of the given side.

    The paper's 6, 12 and 18 in proportion to a 48-pixel map, so that most pixels' outer taps lie
    inside the map; on a 16-pixel map the paper's own 18 reaches no pixel but the center's.
    """
    return tuple(sorted({max(1, round(map_size * dilation / 48)) for dilation in (6, 12, 18)}))


class GroupNorm(nn.GroupNorm):
    """Group norm that leaves channels-last order and comes back to it on a CPU.

    There torch's own takes many times as long in that order.
    """

    def forward(self, input: Float[Tensor, "n c i j"]) -> Float[Tensor, "n c i j"]:
        """Return maps normalized by group, in the order that they came in."""
        if not in_own_order(input):
            return super().forward(input)
        return channels_last(super().forward(input.contiguous()))


def _block(inputs: int, outputs: int, kernel: int = 3, dilation: int = 1) -> nn.Module:
    convolution = nn.Conv2d(
        inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False
    )
    return nn.Sequential(convolution, GroupNorm(_GROUPS, outputs), nn.ReLU(inplace=True))


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: parallel dilations and the map's mean, then a projection."""

    def __init__(self, inputs: int, outputs: int, map_size: int) -> None:
        super().__init__()
        dilations = aspp_dilations(map_size)
        self.branches = nn.ModuleList(
            [_block(inputs, outputs, kernel=1)]
            + [_block(inputs, outputs, dilation=dilation) for dilation in dilations]
        )
        # One pixel has no statistics to normalize by, so this branch is linear.
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1))
        self.project = _block(outputs * (len(self.branches) + 1), outputs, kernel=1)

    def forward(self, last: Float[Tensor, "n c i j"]) -> Float[Tensor, "n out i j"]:
        """Return a map of the same size."""
        mean = self.mean(last).expand(-1, -1, *last.shape[2:])
        return self.project(torch.cat([*(branch(last) for branch in self.branches), mean], dim=1))


class AsppDecoder(nn.Module):
    """The paper's decoder: a pyramid on the last map, no skips."""

    def __init__(self, channels: Sequence[int], map_size: int) -> None:
        super().__init__()
        self.out_channels = _width(channels[-1] // 4)
        self.pyramid = Pyramid(channels[-1], self.out_channels, map_size)
        self.refine = _block(self.out_channels, self.out_channels)

    def forward(self, features: Sequence[Float[Tensor, ...]]) -> Float[Tensor, "n out i j"]:
        """Return a map of the last feature map's size."""
        return self.refine(self.pyramid(features[-1]))


class UnetDecoder(nn.Module):
    """From the last map upward, joining the encoder's map at every level."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [_width(n) for n in channels[:-1]]
        self.out_channels = widths[0]
        below = [*widths[1:], channels[-1]]
        self.reduce = nn.ModuleList(
            _block(b, w, kernel=1) for b, w in zip(below, widths, strict=True)
        )
        self.join = nn.ModuleList(
            nn.Sequential(_block(w + n, w), _block(w, w))
            for w, n in zip(widths, channels[:-1], strict=True)
        )

    def forward(self, features: Sequence[Float[Tensor, ...]]) -> Float[Tensor, "n out i j"]:
        """Return a map of the first feature map's size."""
        decoded = features[-1]
        for level in range(len(features) - 2, -1, -1):
            raised = resize(self.reduce[level](decoded), features[level].shape[2:])
            decoded = self.join[level](torch.cat([raised, features[level]], dim=1))
        return decoded


def _width(channels: int) -> int:
    """Round up to a multiple of the groups, at least two groups' worth."""
    return max(2 * _GROUPS, -(-channels // _GROUPS) * _GROUPS)


DECODERS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "unet": lambda channels, map_size: UnetDecoder(channels),
    "aspp": AsppDecoder,
}
"""How each decoder is made of the feature maps' channels, fine to coarse, and the side of the
coarsest map. It has `out_channels`."""


def build_decoder(
    name: str, channels: Sequence[int], strides: Sequence[int], image_size: int
) -> nn.Module:
    """Return a decoder, by its name, for an encoder's feature maps, by their channels and strides.

    The pyramid's dilations are adapted to `image_size`, the side of the network's input.
    """
    if name not in DECODERS:
        raise ConfigError(f"decoder: expected one of {', '.join(DECODERS)}, got '{name}'")
    return DECODERS[name](channels, max(1, image_size // strides[-1]))
