"""Networks of pretraining: projectors to the unit sphere on which the contrast is measured."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sacl.networks.encoder import pooled


class Projector(nn.Sequential):
    """A perceptron with one hidden layer and batch norm (Chen et al. 2020, ICML), L2-normalized."""

    def __init__(self, channels: int, hidden: int, out: int) -> None:
        super().__init__(
            nn.Linear(channels, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out),
        )

    def forward(self, feature: Float[Tensor, "batch channel"]) -> Float[Tensor, "batch out"]:
        """Return unit vectors, float32."""
        return functional.normalize(super().forward(feature).float(), dim=1)


class Embedder(nn.Module):
    """Encoder, global pooling and projector: pixels to unit vectors."""

    def __init__(self, encoder: nn.Module, hidden: int, out: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(encoder.channels[-1], hidden, out)

    def forward(self, pixels: Float[Tensor, "batch channel ..."]) -> Float[Tensor, "batch out"]:
        """Return the embeddings of pixels."""
        return self.projector(pooled(self.encoder(pixels)))


class DenseFeatures(NamedTuple):
    """Features of images: the encoder's coarsest map, and the decoder's map, the finest."""

    coarsest: Float[Tensor, "n channel ..."]
    finest: Float[Tensor, "n width ..."]


class DensePretrainer(nn.Module):
    """The segmenter's encoder and decoder, and a projector for the features of either."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, projector: tuple[int, int]) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.project_coarsest = Projector(self.encoder.channels[-1], *projector)
        self.project_finest = Projector(self.decoder.out_channels, *projector)

    def forward(self, pixels: Float[Tensor, "n channel ..."]) -> DenseFeatures:
        """Return the features of pixels."""
        maps = self.encoder(pixels)
        return DenseFeatures(maps[-1], self.decoder(maps))
