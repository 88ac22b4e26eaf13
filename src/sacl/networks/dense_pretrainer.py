"""Encoder and decoder pretrained together on dense slices, with the heads of pretext tasks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from sacl.networks.decoder import CONVOLUTIONS, DecoderName, build_decoder, resize
from sacl.networks.encoder import EncoderSpec, build_encoder
from sacl.networks.projector import Projector


class DenseFeatures(NamedTuple):
    """Features of images: the encoder's coarsest map, and the decoder's map, the finest."""

    coarsest: Tensor
    finest: Tensor


class DensePretrainer(nn.Module):
    """The segmenter's encoder and decoder, and what a pretext task reads from their features.

    `project_coarsest` and `project_finest` lead to the unit sphere; `head` gives `out_channels`
    values per pixel.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        decoder: DecoderName,
        image_size: int,
        projector: tuple[int, int],
        out_channels: int,
    ) -> None:
        super().__init__()
        dims = spec.spatial_dims
        self.encoder = build_encoder(spec)
        self.decoder = build_decoder(
            decoder, self.encoder.channels, self.encoder.strides, image_size, dims
        )
        self.project_coarsest = Projector(self.encoder.channels[-1], *projector)
        self.project_finest = Projector(self.decoder.out_channels, *projector)
        self.head = CONVOLUTIONS[dims](self.decoder.out_channels, out_channels, 1)

    def forward(self, pixels: Tensor) -> DenseFeatures:
        """Return the features of pixels `[n, channel, i, j]`."""
        maps = self.encoder(pixels)
        return DenseFeatures(maps[-1], self.decoder(maps))

    def outputs(self, pixels: Tensor) -> Tensor:
        """Return the head's values `[n, out_channels, i, j]` at the size of the pixels."""
        return resize(self.head(self(pixels).finest).float(), pixels.shape[2:])
