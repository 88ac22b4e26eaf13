"""The encoder: a ResNet for small patches, with feature maps at strides 2, 4, 8 and 16.

He et al. 2016 (doi 10.1109/CVPR.2016.90), with two changes. The 7 x 7 stem is two 3 x 3
convolutions, of which the first one halves the image: small organs keep a feature map at stride 2.
The last level keeps its input's stride (16, not 32), so that a 64 x 64 patch ends on 4 x 4.
Without the pooling (strides 2, 4, 8, 16 from the four levels themselves) forward and backward of
256 views of 64 x 64 take 2.6 s instead of 1.0 s (ResNet-18, bfloat16, 2 cores).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from monai.networks.blocks import Convolution
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from torch import Tensor, nn

from sacl.errors import ConfigError
from sacl.files.documents import JsonObject
from sacl.files.weights import described

_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
_STRIDES = (1, 2, 2, 1)
LEAST_WIDTH = 8
"""Narrower encoders are refused: on processors with AVX2 and without AVX-512, the float32 backward
pass of a 1 x 1 convolution of stride 2 with fewer than 8 input channels, in channels-last order,
writes beyond its buffer (torch 2.13, oneDNN's strided kernel); of 1 x 1 and 3 x 3 convolutions with
1 to 40 channels no other did."""
State = Mapping[str, Shaped[Tensor, "..."]]
"""Weights and batch statistics by name."""
UNET3D = "unet3d"
"""Name of the way down of the 3-D U-Net (`networks.coarse.Down`), which is not built here."""
STEM_WEIGHT = "stem.0.conv.weight"
"""Key of the weights that read the input: `[out, channel, ...]`, image first, attention second."""
_STEM_3D = "0.conv1.conv.weight"


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is: enough to build it again.

    `width` is the number of channels of the first level, at least 8; `in_channels` is 2 with
    attention (image, attention) and 1 without. Of a 3-D U-Net the coarse network says the rest.
    """

    network: str = "resnet18"
    width: int = 64
    in_channels: int = 2

    def __post_init__(self) -> None:
        if self.network == UNET3D:
            return
        if self.network not in _DEPTHS:
            raise ConfigError(f"encoder: network '{self.network}', expected {', '.join(_DEPTHS)}")
        if self.width < LEAST_WIDTH or self.width % 2 or self.in_channels < 1:
            raise ConfigError(
                f"encoder: width {self.width} must be even and >= {LEAST_WIDTH},"
                f" {self.in_channels} input channels >= 1"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder:
    """What `encoder.json` says: the encoder, and how it was pretrained.

    `pixels_trained` went through the encoder in training. `decoder` is the kind of the decoder that
    was pretrained with it, if one was. `projector` has a hidden and an output width.
    """

    method: str
    spec: EncoderSpec
    reads_attention: bool
    pixels_trained: int
    projector: tuple[int, int]
    decoder: str | None = None

    @classmethod
    def from_json(cls, text: JsonObject) -> PretrainedEncoder:
        """Return the record that was saved as JSON; a DataError where it is damaged."""
        return described(
            cls, text, "encoder.json", "redo it with `sacl pretrain CONFIG.yaml --force`"
        )


class Encoder(nn.Module):
    """A ResNet that returns its feature maps, fine to coarse.

    `channels` and `strides` describe the maps. Input sides must be multiples of 16. Its weights are
    random (He et al. 2015), from torch's global generator.
    """

    strides: tuple[int, ...] = (2, 4, 8, 16)

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.width
        convolution = partial(Convolution, 2, act="relu", norm="batch", bias=False)
        self.stem = nn.Sequential(
            convolution(spec.in_channels, width // 2, strides=2), convolution(width // 2, width)
        )
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        block = ResNetBottleneck if spec.network == "resnet50" else ResNetBlock
        planes = [width * 2**level for level in range(4)]
        incoming = [width, *(block.expansion * n for n in planes)]
        self.levels = nn.ModuleList(
            _level(block, depth, incoming[n], planes[n], _STRIDES[n])
            for n, depth in enumerate(_DEPTHS[spec.network])
        )
        self.channels: tuple[int, ...] = (width, incoming[1], incoming[2], incoming[4])
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Float[Tensor, "n channel i j"]) -> list[Float[Tensor, "n _ ..."]]:
        """Return feature maps `[n, channels[m], side / strides[m], ...]`, fine to coarse."""
        stem = self.stem(pixels)
        first = self.levels[0](self.pool(stem))
        second = self.levels[1](first)
        return [stem, first, second, self.levels[3](self.levels[2](second))]


def pooled(features: list[Float[Tensor, "n _ ..."]]) -> Float[Tensor, "n channel"]:
    """Return the mean over space of the coarsest map, float32."""
    return features[-1].float().flatten(2).mean(dim=2)


def with_inputs(state: State, channels: Literal[1, 2]) -> State:
    """Return an encoder's weights for images alone (1 channel), or with attention (2).

    The attention's weights are dropped for images alone; where there were none, they start at 0.
    """
    stem = STEM_WEIGHT if STEM_WEIGHT in state else _STEM_3D
    image, attention = state[stem][:, :1], state[stem][:, 1:]
    if channels == 2 and attention.shape[1] == 0:
        attention = torch.zeros_like(image)
    parts = [image, attention] if channels == 2 else [image]
    return {**state, stem: torch.cat(parts, dim=1)}


def _level(
    block: type[nn.Module], depth: int, incoming: int, planes: int, stride: int
) -> nn.Sequential:
    """Return one resolution level of residual blocks; the first one changes stride and width."""
    outgoing = planes * block.expansion
    shortcut = None
    if stride != 1 or incoming != outgoing:
        shortcut = nn.Sequential(
            nn.Conv2d(incoming, outgoing, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(outgoing),
        )
    blocks = [block(incoming, planes, 2, stride, shortcut)]
    blocks += [block(outgoing, planes, 2) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
