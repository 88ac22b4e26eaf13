"""Queries pooled under the attention: encoder and decoder learn together, from slices or volumes.

An organ's query is the mean of the features under its coarse mask, at the encoder's coarsest map
and at the decoder's finest. Two queries are alike where organ and scan-wise label are the same. The
organs' surroundings are a class of their own: what a segmenter has to tell the organs from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sacl import ranks
from sacl.losses.contrastive import contrastive_loss, semantic_relations
from sacl.methods import Method, Pretraining, Recipe, register
from sacl.methods.batches import Queries, dense_views
from sacl.networks.device import channels_last, seeded
from sacl.networks.projector import DensePretrainer

LEAST_PIXELS = 4
"""A mask of fewer pixels makes no query."""


def pooled_pretraining(store: Queries, recipe: Recipe) -> Pretraining:
    """Return the contrast between queries that are pooled under the organs' masks."""
    views = dense_views(store, recipe)

    def loss(network: nn.Module, step: int) -> Tensor:
        slices, _ = views.draw(step)
        features = network(channels_last(slices.image))
        masks = region_masks(slices.labels, views.organs, views.reach)
        n, region = large_enough(masks).nonzero(as_tuple=True)
        classes, _ = ranks.gathered(torch.stack([region, views.scan_label[slices.slice[n]]], 1))
        relations = region_relations(*classes.unbind(dim=1))
        coarsest = network.project_coarsest(pool_under(features.coarsest, masks)[n, region])
        finest = network.project_finest(pool_under(features.finest, masks)[n, region])
        total = contrastive_loss(coarsest, *relations, recipe.temperature)
        return total + contrastive_loss(finest, *relations, recipe.temperature)

    with seeded(recipe.seed):
        network = DensePretrainer(*views.parts(), recipe.projector)
    return Pretraining(
        network=network,
        loss=loss,
        pixels_per_step=views.pixels_per_step,
        facts=views.facts,
    )


def region_relations(
    region: Int[Tensor, " n"], scan_label: Int[Tensor, " n"]
) -> tuple[Bool[Tensor, "n n"], Bool[Tensor, "n n"]]:
    """Return which queries are positive, and which candidates; region 0 is the surroundings.

    What surrounds the organs looks alike in every phase: one class, whatever the label.
    """
    return semantic_relations(region, torch.where(region == 0, 0, scan_label))


def region_masks(
    labels: Int[Tensor, "n ..."], organs: int, reach: Sequence[int]
) -> Float[Tensor, "n region ..."]:
    """Return the masks of all organs, and before them that of the background around them.

    It reaches so many pixels, or voxels, along each axis.
    """
    one_hot = functional.one_hot(labels.long(), organs + 1).movedim(-1, 1).float()
    inside = near = (labels > 0).float()[:, None]
    pool = functional.max_pool2d if labels.ndim == 3 else functional.max_pool3d
    # A square's maximum is that of its rows' maxima: one axis after the other costs far less.
    for axis in range(labels.ndim - 1):
        along = [n if a == axis else 0 for a, n in enumerate(reach)]
        near = pool(near, [2 * n + 1 for n in along], stride=1, padding=along)
    return torch.cat([near - inside, one_hot[:, 1:]], dim=1)


def pool_under(
    features: Float[Tensor, "n channel ..."], masks: Float[Tensor, "n region ..."]
) -> Float[Tensor, "n region channel"]:
    """Return the mean feature under each mask; 0 where a mask is empty.

    Masks finer than the features are averaged down to their size first.
    """
    masks = at_size_of(features, masks).flatten(2)
    weight = masks / masks.sum(dim=2, keepdim=True).clamp_min(1e-6)
    return torch.einsum("ncx,nrx->nrc", features.flatten(2).float(), weight)


def at_size_of(
    features: Float[Tensor, "n channel ..."], masks: Float[Tensor, "n region ..."]
) -> Float[Tensor, "n region ..."]:
    """Return masks that are averaged down to the size of the features where they are finer."""
    if masks.shape[2:] == features.shape[2:]:
        return masks
    pool = functional.adaptive_avg_pool2d if masks.ndim == 4 else functional.adaptive_avg_pool3d
    return pool(masks, features.shape[2:])


def large_enough(masks: Float[Tensor, "n region ..."]) -> Bool[Tensor, "n region"]:
    """Return which masks are large enough to make a query."""
    return masks.flatten(2).sum(dim=2) >= LEAST_PIXELS


register(
    Method(
        name="pooled",
        build=pooled_pretraining,
        reads="slices",
        reads_scan_label=True,
        trains_decoder=True,
        on_volumes=True,
    )
)
