"""What a pretraining step draws: query patches, dense slices or query volumes, in two views."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from sacl.networks.coarse import CoarseNetwork, CoarseSpec, Down, Up
from sacl.networks.decoder import build_decoder
from sacl.networks.device import channels_last, seeded
from sacl.networks.encoder import Encoder, State, with_inputs
from sacl.networks.projector import Embedder
from sacl.patches.store import COVERAGE_SCALE, IMAGE_SCALE, PatchStore
from sacl.patches.views import BatchGenerator, change_intensity, two_views
from sacl.training.coarse import CoarseCase, Place, change_voxels, cut_around, place_in, turn_crops
from sacl.training.sampler import BalancedSampler, Sampler, StepRules, step_generator
from sacl.types import UNKNOWN, join_labels

SURROUND_SHARE = 1 / 16
"""How far the organs' surroundings reach, in units of the slice's, or the crop's widest, side."""


@dataclass(frozen=True, eq=False)
class QueryVolumes:
    """Training scans on a network's grid, with the coarse map in place of labels: what is queried.

    A query is an organ of a scan, as the map has it. `scan_labels` are those of each scan;
    `weights` are what the network starts from, random ones where there are none.
    """

    spec: CoarseSpec
    cases: Sequence[CoarseCase]
    scan_labels: Sequence[Mapping[str, str]]
    weights: State | None = None

    @cached_property
    def queries(self) -> Int[np.ndarray, "2 query"]:
        """The scan and the organ of each query, from 0."""
        pairs = [(n, int(m) - 1) for n, case in enumerate(self.cases) for m in case.present]
        return np.array(pairs, np.int64).reshape(-1, 2).T

    def joined_label(self, names: Sequence[str]) -> Shaped[np.ndarray, " query"]:
        """Return the combination of some scan-wise labels of every query's scan."""
        of_scans = [join_labels([of.get(n, UNKNOWN) for n in names]) for of in self.scan_labels]
        return np.array(of_scans)[self.queries[0]]

    def place(self, query: int, generator: torch.Generator) -> Place:
        """Return the scan of a query and a random voxel of its organ."""
        scan, organ = self.queries[:, query]
        return place_in(self.cases[scan], int(organ) + 1, generator)

    def encoder_and_decoder(self, *, attention: bool = False) -> tuple[Down, Up]:
        """Return the network's two ways; with attention the encoder's weights of it start at 0."""
        network = CoarseNetwork(self.spec)
        if self.weights is not None:
            network.load_state_dict(self.weights)
        if attention:
            state = with_inputs(network.down.state_dict(), 2)
            network.down = Down(self.spec, in_channels=2)
            network.down.load_state_dict(state)
        return network.down, network.up


Queries = PatchStore | QueryVolumes
"""What a method learns from."""
Relations = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From the patches of a batch to which pairs are positive, and which are candidates."""


@dataclass(frozen=True, eq=False)
class TrainingPatches:
    """The training patches, or queries: their rows in the store, organ, scan label and scan.

    `scan_label` is -1 where it is unknown; without scan-wise labels it is 0 everywhere.
    """

    rows: Int[np.ndarray, " n"]
    organ: Int[np.ndarray, " n"]
    scan_label: Int[np.ndarray, " n"]
    scan: Int[np.ndarray, " n"]


def training_patches(store: Queries, scan_labels: Sequence[str]) -> TrainingPatches:
    """Return the training patches of a store, with their classes by some scan-wise labels.

    A store without any is refused.
    """
    if isinstance(store, QueryVolumes):
        scan, organ = store.queries
        rows = np.arange(len(scan))
    else:
        rows = np.flatnonzero((store.index["split"] == "train").to_numpy())
        scan, organ = codes_of(store.index["case_id"].iloc[rows], ""), store.organ_code[rows]
    if not len(rows):
        raise DataError("pretrain: no patch of a training scan; give the cohort a train split")
    scan_label = np.zeros(len(rows), np.int64)
    if scan_labels:
        scan_label = codes_of(store.joined_label(scan_labels)[rows], UNKNOWN)
    return TrainingPatches(rows, organ, scan_label, scan)


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
        self.pixels_per_step = 2 * min(recipe.batch, len(rows)) * store.meta.patch_size**2
        self.rules = StepRules(
            batch=recipe.batch, ranges=recipe.ranges, seed=recipe.seed, device=recipe.device
        )

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


@dataclass(frozen=True, eq=False)
class CropViews:
    """A step's query volumes in two views: crops around organs, with their attention if read."""

    store: QueryVolumes
    sampler: Sampler
    recipe: Recipe
    attention: bool = False

    @property
    def pixels_per_step(self) -> int:
        """Voxels of a step's views."""
        count = min(self.recipe.batch, self.store.queries.shape[1])
        return 2 * count * math.prod(self.store.spec.crop)

    def crops(
        self, step: int, dense: bool
    ) -> tuple[Tensor, Int[np.ndarray, " query"], BatchGenerator]:
        """Return this rank's crops `[2 own, 2, i, j, k]`, all first views before the second ones.

        Beside them the queries of the step, and the generator for what else is random. The second
        channel is the share of a voxel that the query's organ covers, or of `dense` ones the label.
        """
        rng, generator = step_generator(self.recipe.seed, step), BatchGenerator()
        generator.manual_seed(int(rng.integers(2**62)))
        drawn = self.sampler.draw(rng)
        own, count = ranks.own(len(drawn)), len(drawn)
        generator.keep(np.r_[own, count + own], 2 * count)
        places = (self.store.place(query, generator) for query in drawn.tolist())
        crop = self.store.spec.crop
        cases, stored = cut_around(places, crop, own, generator)
        if not dense:
            label = torch.from_numpy(self.store.queries[1, drawn[own]] + 1)
            stored[:, 1] = (stored[:, 1] == label[:, None, None, None]).float()
        stored = stored.to(self.recipe.device).repeat(2, 1, 1, 1, 1)
        crops = turn_crops(stored, cases * 2, crop, generator, (1,) if dense else ())
        crops[:, :1] = change_voxels(crops[:, :1], self.recipe.ranges, generator)
        return crops, drawn, generator

    def draw(self, step: int) -> tuple[Tensor, Int[np.ndarray, " query"], torch.Generator]:
        """Return a step's views `[query, 2, channel, i, j, k]`, as `PatchViews.draw` does."""
        crops, drawn, generator = self.crops(step, dense=False)
        views = crops[:, : 1 + self.attention].unflatten(0, (2, -1))
        return views.transpose(0, 1), drawn, generator


