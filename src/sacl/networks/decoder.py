"""Decoders: from the encoder's feature maps, fine to coarse, to one map that a head can read.

`aspp` is the paper's: atrous spatial pyramid pooling of the last map, no skips. `deeplab` adds one
skip from a finer map (Chen et al., "Encoder-decoder with atrous separable convolution for semantic
image segmentation", ECCV 2018). `unet` has a skip at every level (Ronneberger et al., "U-Net",
MICCAI 2015). All normalize per group of channels, so that a batch may be small.

`linear` learns nothing: every map, raised to the finest one's size, side by side (Hariharan et al.,
"Hypercolumns", CVPR 2015), so that a head of 1 x 1 tells pixels apart linearly. On a frozen encoder
this is a linear probe, with batch normalization before it as in He et al., "Masked autoencoders",
CVPR 2022, so that the scale of a feature does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

DecoderName = Literal["unet", "deeplab", "aspp", "linear"]

CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLINGS: dict[int, type[nn.Module]] = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_GROUPS = 8


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resample maps `[n, c, *space]` linearly to a size, voxel centers kept in proportion."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    mode = "bilinear" if maps.ndim == 4 else "trilinear"
    return nn.functional.interpolate(maps, tuple(size), mode=mode, align_corners=False)


def aspp_dilations(map_size: int) -> tuple[int, ...]:
    """Return the dilations of a pyramid on a map of the given side.

    The paper's 6, 12 and 18 in proportion to a 48-pixel map, so that the outer taps of the widest
    branch still lie inside the map for more than half of its pixels; on a 16-pixel map the paper's
    own dilation of 18 reaches no pixel but the center's.
    """
    return tuple(sorted({max(1, round(map_size * dilation / 48)) for dilation in (6, 12, 18)}))


def _block(inputs: int, outputs: int, dims: int, kernel: int = 3, dilation: int = 1) -> nn.Module:
    convolution = CONVOLUTIONS[dims](
        inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False
    )
    return nn.Sequential(convolution, nn.GroupNorm(_GROUPS, outputs), nn.ReLU(inplace=True))


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: parallel dilations and the map's mean, then a projection."""

    def __init__(self, inputs: int, outputs: int, map_size: int, dims: int = 2) -> None:
        super().__init__()
        dilations = aspp_dilations(map_size)
        self.branches = nn.ModuleList(
            [_block(inputs, outputs, dims, kernel=1)]
            + [_block(inputs, outputs, dims, dilation=dilation) for dilation in dilations]
        )
        # One pixel has no statistics to normalize by, so this branch is linear.
        self.mean = nn.Sequential(_POOLINGS[dims](1), CONVOLUTIONS[dims](inputs, outputs, 1))
        self.project = _block(outputs * (len(self.branches) + 1), outputs, dims, kernel=1)

    def forward(self, last: Tensor) -> Tensor:
        """Return a map of the same size."""
        mean = self.mean(last).expand(-1, -1, *last.shape[2:])
        joined = torch.cat([branch(last) for branch in self.branches] + [mean], dim=1)
        projected: Tensor = self.project(joined)
        return projected


class AsppDecoder(nn.Module):
    """The paper's decoder: a pyramid on the last map, no skips."""

    def __init__(self, channels: Sequence[int], map_size: int, dims: int = 2) -> None:
        super().__init__()
        self.out_channels = _width(channels[-1] // 4)
        self.pyramid = Pyramid(channels[-1], self.out_channels, map_size, dims)
        self.refine = _block(self.out_channels, self.out_channels, dims)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return a map of the last feature map's size."""
        decoded: Tensor = self.refine(self.pyramid(features[-1]))
        return decoded


class DeepLabDecoder(nn.Module):
    """A pyramid on the last map, joined with one map that is four times finer."""

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], map_size: int, dims: int = 2
    ) -> None:
        super().__init__()
        self.out_channels = _width(channels[-1] // 4)
        finer = [n for n, stride in enumerate(strides) if stride * 4 <= strides[-1]]
        self.skip_level = finer[-1] if finer else 0
        skip_width = _width(channels[self.skip_level] // 4)
        self.pyramid = Pyramid(channels[-1], self.out_channels, map_size, dims)
        self.skip = _block(channels[self.skip_level], skip_width, dims, kernel=1)
        self.refine = nn.Sequential(
            _block(self.out_channels + skip_width, self.out_channels, dims),
            _block(self.out_channels, self.out_channels, dims),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return a map of the skip's size."""
        fine = features[self.skip_level]
        coarse = resize(self.pyramid(features[-1]), fine.shape[2:])
        decoded: Tensor = self.refine(torch.cat([coarse, self.skip(fine)], dim=1))
        return decoded


class UnetDecoder(nn.Module):
    """From the last map upward, joining the encoder's map at every level."""

    def __init__(self, channels: Sequence[int], dims: int = 2) -> None:
        super().__init__()
        widths = [_width(n) for n in channels[:-1]]
        self.out_channels = widths[0]
        below = [*widths[1:], channels[-1]]
        self.reduce = nn.ModuleList(
            _block(b, w, dims, kernel=1) for b, w in zip(below, widths, strict=True)
        )
        self.join = nn.ModuleList(
            nn.Sequential(_block(w + n, w, dims), _block(w, w, dims))
            for w, n in zip(widths, channels[:-1], strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return a map of the first feature map's size."""
        decoded = features[-1]
        for level in range(len(features) - 2, -1, -1):
            raised = resize(self.reduce[level](decoded), features[level].shape[2:])
            decoded = self.join[level](torch.cat([raised, features[level]], dim=1))
        return decoded


class LinearDecoder(nn.Module):
    """All maps side by side, normalized over the batch, without a weight of its own."""

    def __init__(self, channels: Sequence[int], dims: int = 2) -> None:
        super().__init__()
        self.out_channels = sum(channels)
        self.normalize = nn.ModuleList(_NORMS[dims](n, affine=False) for n in channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return a map of the first feature map's size."""
        finest = features[0].shape[2:]
        normalized = zip(self.normalize, features, strict=True)
        return torch.cat([resize(norm(each), finest) for norm, each in normalized], dim=1)


def _width(channels: int) -> int:
    """Round up to a multiple of the groups, at least two groups' worth."""
    return max(2 * _GROUPS, -(-channels // _GROUPS) * _GROUPS)


def build_decoder(
    name: DecoderName,
    channels: Sequence[int],
    strides: Sequence[int],
    image_size: int,
    dims: int = 2,
) -> AsppDecoder | DeepLabDecoder | UnetDecoder | LinearDecoder:
    """Return a decoder for an encoder's feature maps.

    Args:
        name: which decoder.
        channels: channels of the feature maps, fine to coarse.
        strides: their strides.
        image_size: side of the network's input, to which the pyramid's dilations are adapted.
        dims: 2 or 3 spatial dimensions.
    """
    map_size = max(1, image_size // strides[-1])
    if name == "unet":
        return UnetDecoder(channels, dims)
    if name == "linear":
        return LinearDecoder(channels, dims)
    if name == "deeplab":
        return DeepLabDecoder(channels, strides, map_size, dims)
    return AsppDecoder(channels, map_size, dims)
