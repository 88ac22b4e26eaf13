"""Pretraining on dense slices, most of it of encoder and decoder together from coarse label maps.

- `semantic`, `organ` with pooled queries: an organ's query is the mean of the features under its
  coarse mask (attention as pooling), at the encoder's coarsest map and at the decoder's finest; its
  class is organ x scan-wise label, or organ. The organs' surroundings are a class of their own.
  Queries of parts: at the decoder's finest map, every square of a grid, which lies anew in every
  step, has a query of its own for the part of each mask in it.
- `simclr-slices`: contrast between slices, each alike its own other view only (Chen et al.,
  "SimCLR", ICML 2020). It reads no coarse label and trains no decoder.
- `pixel`: supervised contrast between pixels, classes by coarse label (Wang et al., ICCV 2021, doi
  10.1109/ICCV48922.2021.00721), without their memory bank.
- `self-training`: soft Dice plus cross-entropy against the coarse label maps.
- `mim`: masked image modeling, mean squared error of hidden blocks (Xie et al., "SimMIM", CVPR
  2022, doi 10.1109/CVPR52688.2022.00943).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sacl.losses.contrastive import Relation, contrastive_loss, semantic_relations
from sacl.losses.segmentation import dense_loss
from sacl.networks.decoder import resize
from sacl.networks.dense_pretrainer import DensePretrainer
from sacl.networks.device import channels_last
from sacl.networks.encoder import pooled
from sacl.patches.pooling import organ_masks, pool_parts, pool_under, shown
from sacl.patches.store import IMAGE_SCALE, PatchStore
from sacl.patches.views import ViewRanges, change_intensity, random_affine, resample
from sacl.training.finetune import StepRules

_SURROUND_SHARE = 1 / 16
"""How far the organs' surroundings reach, in units of the slice's side."""
_PART_SHARE = 1 / 8
"""Side of a square that holds a part of an organ, in units of the slice's side."""
_MOST_PARTS = 4096
"""Parts in a step at most, since all are compared with all; of more, so many are drawn."""
_LEAST_PIXELS = 4
_PIXELS_PER_CLASS = 64
_BLOCK_SHARE = 1 / 8
"""Side of a hidden block in units of the slice's side."""
_HIDDEN = 0.6


class Views(NamedTuple):
    """Two views of every slice, one after the other: image, coarse labels, which slice it is."""

    image: Tensor
    labels: Tensor
    slice: Tensor


