"""The projector: from pooled features to the unit sphere on which the contrast is measured."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from sacl.networks.encoder import Encoder, pooled


class Projector(nn.Sequential):
    """A perceptron with one hidden layer and batch norm (Chen et al. 2020, ICML), L2-normalized."""

    def __init__(self, channels: int, hidden: int, out: int) -> None:
        super().__init__(
            nn.Linear(channels, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Return unit vectors `[batch, out]`, float32."""
        return functional.normalize(super().forward(feature).float(), dim=1)


class Embedder(nn.Module):
    """Encoder, global pooling and projector: pixels to unit vectors."""

    def __init__(self, encoder: Encoder, hidden: int, out: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(encoder.channels[-1], hidden, out)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings `[batch, out]` of pixels `[batch, channel, i, j]`."""
        return self.projector(pooled(self.encoder(pixels)))