def query_views(
    store: Queries, patches: TrainingPatches, sampler: Sampler, recipe: Recipe, *, attention: bool
) -> PatchViews | CropViews:
    """Return the views of query patches, or of query volumes."""
    if isinstance(store, QueryVolumes):
        return CropViews(store, sampler, recipe, attention)
    return PatchViews(store, patches.rows, sampler, recipe, attention)


def embedder_of(store: Queries, recipe: Recipe, *, attention: bool) -> Embedder:
    """Return an encoder of images, or of images with attention, and its projector."""
    with seeded(recipe.seed):
        if isinstance(store, QueryVolumes):
            encoder, _ = store.encoder_and_decoder(attention=attention)
            return Embedder(encoder, *recipe.projector)
        return Embedder(Encoder(recipe.encoder_spec(attention=attention)), *recipe.projector)


def contrast_of(
    views: PatchViews | CropViews, relations: Relations, facts: Mapping[str, int]
) -> Pretraining:
    """Return the contrast between stored patches, by relations between those that a step draws."""
    recipe = views.recipe

    def loss(network: nn.Module, step: int) -> Tensor:
        pixels, positions, _ = views.draw(step)
        embedding = network(channels_last(pixels.flatten(0, 1))).unflatten(0, (-1, 2))
        drawn = torch.from_numpy(positions).to(recipe.device)
        return patch_contrastive_loss(embedding, *relations(drawn), recipe.temperature)

    return Pretraining(
        network=embedder_of(views.store, recipe, attention=views.attention),
        loss=loss,
        pixels_per_step=views.pixels_per_step,
        facts=facts,
    )


class SlicePairs(NamedTuple):
    """Two views of this rank's slices, one after the other: image, coarse labels, which slice.

    Or of query volumes.
    """

    image: Float[Tensor, "n 1 ..."]
    labels: Int[Tensor, "n ..."]
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
        self.store, self.recipe, self.size = store, recipe, store.meta.dense_size
        self.reach = (max(1, round(SURROUND_SHARE * self.size)),) * 2
        self.facts = {"slices": len(store.dense_index)}
        self.pixels_per_step = 2 * min(recipe.batch, len(store.dense_index)) * self.size**2
        self.organs = len(store.meta.organs)
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

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """Return encoder and decoder of the slices."""
        encoder = Encoder(self.recipe.encoder_spec())
        how = (encoder.channels, encoder.strides, self.size)
        return encoder, build_decoder(self.recipe.decoder, *how)


class DenseCropViews:
    """A step's query volumes in two views, with the coarse labels of all that they show.

    `scan_label` is that of every query, -1 where unknown; without scan-wise labels 0.
    """

    def __init__(self, store: QueryVolumes, recipe: Recipe) -> None:
        patches, spec = training_patches(store, recipe.scan_labels), store.spec
        # A crop shows several organs: those around which crops lie are to differ.
        how = (patches.organ, patches.scan_label, patches.scan, recipe.batch)
        sampler = BalancedSampler(*how, scans_per_class=1)
        self.views = CropViews(store, sampler, recipe)
        self.pixels_per_step, self.organs = self.views.pixels_per_step, len(spec.organs)
        widest_mm = max(n * mm for n, mm in zip(spec.crop, spec.spacing_mm, strict=True))
        self.reach = tuple(round(SURROUND_SHARE * widest_mm / mm) for mm in spec.spacing_mm)
        self.scan_label = torch.from_numpy(patches.scan_label).to(recipe.device)
        self.facts = {"volumes": len(store.cases), "queries": len(patches.rows)}

    def draw(self, step: int) -> tuple[SlicePairs, torch.Generator]:
        """Return a step's views, and the generator for what else is random."""
        crops, drawn, generator = self.views.crops(step, dense=True)
        own = torch.from_numpy(drawn[ranks.own(len(drawn))]).to(crops.device)
        return SlicePairs(crops[:, :1], crops[:, 1].long(), own.repeat(2)), generator

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """Return encoder and decoder of the volumes."""
        return self.views.store.encoder_and_decoder()


def dense_views(store: Queries, recipe: Recipe) -> SliceViews | DenseCropViews:
    """Return the views of dense slices, or of query volumes with all their labels."""
    if isinstance(store, QueryVolumes):
        return DenseCropViews(store, recipe)
    return SliceViews(store, recipe)


def codes_of(
    values: Sequence[str] | pd.Series | Shaped[np.ndarray, " n"], unknown: str
) -> Int[np.ndarray, " n"]:
    """Return names as integers, by rising name; -1 for the unknown one."""
    codes, names = pd.factorize(pd.Series(values))
    known = np.asarray(names, dtype=str)
    ranks = np.where(known == unknown, -1, known.argsort().argsort())
    return ranks[codes].astype(np.int64)
