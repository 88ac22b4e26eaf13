"""The segmentation tasks: a step's slices or patches, their augmentation and the loss.

Copy-paste puts a square of one slice, with its labels, into another one (Bai et al., "Bidirectional
copy-paste", CVPR 2023, doi 10.1109/CVPR52729.2023.01108). Labels of unlabeled slices are a
teacher's (`training.teacher`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from sacl import ranks
from sacl.errors import DataError
from sacl.losses.segmentation import class_weights, dense_loss, query_loss
from sacl.networks.device import channels_last
from sacl.patches.store import COVERAGE_SCALE, IMAGE_SCALE, PatchStore
from sacl.patches.views import (
    BatchGenerator,
    change_intensity,
    per_sample,
    random_affine,
    resample,
)
from sacl.training.sampler import StepRules, slice_weights

PASTED_SHARE = 2 / 3
"""Side of a pasted square in units of the image's side, as published."""

BALANCE = 0.5
"""Exponent of the class weights of steps on labeled slices alone, without which a short training
learns no small organ. In the steps with a teacher the classes weigh alike (`training.teacher`)."""

TRUST = 0.5
"""How much a pixel with the teacher's label counts; one that was drawn by hand counts 1."""

Labeling = Callable[[Float[Tensor, "n 1 ..."]], Int[Tensor, "n ..."]]
"""From images to the labels that a teacher gives them."""


class Labeled(NamedTuple):
    """Labeled slices or crops of volumes, and which organs were looked for in each of them."""

    image: Float[Tensor, "n 1 ..."]
    labels: Int[Tensor, "n ..."]
    annotated: Bool[Tensor, "n organ"]


