"""The coarse network: a small 3-D U-Net whose pooling follows the voxel spacing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock
from monai.networks.layers.factories import Norm
from monai.networks.nets import DynUNet
from msgspec import Meta
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from sacl.files.documents import JsonObject
from sacl.files.weights import described
from sacl.networks.device import channels_last
from sacl.networks.encoder import UNET3D, EncoderSpec
from sacl.types import LabelScheme

Triple = tuple[int, int, int]

_Length = Annotated[float, Meta(ge=0.01, le=1000)]
_Side = Annotated[int, Meta(ge=1, le=4096)]
_SMALLEST_MAP = 4
"""No axis is pooled to fewer voxels than this."""
_LEVELS = 5
_WIDEST = 8
"""Channels double from level to level, up to this multiple of the first level's."""
_NORM = ("instance_in_order", {"affine": True})


@dataclass(frozen=True, kw_only=True)
class CoarseSpec:
    """Everything needed to rebuild a coarse network and to bring a scan onto its grid.

    `crop` is a multiple of the network's total pooling. Where `in_plane_size` is set, `spacing_mm`
    is only that of a typical scan, by which the pooling was planned.
    """

    scheme: str
    organs: tuple[str, ...]
    spacing_mm: tuple[_Length, _Length, _Length]
    in_plane_size: _Side | None
    crop: tuple[_Side, _Side, _Side]
    channels: int
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]

    @property
    def widths(self) -> list[int]:
        """Channels of every level."""
        return [self.channels * min(2**level, _WIDEST) for level in range(len(self.strides))]

    @property
    def label_scheme(self) -> LabelScheme:
        """The organs as a label scheme."""
        return LabelScheme(self.scheme, self.organs)

    @classmethod
    def from_json(cls, document: JsonObject) -> CoarseSpec:
        """Return the spec that was saved as JSON; a DataError where it is damaged."""
        return described(cls, document, "coarse network", "run `sacl locate CONFIG.yaml --force`")


def plan_levels(
    crop: Triple, spacing_mm: tuple[float, float, float]
) -> tuple[Triple, tuple[Triple, ...], tuple[Triple, ...]]:
    """Return the crop, rounded up to what the pooling divides, and each level's kernel and stride.

    As in nnU-Net (Isensee et al., Nature Methods 18, 2021, doi 10.1038/s41592-020-01008-z): an axis
    is pooled while its spacing is within twice the finest and enough voxels are left, and convolved
    from the level on at which its spacing is within twice the finest.
    """
    size, spacing = np.array(crop, float), np.array(spacing_mm, float)
    stride, pooling, convolved = np.ones(3, int), np.ones(3, int), np.zeros(3, bool)
    kernels: list[Triple] = []
    strides: list[Triple] = []
    while len(strides) < _LEVELS:
        convolved |= spacing <= 2 * spacing.min() * 1.001
        kernels.append(_triple(np.where(convolved, 3, 1)))
        strides.append(_triple(stride))
        pooling *= stride
        is_open = size >= 2 * _SMALLEST_MAP
        finest = spacing.min(initial=np.inf, where=is_open)
        stride = np.where(is_open & (spacing <= 2 * finest * 1.001), 2, 1)
        if (stride == 1).all():
            break
        size, spacing = size / stride, spacing * stride
    return _triple(-(-np.array(crop) // pooling) * pooling), tuple(kernels), tuple(strides)


def _triple(values: Int[np.ndarray, " 3"]) -> Triple:
    i, j, k = values.tolist()
    return i, j, k


class InstanceNorm(nn.InstanceNorm3d):
    """Instance norm of volumes that keeps channels-last order on a CPU, which torch's own does not.

    Of maps in that order it normalizes one sample after the other, as a batch of its own.
    """

    def forward(self, input: Float[Tensor, "n channel i j k"]) -> Float[Tensor, "n channel i j k"]:
        """Return every sample's channels with mean 0 and variance 1, then scaled and shifted."""
        if input.is_contiguous() or input.device.type != "cpu":
            return super().forward(input)
        normed = [
            batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for sample in input.split(1)
        ]
        return torch.cat(normed) if len(normed) > 1 else normed[0]


@Norm.factory_function("instance_in_order")
def _instance_norm(_axes: int) -> type[nn.Module]:
    return InstanceNorm


class Down(nn.ModuleList):
    """The way down: an encoder of images, or with 2 input channels of images with attention.

    `channels` are those of its feature maps, the finest first.
    """

    def __init__(self, spec: CoarseSpec, in_channels: int = 1) -> None:
        widths = spec.widths
        entering = [in_channels, *widths]
        levels = zip(entering, widths, spec.kernels, spec.strides, strict=False)
        super().__init__(UnetBasicBlock(3, *level, _NORM) for level in levels)
        self.spec = EncoderSpec(UNET3D, spec.channels, in_channels)
        self.channels = tuple(widths)

    def forward(self, pixels: Float[Tensor, "n channel i j k"]) -> list[Float[Tensor, "n _ ..."]]:
        """Return the feature maps of all levels, fine to coarse."""
        features: list[Tensor] = []
        for block in self:
            features.append(block(features[-1] if features else channels_last(pixels)))
        return features


class Up(nn.ModuleList):
    """The way up: a decoder that joins the encoder's map at every level."""

    def __init__(self, spec: CoarseSpec) -> None:
        widths = spec.widths
        levels = zip(widths[1:], widths, spec.kernels, spec.strides[1:], strict=False)
        super().__init__(
            UnetUpBlock(3, deeper, width, kernel, 1, stride, _NORM)
            for deeper, width, kernel, stride in levels
        )
        self.out_channels = widths[0]

    def levels(self, features: list[Float[Tensor, "n _ ..."]]) -> list[Float[Tensor, "n _ ..."]]:
        """Return the decoded maps of all levels, fine to coarse."""
        decoded = [features[-1]]
        for level in reversed(range(len(self))):
            decoded.insert(0, self[level](decoded[0], features[level]))
        return decoded

    def forward(self, features: list[Float[Tensor, "n _ ..."]]) -> Float[Tensor, "n out i j k"]:
        """Return the finest of the decoded maps."""
        return self.levels(features)[0]


class CoarseNetwork(nn.Module):
    """A 3-D U-Net of nnU-Net's blocks: two convolutions with instance norm on every level.

    The blocks are MONAI's; its `DynUNet`, which they come from, keeps every weight twice in its
    state and needs three levels at least.
    """

    def __init__(self, spec: CoarseSpec) -> None:
        super().__init__()
        self.down, self.up = Down(spec), Up(spec)
        heads = (nn.Conv3d(width, 1 + len(spec.organs), 1) for width in spec.widths)
        self.heads = nn.ModuleList(heads)
        if not self.heads[0].weight.is_meta:  # there, torch would import its compiler for it
            self.apply(DynUNet.initialize_weights)

    def forward(self, image: Float[Tensor, "n 1 i j k"]) -> list[Float[Tensor, "n class _ _ _"]]:
        """Return every level's logits, background first, the image's own grid first.

        Images are in [0, 1]; their sides must be multiples of the pooling, as the crop's are.
        """
        maps = self.up.levels(self.down(image))
        return [head(decoded) for head, decoded in zip(self.heads, maps, strict=True)]
