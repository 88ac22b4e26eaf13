"""Dense slices: pretext tasks of single pixels, which train encoder and decoder.

- `pixel`: supervised contrast between pixels, classes by coarse label (Wang et al., ICCV 2021, doi
  10.1109/ICCV48922.2021.00721), without their memory bank.
- `self-training`: soft Dice plus cross-entropy against the coarse label maps.
- `mim`: masked image modeling, mean squared error of hidden blocks (Xie et al., "SimMIM", CVPR
  2022, doi 10.1109/CVPR52688.2022.00943).
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from research.methods.regions import on_slices
from sacl.losses.contrastive import contrastive_loss
from sacl.losses.segmentation import dense_loss
from sacl.methods import Method, Recipe, register
from sacl.methods.batches import SliceViews
from sacl.networks.decoder import resize
from sacl.networks.device import channels_last
from sacl.networks.projector import DensePretrainer
from sacl.training.loop import Loss

PIXELS_PER_CLASS = 64
BLOCK_SHARE = 1 / 8
"""Side of a hidden block in units of the slice's side."""
HIDDEN = 0.6


class PretrainerWithHead(DensePretrainer):
    """Encoder and decoder with a head that gives some values per pixel."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        projector: tuple[int, int],
        out_channels: int,
    ) -> None:
        super().__init__(encoder, decoder, projector)
        self.head = nn.Conv2d(self.decoder.out_channels, out_channels, 1)

    def outputs(self, pixels: Float[Tensor, "n channel i j"]) -> Float[Tensor, "n out i j"]:
        """Return the head's values at the size of the pixels."""
        return resize(self.head(self(pixels).finest).float(), pixels.shape[2:])


def loss_of_pixels(views: SliceViews, recipe: Recipe) -> Loss:
    """Return the loss of contrast between pixels; every class brings as many of them."""

    def loss(network: nn.Module, step: int) -> Tensor:
        slices, generator = views.draw(step)
        features = network(channels_last(slices.image))
        labels = slices.labels.flatten()
        drawn = torch.rand(len(labels), generator=generator, device=generator.device)
        order = (labels + drawn.to(labels.device)).argsort()
        first = torch.searchsorted(labels[order], torch.arange(views.organs + 2).to(labels.device))
        ends = itertools.pairwise(first.tolist())
        chosen = torch.cat([order[a : min(a + PIXELS_PER_CLASS, b)] for a, b in ends])
        finest = resize(features.finest, slices.labels.shape[1:])
        flat = finest.movedim(1, -1).flatten(0, 2)[chosen]
        same = labels[chosen][:, None] == labels[chosen][None, :]
        embedding = network.project_finest(flat.float())
        return contrastive_loss(embedding, same, torch.ones_like(same), recipe.temperature)

    return loss


def loss_of_self_training(views: SliceViews, recipe: Recipe) -> Loss:
    """Return the segmentation loss against the coarse label maps."""

    def loss(network: nn.Module, step: int) -> Tensor:
        slices, _ = views.draw(step)
        logit = network.outputs(channels_last(slices.image))
        annotated = torch.ones(len(logit), views.organs, dtype=torch.bool, device=logit.device)
        return dense_loss(logit, slices.labels, annotated)

    return loss


def loss_of_masked_images(views: SliceViews, recipe: Recipe) -> Loss:
    """Return the mean squared error of the hidden blocks."""

    def loss(network: nn.Module, step: int) -> Tensor:
        slices, generator = views.draw(step)
        side, blocks = slices.image.shape[-1], round(1 / BLOCK_SHARE)
        shape = (len(slices.image), 1, blocks, blocks)
        hidden = torch.rand(shape, generator=generator, device=generator.device) < HIDDEN
        hidden = nn.functional.interpolate(hidden.float(), size=(side, side))
        hidden = hidden.to(slices.image.device)
        made = network.outputs(channels_last(slices.image * (1 - hidden)))
        error = (made[:, :1] - slices.image).square()
        return (error * hidden).sum() / hidden.sum().clamp_min(1)

    return loss


for _name, _loss, _pretrainer in (
    ("pixel", loss_of_pixels, None),
    ("self-training", loss_of_self_training, PretrainerWithHead),
    ("mim", loss_of_masked_images, PretrainerWithHead),
):
    register(
        Method(
            name=_name,
            build=on_slices(_loss, _pretrainer),
            reads="slices",
            trains_decoder=True,
        )
    )