def loss_of_levels(
    logits: Float[Tensor, "n class ..."] | Sequence[Float[Tensor, "n class _i _j _k"]],
    images: Labeled,
    weights: Float[Tensor, " class"] | None = None,
    counts: Float[Tensor, "n ..."] | None = None,
) -> Float[Tensor, ""]:
    """Return soft Dice plus weighted cross-entropy, averaged over the levels of a network.

    `weights` are those of the classes, `counts` how much each voxel counts; all alike where unset.

    A level counts half of the one above (deep supervision, as in nnU-Net): its labels are those at
    the middle of its voxels. Organs that a case does not have annotated are part of its background.
    """
    total, share = images.image.new_zeros(()), 1.0
    for logit in [logits] if isinstance(logits, Tensor) else logits:
        steps = [n // m for n, m in zip(images.labels.shape[1:], logit.shape[2:], strict=True)]
        middle = (slice(None), *(slice(step // 2, None, step) for step in steps))
        counted = None if counts is None else counts[middle].flatten(2)
        # The loss is written for two axes; it does not mind which voxels are neighbors.
        labels = images.labels[middle].flatten(2)
        total = total + share * dense_loss(
            logit.flatten(3), labels, images.annotated, weights, counted
        )
        share /= 2
    return total / (2 - 2 * share)


def random_squares(
    count: int, size: int, generator: torch.Generator, device: torch.device
) -> Bool[Tensor, "count size size"]:
    """Draw a square anywhere inside every image: True inside."""
    side = round(PASTED_SHARE * size)
    places = size - side + 1
    start = per_sample(partial(torch.randint, places), [count, 2, 1], generator).to(device)
    position = torch.arange(size, device=device)
    inside = (position >= start) & (position < start + side)
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def paste(source: Labeled, target: Labeled, inside: Bool[Tensor, "n ..."]) -> Labeled:
    """Return the target with the source's image and labels inside a mask.

    An organ counts as annotated where it is in both, or where nothing was pasted.
    """
    pasted = inside.flatten(1).any(dim=1)[:, None]
    return Labeled(
        torch.where(inside[:, None], source.image, target.image),
        torch.where(inside, source.labels, target.labels),
        target.annotated & (source.annotated | ~pasted),
    )


def labeled_rows(
    reference_row: Integer[np.ndarray, " n"], what: str
) -> Integer[np.ndarray, " labeled"]:
    """Return which rows of a store have a reference.

    Raises:
        DataError: none has.
    """
    rows = np.flatnonzero(reference_row >= 0)
    if len(rows) == 0:
        raise DataError(
            f"finetune: the labeled scans have no {what} to train on; label training scans, or look"
            " at 2-coarse/coverage.csv"
        )
    return rows


class DenseTask:
    """All organs at once from dense slices.

    Half of the draws go to all labeled slices evenly, the other half to every organ as often, and
    within it to every slice that holds it: rare organs are seen, and so is the background.
    `balance` is the exponent of the class weights in the cross-entropy; `copy_paste` the share of
    the slices that take a square, and its labels, from another one of the batch.
    """

    def __init__(
        self, store: PatchStore, rules: StepRules, balance: float = 0.0, copy_paste: float = 0.0
    ) -> None:
        self.store, self.rules, self.copy_paste = store, rules, copy_paste
        reference_row = store.dense_index["reference_row"].to_numpy()
        self.rows = labeled_rows(reference_row, "slice")
        self.unlabeled = np.flatnonzero(reference_row < 0)
        self.reference_rows = reference_row[self.rows]
        labels = 1 + len(store.meta.organs)
        # One by one: counting takes eight bytes per pixel, and a cohort has gigabytes of them.
        slices = (store.dense_references[row].ravel() for row in self.reference_rows)
        counts = np.stack([np.bincount(pixels, minlength=labels) for pixels in slices])
        self.class_weight = class_weights(torch.from_numpy(counts.sum(axis=0)).float(), balance)
        self.class_weight = self.class_weight.to(rules.device)
        listed = [set(str(n).split(";")) for n in store.dense_index["annotated"].iloc[self.rows]]
        annotated = np.array([[o in names for o in store.meta.organs] for names in listed])
        self.annotated = torch.from_numpy(annotated).to(rules.device)
        self.weights = slice_weights(counts[:, 1:] > 0)

    def slices(
        self,
        count: int,
        kept: Int[np.ndarray, " kept"],
        rng: np.random.Generator,
        generator: BatchGenerator,
    ) -> Labeled:
        """Draw a number of labeled slices and make some of them.

        Each goes through an affine map and a change of its intensity.
        """
        rules, store = self.rules, self.store
        rows = rules.rows(self.weights, count, rng)[kept]
        generator.keep(kept, count)
        channels = [
            (store.dense_images, self.rows[rows]),
            (store.dense_references, self.reference_rows[rows]),
        ]
        pixels = rules.mapped(store.meta, channels, generator)
        return Labeled(
            change_intensity(pixels[:, :1].clone(), rules.ranges, generator),
            pixels[:, 1].long(),
            self.annotated[torch.from_numpy(rows).to(rules.device)],
        )

    def batch(self, step: int) -> Labeled:
        """Return this rank's slices of a step."""
        rng, generator = self.rules.randomness(step)
        count, own = self.rules.batch, ranks.own(self.rules.batch)
        if self.copy_paste == 0:
            return self.slices(count, own, rng, generator)
        # What is pasted is of the slice before, which may be another rank's.
        before = (own - 1) % count
        made = np.union1d(own, before)
        slices = self.slices(count, made, rng, generator)
        generator.keep(own, count)
        inside = random_squares(len(own), slices.image.shape[-1], generator, self.rules.device)
        chosen = per_sample(torch.rand, [len(own)], generator)
        inside &= (chosen < self.copy_paste).to(inside.device)[:, None, None]
        rows = [torch.from_numpy(np.searchsorted(made, n)) for n in (before, own)]
        other, target = (Labeled(*(part[n.to(part.device)] for part in slices)) for n in rows)
        return paste(other, target, inside)

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss of one step."""
        slices = self.batch(step)
        return loss_of_levels(network(channels_last(slices.image)), slices, self.class_weight)

    def mixed(self, step: int, label: Labeling) -> tuple[Labeled, Float[Tensor, "n i j"] | None]:
        """Return this rank's mixed slices of a step, and how much each of their pixels counts.

        They are as many as in a labeled step: half of them labeled slices with a square of an
        unlabeled one, half the other way round. Where no slice is unlabeled, it is a labeled step.
        """
        if not len(self.unlabeled):
            return self.batch(step), None
        rules, store = self.rules, self.store
        rng, generator = rules.randomness(step)
        half = max(rules.batch // 2, 1)
        own = ranks.own(half)
        drawn = self.slices(half, own, rng, generator)
        alike = np.full(len(self.unlabeled), 1 / len(self.unlabeled))
        rows = self.unlabeled[rules.rows(alike, half, rng)[own]]
        image = rules.mapped(store.meta, [(store.dense_images, rows)], generator)
        labels = label(image)  # before the intensity changes
        image = change_intensity(image, rules.ranges, generator)
        other = Labeled(image, labels, torch.ones_like(drawn.annotated))
        inside = random_squares(len(own), image.shape[-1], generator, rules.device)
        mixed = (paste(drawn, other, inside), paste(other, drawn, inside))
        by_hand = torch.cat([inside, ~inside])
        slices = Labeled(*(torch.cat(parts) for parts in zip(*mixed, strict=True)))
        return slices, torch.where(by_hand, 1.0, TRUST)


class QueryTask:
    """An organ's binary mask from its patch; organs evenly, within an organ any patch.

    The attention of a labeled scan is that of coarse networks that never saw its subject, so that
    it errs in training as it will in prediction.
    """

    def __init__(self, store: PatchStore, rules: StepRules) -> None:
        self.store, self.rules = store, rules
        self.rows = labeled_rows(store.index["reference_row"].to_numpy(), "query patch")
        self.reference_rows = store.index["reference_row"].to_numpy()[self.rows]
        self.organ = store.organ_code[self.rows]
        held = np.bincount(self.organ, minlength=len(store.meta.organs))
        self.weights = 1.0 / held[self.organ] / np.count_nonzero(held)

    def batch(self, step: int) -> tuple[Float[Tensor, "n 2 i j"], Float[Tensor, "n 1 i j"]]:
        """Return this rank's images with attention, and the reference's coverage."""
        rules, meta = self.rules, self.store.meta
        rng, generator = rules.randomness(step)
        own = ranks.own(rules.batch)
        generator.keep(own, rules.batch)
        rows = rules.rows(self.weights, rules.batch, rng)[own]
        channels = (
            rules.gather(self.store.images, self.rows[rows]) / IMAGE_SCALE,
            rules.gather(self.store.attention, self.rows[rows]) / COVERAGE_SCALE,
            rules.gather(self.store.references, self.reference_rows[rows]) / COVERAGE_SCALE,
        )
        theta = random_affine(len(rows), rules.ranges, generator, rules.device)
        pixels = resample(torch.stack(channels, 1), theta, meta.patch_size, self.store.margin)
        image = change_intensity(pixels[:, :1].clone(), rules.ranges, generator)
        return torch.cat([image, pixels[:, 1:2]], 1), pixels[:, 2:]

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss of one step."""
        pixels, reference = self.batch(step)
        return query_loss(network(channels_last(pixels)), reference)
