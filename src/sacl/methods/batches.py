"""What a pretraining step draws: query patches or dense slices of training scans, in two views."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from sacl import ranks
from sacl.errors import DataError
from sacl.losses.contrastive import patch_contrastive_loss
from sacl.methods import Pretraining, Recipe
from sacl.networks.device import channels_last, seeded
from sacl.networks.encoder import Encoder
from sacl.networks.projector import Embedder
from sacl.patches.store import COVERAGE_SCALE, IMAGE_SCALE, PatchStore
from sacl.patches.views import change_intensity, two_views
from sacl.training.sampler import Sampler, StepRules
from sacl.types import UNKNOWN

Relations = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From the patches of a batch to which pairs are positive, and which are candidates."""


@dataclass(frozen=True, eq=False)
class TrainingPatches:
    """The training patches: their rows in the store, and each one's organ, scan label and scan.

    `scan_label` is -1 where it is unknown; without scan-wise labels it is 0 everywhere.
    """

    rows: Int[np.ndarray, " n"]
    organ: Int[np.ndarray, " n"]
    scan_label: Int[np.ndarray, " n"]
    scan: Int[np.ndarray, " n"]


def training_patches(store: PatchStore, scan_labels: Sequence[str]) -> TrainingPatches:
    """Return the training patches of a store, with their classes by some scan-wise labels.

    A store without any is refused.
    """
    rows = np.flatnonzero((store.index["split"] == "train").to_numpy())
    if not len(rows):
        raise DataError("pretrain: no patch of a training scan; give the cohort a train split")
    scan_label = np.zeros(len(rows), np.int64)
    if scan_labels:
        scan_label = codes_of(store.joined_label(scan_labels)[rows], UNKNOWN)
    scan = codes_of(store.index["case_id"].iloc[rows], "")
    return TrainingPatches(rows, store.organ_code[rows], scan_label, scan)


class PatchViews:
    """A step's query patches in two views."""

    def __init__(
        self,
        store: PatchStore,
        rows: Int[np.ndarray, " n"],
        sampler: Sampler,
        recipe: Recipe,
        attention: bool,
    ) -> None:
        self.store, self.rows, self.attention = store, rows, attention
        self.sampler, self.recipe = sampler, recipe
        self.rules = StepRules(
            batch=recipe.batch, ranges=recipe.ranges, seed=recipe.seed, device=recipe.device
        )

    @property
    def pixels_per_step(self) -> int:
        """Pixels of a step's views."""
        return 2 * min(self.rules.batch, len(self.rows)) * self.store.meta.patch_size**2

    def pixels(self, positions: Int[np.ndarray, " n"]) -> Float[Tensor, "n channel i j"]:
        """Return the patches at these positions of `rows`, with their attention if it is read."""
        rows = self.rows[positions]
        channels = [self.rules.gather(self.store.images, rows) / IMAGE_SCALE]
        if self.attention:
            channels.append(self.rules.gather(self.store.attention, rows) / COVERAGE_SCALE)
        return torch.stack(channels, dim=1)

    def draw(self, step: int) -> tuple[Tensor, Int[np.ndarray, " patch"], torch.Generator]:
        """Return a step's views `[patch, 2, channel, i, j]`, the patches of the step, and the
        generator for what else is random.

        A rank makes the views of its own patches alone.
        """  # noqa: D205
        rng, generator = self.rules.randomness(step)
        positions = self.sampler.draw(rng)
        own = ranks.own(len(positions))
        generator.keep(own, len(positions))
        size, margin = self.store.meta.patch_size, self.store.margin
        views = two_views(self.pixels(positions[own]), self.rules.ranges, size, margin, generator)
        return views, positions, generator


def embedder_of(recipe: Recipe, *, attention: bool) -> Embedder:
    """Return an encoder of images, or of images with attention, and its projector."""
    with seeded(recipe.seed):
        return Embedder(Encoder(recipe.encoder_spec(attention=attention)), *recipe.projector)


def contrast_of(views: PatchViews, relations: Relations, facts: Mapping[str, int]) -> Pretraining:
    """Return the contrast between stored patches, by relations between those that a step draws."""
    recipe = views.recipe

    def loss(network: nn.Module, step: int) -> Tensor:
        pixels, positions, _ = views.draw(step)
        embedding = network(channels_last(pixels.flatten(0, 1))).unflatten(0, (-1, 2))
        drawn = torch.from_numpy(positions).to(recipe.device)
        return patch_contrastive_loss(embedding, *relations(drawn), recipe.temperature)

    return Pretraining(
        network=embedder_of(recipe, attention=views.attention),
        loss=loss,
        pixels_per_step=views.pixels_per_step,
        facts=facts,
    )


class SlicePairs(NamedTuple):
    """Two views of this rank's slices, one after the other: image, coarse labels, which slice."""

    image: Float[Tensor, "n 1 i j"]
    labels: Int[Tensor, "n i j"]
    slice: Int[Tensor, " n"]


class SliceViews:
    """A step's dense slices in two views, with their coarse labels; a store without any is refused.

    Slices in which the coarse map holds no organ are left out, unless none does.
    `scan_label` is that of every dense slice, -1 where unknown; without scan-wise labels 0.
    """

    def __init__(self, store: PatchStore, recipe: Recipe) -> None:
        if not len(store.dense_index):
            raise DataError(
                "pretrain: no dense slice of a training scan; give the cohort a train split"
            )
        self.store, self.size = store, store.meta.dense_size
        self.organs = len(store.meta.organs)
        self.margin = store.meta.dense_stored_size / self.size
        self.rules = StepRules(
            batch=recipe.batch, ranges=recipe.ranges, seed=recipe.seed, device=recipe.device
        )
        holds = np.flatnonzero(store.dense_index["holds_organ"].to_numpy(dtype=bool))
        self.rows = holds if len(holds) else np.arange(len(store.dense_index))
        self.weights = np.full(len(self.rows), 1 / len(self.rows))
        scan_label = np.zeros(len(store.dense_index), np.int64)
        if recipe.scan_labels:
            scan_label = codes_of(store.joined_dense_label(recipe.scan_labels), UNKNOWN)
        self.scan_label = torch.from_numpy(scan_label).to(recipe.device)

    @property
    def pixels_per_step(self) -> int:
        """Pixels of a step's views."""
        return 2 * min(self.rules.batch, len(self.store.dense_index)) * self.size**2

    def draw(self, step: int) -> tuple[SlicePairs, torch.Generator]:
        """Return a step's views, and the generator for what else is random."""
        rules = self.rules
        rng, generator = rules.randomness(step)
        count = min(rules.batch, len(self.rows))
        own = ranks.own(count)
        generator.keep(np.r_[own, count + own], 2 * count)
        drawn = self.rows[rules.rows(self.weights, count, rng)[own]]
        channels = [(self.store.dense_images, drawn), (self.store.dense_coarse, drawn)]
        pixels = rules.mapped(self.store.meta, channels, generator, views=2)
        return SlicePairs(
            change_intensity(pixels[:, :1].clone(), rules.ranges, generator),
            pixels[:, 1].long(),
            torch.from_numpy(drawn).to(rules.device).repeat(2),
        ), generator


def codes_of(
    values: Sequence[str] | pd.Series | Shaped[np.ndarray, " n"], unknown: str
) -> Int[np.ndarray, " n"]:
    """Return names as integers, by rising name; -1 for the unknown one."""
    codes, names = pd.factorize(pd.Series(values))
    known = np.asarray(names, dtype=str)
    ranks = np.where(known == unknown, -1, known.argsort().argsort())
    return ranks[codes].astype(np.int64)
