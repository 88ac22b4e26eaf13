"""Queries pooled under the attention: encoder and decoder learn together, from dense slices.

An organ's query is the mean of the features under its coarse mask, at the encoder's coarsest map
and at the decoder's finest. Two queries are alike where organ and scan-wise label are the same. The
organs' surroundings are a class of their own: what a segmenter has to tell the organs from.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sacl import ranks
from sacl.losses.contrastive import contrastive_loss, semantic_relations
from sacl.methods import Method, Pretraining, Recipe, register
from sacl.methods.batches import SliceViews
from sacl.networks.device import channels_last, seeded
from sacl.networks.projector import DensePretrainer
from sacl.patches.store import PatchStore

SURROUND_SHARE = 1 / 16
"""How far the organs' surroundings reach, in units of the slice's side."""
LEAST_PIXELS = 4
"""A mask of fewer pixels makes no query."""


def pooled_pretraining(store: PatchStore, recipe: Recipe) -> Pretraining:
    """Return the contrast between queries that are pooled under the organs' masks."""
    views = SliceViews(store, recipe)

    def loss(network: nn.Module, step: int) -> Tensor:
        slices, _ = views.draw(step)
        features = network(channels_last(slices.image))
        masks = region_masks(slices.labels, views.organs)
        n, region = large_enough(masks).nonzero(as_tuple=True)
        classes, _ = ranks.gathered(torch.stack([region, views.scan_label[slices.slice[n]]], 1))
        relations = region_relations(*classes.unbind(dim=1))
        coarsest = network.project_coarsest(pool_under(features.coarsest, masks)[n, region])
        finest = network.project_finest(pool_under(features.finest, masks)[n, region])
        total = contrastive_loss(coarsest, *relations, recipe.temperature)
        return total + contrastive_loss(finest, *relations, recipe.temperature)

    with seeded(recipe.seed):
        network = DensePretrainer(
            recipe.encoder_spec(), recipe.decoder, views.size, recipe.projector
        )
    return Pretraining(
        network=network,
        loss=loss,
        pixels_per_step=views.pixels_per_step,
        facts={"slices": len(store.dense_index)},
    )


def region_relations(
    region: Int[Tensor, " n"], scan_label: Int[Tensor, " n"]
) -> tuple[Bool[Tensor, "n n"], Bool[Tensor, "n n"]]:
    """Return which queries are positive, and which candidates; region 0 is the surroundings.

    What surrounds the organs looks alike in every phase: one class, whatever the label.
    """
    return semantic_relations(region, torch.where(region == 0, 0, scan_label))


def region_masks(labels: Int[Tensor, "n i j"], organs: int) -> Float[Tensor, "n region i j"]:
    """Return the masks of all organs, and before them that of the background around them."""
    surround = max(1, round(SURROUND_SHARE * labels.shape[-1]))
    one_hot = functional.one_hot(labels.long(), organs + 1).movedim(-1, 1).float()
    inside = (labels > 0).float()[:, None]
    # A square's maximum is that of its rows' maxima: one axis after the other costs far less.
    side = 2 * surround + 1
    near = functional.max_pool2d(inside, (side, 1), stride=1, padding=(surround, 0))
    near = functional.max_pool2d(near, (1, side), stride=1, padding=(0, surround))
    return torch.cat([near - inside, one_hot[:, 1:]], dim=1)


def pool_under(
    features: Float[Tensor, "n channel a b"], masks: Float[Tensor, "n region i j"]
) -> Float[Tensor, "n region channel"]:
    """Return the mean feature under each mask; 0 where a mask is empty.

    Masks finer than the features are averaged down to their size first.
    """
    masks = at_size_of(features, masks)
    weight = masks / masks.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    return torch.einsum("ncij,nrij->nrc", features.float(), weight)


def at_size_of(
    features: Float[Tensor, "n channel a b"], masks: Float[Tensor, "n region i j"]
) -> Float[Tensor, "n region a b"]:
    """Return masks that are averaged down to the size of the features where they are finer."""
    if masks.shape[2:] == features.shape[2:]:
        return masks
    return functional.adaptive_avg_pool2d(masks, features.shape[2:])


def large_enough(masks: Float[Tensor, "n region i j"]) -> Bool[Tensor, "n region"]:
    """Return which masks are large enough to make a query."""
    return masks.sum(dim=(2, 3)) >= LEAST_PIXELS


register(
    Method(
        name="pooled",
        build=pooled_pretraining,
        reads="slices",
        reads_scan_label=True,
        trains_decoder=True,
    )
)