@dataclass(frozen=True, eq=False)
class DensePretraining:
    """What a step does, whatever the strategy.

    Args:
        store: With dense slices of the training scans and their coarse labels.
        rules: Slices per step, ranges of the views, seed and device.
        scan_label: Scan-wise label of every dense slice, integers, -1 where unknown.
        temperature: Of the contrastive losses.
    """

    store: PatchStore
    rules: StepRules
    scan_label: np.ndarray
    temperature: float

    @property
    def organs(self) -> int:
        """Number of organs."""
        return len(self.store.meta.organs)

    def views(self, step: int) -> tuple[Views, torch.Generator]:
        """Return a step's views, and the generator for what else is random."""
        rules, meta = self.rules, self.store.meta
        rng, generator = rules.randomness(step)
        weights = np.full(len(self._rows), 1 / len(self._rows))
        drawn = self._rows[rules.rows(weights, min(rules.batch, len(self._rows)), rng)]
        image = rules.gather(self.store.dense_images, drawn) / IMAGE_SCALE
        coarse = rules.gather(self.store.dense_coarse, drawn)
        stored = torch.stack([image, coarse], dim=1).repeat(2, 1, 1, 1)
        theta = random_affine(len(stored), rules.ranges, generator, rules.device)
        scale = meta.dense_stored_size / meta.dense_size
        pixels = resample(stored, theta, meta.dense_size, scale, nearest_channels=(1,))
        return Views(
            change_intensity(pixels[:, :1].clone(), rules.ranges, generator),
            pixels[:, 1].long(),
            torch.from_numpy(drawn).to(rules.device).repeat(2),
        ), generator

    @property
    def _rows(self) -> np.ndarray:
        """Return the dense slices in which the coarse map holds an organ, all where none does."""
        holds = np.flatnonzero(self.store.dense_index["holds_organ"].to_numpy(dtype=bool))
        return holds if len(holds) else np.arange(len(self.store.dense_index))

    def pooled(self, strategy: Relation, parts: bool = False) -> Callable[[nn.Module, int], Tensor]:
        """Return the loss of queries pooled under the attention, whole or in parts."""

        def loss(network: nn.Module, step: int) -> Tensor:
            views, generator = self.views(step)
            features = network(channels_last(views.image))
            side = views.labels.shape[-1]
            masks = organ_masks(views.labels, self.organs, max(1, round(_SURROUND_SHARE * side)))
            n, region = shown(masks, _LEAST_PIXELS).nonzero(as_tuple=True)
            relations = self._relations(views.slice[n], region, strategy)
            whole = network.project_coarsest(pool_under(features.coarsest, masks)[n, region])
            total = contrastive_loss(whole, *relations, self.temperature)
            if parts:
                fine, n, region = _parts(features.finest, masks, generator)
                relations = self._relations(views.slice[n], region, strategy)
            else:
                fine = pool_under(features.finest, masks)[n, region]
            fine = network.project_finest(fine)
            return total + contrastive_loss(fine, *relations, self.temperature)

        return loss

    def _relations(
        self, of_slice: Tensor, region: Tensor, strategy: Relation
    ) -> tuple[Tensor, Tensor]:
        """Return the relations of queries, each of a region (0: surroundings) in a dense slice."""
        scan_label = torch.from_numpy(self.scan_label).to(region.device)[of_slice]
        # What surrounds the organs looks alike in every phase: one class, whatever the label.
        scan_label = torch.where(region == 0, 0, scan_label)
        return semantic_relations(region, scan_label, strategy)

    def simclr(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss of contrast between whole slices; alike are the views of one."""
        views, _ = self.views(step)
        net = cast(DensePretrainer, network)
        embedding = net.project_coarsest(pooled(net.encoder(channels_last(views.image))))
        same = views.slice[:, None] == views.slice[None, :]
        return contrastive_loss(embedding, same, torch.ones_like(same), self.temperature)

    def pixel(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss of contrast between pixels; every class brings as many of them."""
        views, generator = self.views(step)
        features = network(channels_last(views.image))
        labels = views.labels.flatten()
        drawn = torch.rand(len(labels), generator=generator, device=generator.device)
        key = labels + drawn.to(labels.device)
        order = key.argsort()
        first = torch.searchsorted(labels[order], torch.arange(self.organs + 2).to(labels.device))
        chosen = torch.cat(
            [
                order[a : min(a + _PIXELS_PER_CLASS, b)]
                for a, b in itertools.pairwise(first.tolist())
            ]
        )
        finest = resize(features.finest, views.labels.shape[1:])
        flat = finest.movedim(1, -1).flatten(0, 2)[chosen]
        same = labels[chosen][:, None] == labels[chosen][None, :]
        embedding = network.project_finest(flat.float())
        return contrastive_loss(embedding, same, torch.ones_like(same), self.temperature)

    def self_training(self, network: nn.Module, step: int) -> Tensor:
        """Return the segmentation loss against the coarse label maps."""
        views, _ = self.views(step)
        logit = cast(DensePretrainer, network).outputs(channels_last(views.image))
        annotated = torch.ones(len(logit), self.organs, dtype=torch.bool, device=logit.device)
        return dense_loss(logit, views.labels, annotated)

    def masked_image(self, network: nn.Module, step: int) -> Tensor:
        """Return the mean squared error of the hidden blocks."""
        views, generator = self.views(step)
        side = views.image.shape[-1]
        blocks = round(1 / _BLOCK_SHARE)
        shape = (len(views.image), 1, blocks, blocks)
        hidden = torch.rand(shape, generator=generator, device=generator.device) < _HIDDEN
        hidden = nn.functional.interpolate(hidden.float(), size=(side, side)).to(views.image.device)
        made = cast(DensePretrainer, network).outputs(channels_last(views.image * (1 - hidden)))
        error = (made[:, :1] - views.image).square()
        return (error * hidden).sum() / hidden.sum().clamp_min(1)


def _parts(
    maps: Tensor, masks: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features of the parts that a grid makes, and each one's image and region."""
    square = max(1, round(_PART_SHARE * maps.shape[-1]))
    moved = torch.randint(square, (2,), generator=generator, device=generator.device)
    down, right = moved.tolist()
    feature, area = pool_parts(maps, masks, square, (down, right))
    found = (area >= _LEAST_PIXELS).nonzero()
    drawn = torch.randperm(len(found), generator=generator, device=generator.device)
    n, at, region = found[drawn[:_MOST_PARTS].to(found.device)].unbind(dim=1)
    return feature[n, at, region], n, region


def rules_of(batch: int, ranges: ViewRanges, seed: int, device: torch.device) -> StepRules:
    """Return the rules of a dense pretraining's steps."""
    return StepRules(batch=batch, ranges=ranges, seed=seed, device=device)


def loss_of(
    task: DensePretraining, strategy: str, parts: bool = False
) -> Callable[[nn.Module, int], Tensor]:
    """Return the loss of a strategy's steps; `parts` matters to pooled queries."""
    if strategy in get_args(Relation):
        return task.pooled(cast(Relation, strategy), parts)
    return {
        "simclr-slices": task.simclr,
        "pixel": task.pixel,
        "self-training": task.self_training,
        "mim": task.masked_image,
    }[strategy]
