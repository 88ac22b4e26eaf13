"""The segmentation tasks: a step's slices or patches, their augmentation and the loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sacl.io.patch_store import COVERAGE_SCALE, IMAGE_SCALE, PatchStore
from sacl.losses.segmentation import class_weights, dense_loss, query_loss
from sacl.patches.corruption import AttentionErrors, corrupt, measure_errors
from sacl.patches.views import ViewRanges, change_intensity, random_affine, resample
from sacl.training.contrastive import channels_last
from sacl.training.sampler import step_generator


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """What both tasks share.

    `frozen` is a part of the network that is held in eval mode, so that its batch statistics stay
    those of its pretraining.
    """

    batch: int
    ranges: ViewRanges
    seed: int
    device: torch.device
    frozen: nn.Module | None = None

    def draw(self, weights: np.ndarray, step: int) -> tuple[np.ndarray, torch.Generator]:
        """Return a step's rows, none twice where there are enough, and a generator."""
        rng = step_generator(self.seed, step)
        enough = np.count_nonzero(weights) >= self.batch
        rows = rng.choice(len(weights), self.batch, replace=not enough, p=weights)
        generator = torch.Generator("cuda" if self.device.type == "cuda" else "cpu")
        generator.manual_seed(int(rng.integers(2**62)))
        return rows, generator

    def gather(self, array: np.ndarray, rows: np.ndarray) -> Tensor:
        """Move rows of a stored array to the device as integers and return them as float32."""
        picked = torch.from_numpy(np.ascontiguousarray(array[rows]))
        return picked.to(self.device).to(torch.float32)


class DenseTask:
    """All organs at once from whole slices.

    Half of the draws go to all slices evenly, the other half to every organ as often, and within
    it to every slice that holds it: rare organs are seen, and so is the background. `balance` is
    the exponent of the class weights in the cross-entropy.
    """

    def __init__(self, store: PatchStore, rules: StepRules, balance: float) -> None:
        self.store, self.rules = store, rules
        counts = np.bincount(store.dense_references.ravel(), minlength=len(store.meta.organs) + 1)
        self.class_weight = class_weights(torch.from_numpy(counts).float(), balance)
        self.class_weight = self.class_weight.to(rules.device)
        listed = [set(names.split(";")) for names in store.dense_index["annotated"]]
        annotated = np.array([[o in names for o in store.meta.organs] for names in listed])
        self.annotated = torch.from_numpy(annotated).to(rules.device)
        self.weights = slice_weights(store.dense_references, len(store.meta.organs))

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return images `[n, 1, i, j]`, labels `[n, i, j]` and what is annotated `[n, organ]`."""
        rules, meta = self.rules, self.store.meta
        rows, generator = rules.draw(self.weights, step)
        image = rules.gather(self.store.dense_images, rows) / IMAGE_SCALE
        labels = rules.gather(self.store.dense_references, rows)
        theta = random_affine(len(rows), rules.ranges, generator, rules.device)
        scale = meta.dense_stored_size / meta.dense_size
        pixels = resample(
            torch.stack([image, labels], 1), theta, meta.dense_size, scale, nearest_channels=(1,)
        )
        image = change_intensity(pixels[:, :1].clone(), rules.ranges, generator)
        return image, pixels[:, 1].long(), self.annotated[torch.from_numpy(rows).to(rules.device)]

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss of one step."""
        if self.rules.frozen is not None:
            self.rules.frozen.eval()
        image, labels, annotated = self.batch(step)
        logit = network(channels_last(image))
        return dense_loss(logit, labels, annotated, self.class_weight)


class QueryTask:
    """An organ's binary mask from its patch; organs evenly, within an organ any patch.

    A share `corruption` of the patches that show the organ has its attention made from the
    reference, wrong by as much as the coarse network's; the others keep the cross-fitted one.
    """

    def __init__(self, store: PatchStore, rules: StepRules, corruption: float) -> None:
        self.store, self.rules, self.corruption = store, rules, corruption
        self.rows = np.flatnonzero((store.index["reference_row"] >= 0).to_numpy())
        self.reference_rows = store.index["reference_row"].to_numpy()[self.rows]
        organ = store.organ_code[self.rows]
        held = np.bincount(organ, minlength=len(store.meta.organs))
        self.weights = 1.0 / held[organ] / np.count_nonzero(held)
        self.organ = torch.from_numpy(organ).to(rules.device)
        self.errors = self._measure().to(rules.device)

    def _measure(self) -> AttentionErrors:
        edge = (self.store.meta.stored_size - self.store.meta.patch_size) // 2
        inner = slice(edge, edge + self.store.meta.patch_size)
        masks = [
            torch.from_numpy(array[rows][:, inner, inner].astype(np.float32) / COVERAGE_SCALE)
            for array, rows in (
                (self.store.attention, self.rows),
                (self.store.references, self.reference_rows),
            )
        ]
        return measure_errors(masks[0], masks[1], self.organ.cpu(), len(self.store.meta.organs))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return image with attention `[n, 2, i, j]` and the reference `[n, 1, i, j]`, coverage."""
        rules, meta = self.rules, self.store.meta
        drawn, generator = rules.draw(self.weights, step)
        channels = (
            rules.gather(self.store.images, self.rows[drawn]) / IMAGE_SCALE,
            rules.gather(self.store.attention, self.rows[drawn]) / COVERAGE_SCALE,
            rules.gather(self.store.references, self.reference_rows[drawn]) / COVERAGE_SCALE,
        )
        theta = random_affine(len(drawn), rules.ranges, generator, rules.device)
        pixels = resample(torch.stack(channels, 1), theta, meta.patch_size, self.store.margin)
        image = change_intensity(pixels[:, :1].clone(), rules.ranges, generator)
        reference = pixels[:, 2:]
        attention = self._attention(pixels[:, 1], reference[:, 0], drawn, generator)
        return torch.cat([image, attention[:, None]], dim=1), reference

    def _attention(
        self, found: Tensor, reference: Tensor, drawn: np.ndarray, generator: torch.Generator
    ) -> Tensor:
        organ = self.organ[torch.from_numpy(drawn).to(self.rules.device)]
        made = corrupt(reference, organ, self.errors, generator)
        chosen = torch.rand(len(drawn), generator=generator, device=generator.device)
        shown = (reference >= 0.5).flatten(1).any(dim=1)
        chosen_here = (chosen.to(found.device) < self.corruption) & shown
        return torch.where(chosen_here[:, None, None], made, found)

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss of one step."""
        if self.rules.frozen is not None:
            self.rules.frozen.eval()
        pixels, reference = self.batch(step)
        return query_loss(network(channels_last(pixels)), reference)


def slice_weights(references: np.ndarray, organs: int) -> np.ndarray:
    """Return how likely each slice is drawn: evenly by half, evenly over the organs by half.

    Args:
        references: Label values of the slices `[n, i, j]`.
        organs: Number of organs.
    """
    held = np.zeros((len(references), organs + 1))
    for row, labels in enumerate(references):
        held[row, np.unique(labels)] = 1
    held = held[:, 1:]
    seen = held[:, held.any(axis=0)]
    even = np.full(len(references), 1 / len(references))
    if seen.shape[1] == 0:
        return even
    return 0.5 * even + 0.5 * (seen / seen.sum(axis=0)).mean(axis=1)
