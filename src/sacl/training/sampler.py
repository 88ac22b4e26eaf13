"""Which patches or slices make a batch, and where a step's randomness comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sacl.patches.store import IMAGE_SCALE, Patches, StoreMeta
from sacl.patches.views import BatchGenerator, ViewRanges, random_affine, resample

Positions = Int[np.ndarray, " drawn"]


def step_generator(seed: int, step: int) -> np.random.Generator:
    """Return the generator of one training step, the same however the run got there."""
    return np.random.default_rng([seed, step])


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """What all tasks on stored slices or patches share."""

    batch: int
    ranges: ViewRanges
    seed: int
    device: torch.device

    def randomness(self, step: int) -> tuple[np.random.Generator, BatchGenerator]:
        """Return a step's two generators: one draws rows, one pixels, on the device if CUDA.

        Both draw the whole batch, of which a rank keeps its own samples.
        """
        rng = step_generator(self.seed, step)
        pixels = BatchGenerator(self.device if self.device.type == "cuda" else "cpu")
        pixels.manual_seed(int(rng.integers(2**62)))
        return rng, pixels

    def rows(
        self, weights: Float[np.ndarray, " n"], count: int, rng: np.random.Generator
    ) -> Positions:
        """Draw rows by their weights, none twice where there are enough."""
        enough = np.count_nonzero(weights) >= count
        return rng.choice(len(weights), count, replace=not enough, p=weights)

    def mapped(
        self,
        meta: StoreMeta,
        channels: Sequence[tuple[Patches, Positions]],
        generator: torch.Generator,
        views: int = 1,
    ) -> Float[Tensor, "n channel side side"]:
        """Return dense slices through one random affine map each, as many views one after another.

        The channels are stored arrays and the rows that are drawn of them: first the images, then
        label maps of the same slices.
        """
        stored = torch.stack([self.gather(*channel) for channel in channels], dim=1)
        stored[:, 0] /= IMAGE_SCALE
        stored = stored.repeat(views, 1, 1, 1)
        theta = random_affine(len(stored), self.ranges, generator, self.device)
        scale = meta.dense_stored_size / meta.dense_size
        return resample(stored, theta, meta.dense_size, scale, range(1, len(channels)))

    def gather(self, array: Patches, rows: Positions) -> Float[Tensor, "drawn i j"]:
        """Move rows of a stored array to the device as integers and return them as float32."""
        picked = torch.from_numpy(np.ascontiguousarray(array[rows]))
        return picked.to(self.device).to(torch.float32)


def slice_weights(held: Bool[np.ndarray, "n organ"]) -> Float[np.ndarray, " n"]:
    """Return how likely slices are drawn that hold organs: evenly by half, by half over organs."""
    seen = held[:, held.any(axis=0)]
    even = np.full(len(held), 1 / len(held))
    if seen.shape[1] == 0:
        return even
    return 0.5 * even + 0.5 * (seen / seen.sum(axis=0)).mean(axis=1)


@dataclass(frozen=True, eq=False)
class UniformSampler:
    """Every patch is as likely as any other; a batch holds none twice."""

    count: int
    batch: int

    def draw(self, rng: np.random.Generator) -> Positions:
        """Return the positions of a batch's patches; fewer where there are not as many."""
        return rng.choice(self.count, min(self.batch, self.count), replace=False)


class BalancedSampler:
    """Every class is as likely as any other, and within it every scan.

    A batch is filled with `batch // scans_per_class` classes (all of them, where there are fewer;
    the places are then shared out evenly, the rest by lot). A class draws different scans as long
    as it has them, a scan different slices spread over its length. So a class that only one scan
    holds finds its mates in other slices, and only a class with fewer patches than places brings
    one of them twice.
    Organ, scan-wise label and scan of each patch are integers; patches of an organ with unknown
    label (-1) are a class of their own, so that they are seen too.
    """

    def __init__(
        self,
        organ: Int[np.ndarray, " n"],
        scan_label: Int[np.ndarray, " n"],
        scan: Int[np.ndarray, " n"],
        batch: int,
        scans_per_class: int,
    ) -> None:
        self.batch = batch
        _, semantic_class = np.unique(np.stack([organ, scan_label], 1), axis=0, return_inverse=True)
        semantic_class = semantic_class.ravel()
        self.classes = int(semantic_class.max()) + 1
        self._per_batch = min(self.classes, max(1, batch // scans_per_class))
        # Patches in order of (class, scan, position): a group is one scan's patches of one class.
        self._rows = np.lexsort((np.arange(len(scan)), scan, semantic_class))
        pairs = np.stack([semantic_class, scan], 1)[self._rows]
        first = np.r_[True, (pairs[1:] != pairs[:-1]).any(axis=1)]
        self._group_start = np.flatnonzero(first)
        self._group_size = np.diff(np.r_[self._group_start, len(scan)])
        self._group_class = pairs[first, 0]
        self._class_start = np.searchsorted(self._group_class, np.arange(self.classes))
        self._class_groups = np.bincount(self._group_class, minlength=self.classes)

    def draw(self, rng: np.random.Generator) -> Positions:
        """Return the positions of a batch's patches."""
        drawn, places = self._share_out(rng)
        turn = np.arange(self.batch) - np.repeat(np.cumsum(places) - places, places)
        of_class = np.repeat(drawn, places)
        # Shuffle the scans of every class at once, then let the class take them in turn.
        shuffled = np.lexsort((rng.random(len(self._group_class)), self._group_class))
        groups = self._class_groups[of_class]
        group = shuffled[self._class_start[of_class] + turn % groups]
        return self._rows[self._group_start[group] + self._slice(group, turn // groups, rng)]

    def _share_out(
        self, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, " drawn"], Int[np.ndarray, " drawn"]]:
        """Return the batch's classes and how many of its places each of them gets."""
        drawn = rng.permutation(self.classes)[: self._per_batch]
        places = np.full(len(drawn), self.batch // len(drawn))
        places[: self.batch - places.sum()] += 1
        return drawn, places

    def _slice(
        self,
        group: Int[np.ndarray, " drawn"],
        visit: Int[np.ndarray, " drawn"],
        rng: np.random.Generator,
    ) -> Positions:
        """Return a position within each group; repeated visits spread evenly from a random one."""
        visits = np.zeros(len(self._group_class), dtype=np.int64)
        np.maximum.at(visits, group, visit + 1)
        size = self._group_size[group]
        start = rng.integers(0, self._group_size)[group]
        return (start + visit * size // visits[group]) % size


Sampler = BalancedSampler | UniformSampler
"""What decides which patches make a batch."""
