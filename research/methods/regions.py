"""Dense slices: contrast between parts of organs, and between whole slices.

- `parts`: as `pooled`, but at the decoder's finest map every square of a grid, which lies
  differently in every step, has a query of its own for the part of each mask in it.
- `simclr-slices`: a slice is alike its own other view only (Chen et al., "SimCLR", ICML 2020). It
  reads no coarse label and trains no decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sacl.losses.contrastive import contrastive_loss
from sacl.methods import Method, Pretraining, Recipe, register
from sacl.methods.batches import SliceViews
from sacl.methods.pooled import (
    LEAST_PIXELS,
    at_size_of,
    large_enough,
    pool_under,
    region_masks,
    region_relations,
)
from sacl.networks.device import channels_last, seeded
from sacl.networks.encoder import pooled
from sacl.networks.projector import DensePretrainer
from sacl.patches.store import PatchStore
from sacl.training.loop import Loss

PART_SHARE = 1 / 8
"""Side of a square that holds a part of an organ, in units of the slice's side."""
MOST_PARTS = 4096
"""Parts in a step at most, since all are compared with all; of more, so many are drawn."""

Maps = Float[Tensor, "n channel a b"]
Masks = Float[Tensor, "n region i j"]


def on_slices(
    loss_of: Callable[[SliceViews, Recipe], Loss],
    pretrainer: Callable[..., DensePretrainer] | None = None,
) -> Callable[[PatchStore, Recipe], Pretraining]:
    """Return what builds a method of dense slices from its loss, and from its network if special.

    A special network takes the number of classes as its last argument.
    """

    def build(store: PatchStore, recipe: Recipe) -> Pretraining:
        views = SliceViews(store, recipe)
        with seeded(recipe.seed):
            parts = (*views.parts(), recipe.projector)
            network = (
                DensePretrainer(*parts)
                if pretrainer is None
                else pretrainer(*parts, views.organs + 1)
            )
        return Pretraining(
            network=network,
            loss=loss_of(views, recipe),
            pixels_per_step=views.pixels_per_step,
            facts={"slices": len(store.dense_index)},
        )

    return build


def loss_of_parts(views: SliceViews, recipe: Recipe) -> Loss:
    """Return the loss of queries of whole organs, coarse, and of their parts, fine."""

    def loss(network: nn.Module, step: int) -> Tensor:
        slices, generator = views.draw(step)
        features = network(channels_last(slices.image))
        masks = region_masks(slices.labels, views.organs, views.reach)
        n, region = large_enough(masks).nonzero(as_tuple=True)
        relations = region_relations(region, views.scan_label[slices.slice[n]])
        whole = network.project_coarsest(pool_under(features.coarsest, masks)[n, region])
        total = contrastive_loss(whole, *relations, recipe.temperature)
        part, n, region = drawn_parts(features.finest, masks, generator)
        relations = region_relations(region, views.scan_label[slices.slice[n]])
        fine = network.project_finest(part)
        return total + contrastive_loss(fine, *relations, recipe.temperature)

    return loss


def loss_of_slices(views: SliceViews, recipe: Recipe) -> Loss:
    """Return the loss of contrast between whole slices; alike are the views of one."""

    def loss(network: nn.Module, step: int) -> Tensor:
        slices, _ = views.draw(step)
        feature = pooled(network.encoder(channels_last(slices.image)))
        same = slices.slice[:, None] == slices.slice[None, :]
        embedding = network.project_coarsest(feature)
        return contrastive_loss(embedding, same, torch.ones_like(same), recipe.temperature)

    return loss


def drawn_parts(
    maps: Maps, masks: Masks, generator: torch.Generator
) -> tuple[Float[Tensor, "part channel"], Int[Tensor, " part"], Int[Tensor, " part"]]:
    """Return the features of the parts that a grid makes, and each one's image and region."""
    square = max(1, round(PART_SHARE * maps.shape[-1]))
    moved = torch.randint(square, (2,), generator=generator, device=generator.device)
    down, right = moved.tolist()
    feature, area = pool_parts(maps, masks, square, (down, right))
    large = (area >= LEAST_PIXELS).nonzero()
    drawn = torch.randperm(len(large), generator=generator, device=generator.device)
    n, at, region = large[drawn[:MOST_PARTS].to(large.device)].unbind(dim=1)
    return feature[n, at, region], n, region


def pool_parts(
    features: Maps, masks: Masks, side: int, offset: tuple[int, int] = (0, 0)
) -> tuple[Float[Tensor, "n square region channel"], Float[Tensor, "n square region"]]:
    """Return the mean feature under each mask in every square of a grid, and the mask's area there.

    The feature is 0 where a square holds nothing of a mask. Masks finer than the features are
    averaged down to their size first.

    Args:
        features: Feature maps.
        masks: Masks of every image's regions.
        side: Side of a square, in pixels of the features.
        offset: How many pixels of the features the first row and column of squares lie outside of
            the map, each less than `side`.

    Returns:
        Features, and areas in pixels of the masks.
    """
    pixels = masks.shape[2:].numel() / features.shape[2:].numel()
    part = _squares(at_size_of(features, masks), side, offset)
    area = part.sum(dim=3)
    weight = part / area[..., None].clamp_min(1e-6)
    return weight @ _squares(features, side, offset).transpose(2, 3), area * pixels


def _squares(
    maps: Maps, side: int, offset: tuple[int, int]
) -> Float[Tensor, "n square channel pixel"]:
    """Return the pixels of every square of a grid, 0 outside of the map."""
    height, width = maps.shape[2:]
    top, left = offset
    padding = (left, -(width + left) % side, top, -(height + top) % side)
    split = functional.pad(maps.float(), padding).unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return split.permute(0, 2, 4, 1, 3, 5).flatten(4, 5).flatten(1, 2)


register(
    Method(
        name="parts",
        build=on_slices(loss_of_parts),
        reads="slices",
        reads_scan_label=True,
        trains_decoder=True,
    )
)
register(Method(name="simclr-slices", build=on_slices(loss_of_slices), reads="slices"))
