"""The contrastive task: a step's patches, their two views, their relations and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from sacl.losses.contrastive import (
    Relation,
    intensity_weights,
    patch_contrastive_loss,
    semantic_relations,
)
from sacl.networks.device import channels_last
from sacl.patches.views import ViewRanges, two_views
from sacl.training.sampler import BalancedSampler, UniformSampler, step_generator

_IN_MEMORY_BYTES = 4e9
_MEASURED_AT_ONCE = 256


class PatchSource:
    """Stored patches as float pixels on a device, image first, attention (if given) second.

    Arrays of less than 4 GB are read into memory at once, larger ones as batches ask for them.
    They travel as integers and become floats on the device.
    """

    def __init__(
        self,
        images: np.ndarray,
        attention: np.ndarray | None,
        rows: np.ndarray,
        device: torch.device,
    ) -> None:
        self.device = device
        self._channels = [images] if attention is None else [images, attention]
        self._rows = np.asarray(rows)
        pixels = len(rows) * images.shape[1] * images.shape[2]
        if pixels * sum(c.itemsize for c in self._channels) < _IN_MEMORY_BYTES:
            self._channels = [np.asarray(c[np.sort(self._rows)]) for c in self._channels]
            self._rows = np.argsort(np.argsort(self._rows, kind="stable"), kind="stable")

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(self, positions: np.ndarray) -> Tensor:
        """Return the patches at these positions of `rows`, float32 `[n, channel, i, j]`, 0 to 1."""
        rows = self._rows[positions]
        side = self._channels[0].shape[1]
        shape = (len(rows), len(self._channels), side, side)
        pixels = torch.empty(shape, device=self.device)
        for channel, stored in enumerate(self._channels):
            whole = torch.from_numpy(stored[rows]).to(self.device)
            pixels[:, channel] = whole
            pixels[:, channel] *= 1.0 / float(np.iinfo(stored.dtype).max)
        return pixels


@dataclass(frozen=True, eq=False)
class ContrastiveTask:
    """What a pretraining step does, as `training.trainer.train` calls it.

    Args:
        source: The training patches.
        organ: Organ of each patch, integers.
        scan_label: Scan-wise label of each patch, integers, -1 where unknown.
        sampler: Which patches make a batch.
        ranges: How far the views differ from their patch.
        strategy: Which patches are alike.
        temperature: Of the loss.
        size: Pixels of a view's side.
        stored_scale: Stored side in units of it.
        seed: Of everything random; with the step it decides a batch.
        attention_dropout: Share of the views whose attention, if any, is all 0.
    """

    source: PatchSource
    organ: np.ndarray
    scan_label: np.ndarray
    sampler: BalancedSampler | UniformSampler
    ranges: ViewRanges
    strategy: Relation
    temperature: float
    size: int
    stored_scale: float
    seed: int
    attention_dropout: float = 0.0

    def views(self, step: int) -> tuple[Tensor, np.ndarray]:
        """Return a step's views `[batch, 2, channel, i, j]` and the positions of their patches."""
        rng = step_generator(self.seed, step)
        positions = self.sampler.draw(rng)
        generator = torch.Generator(self.source.device if self._on_cuda else "cpu")
        generator.manual_seed(int(rng.integers(2**62)))
        pixels = self.source.pixels(positions)
        views = two_views(pixels, self.ranges, self.size, self.stored_scale, generator)
        if self.attention_dropout > 0:
            drop_attention(views, self.attention_dropout, generator)
        return views, positions

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss of one step."""
        views, positions = self.views(step)
        embedding = network(channels_last(views.flatten(0, 1)))
        organ, scan_label = (
            torch.from_numpy(codes[positions]).to(self.source.device)
            for codes in (self.organ, self.scan_label)
        )
        positive, candidate = semantic_relations(organ, scan_label, self.strategy)
        weight = None
        if self.strategy == "correlation":
            means = self.intensity[torch.from_numpy(positions)].to(organ.device)
            weight = intensity_weights(organ, means, self._spread.to(organ.device))
        return patch_contrastive_loss(
            embedding.view(len(positions), 2, -1), positive, candidate, self.temperature, weight
        )

    @cached_property
    def intensity(self) -> Tensor:
        """Mean intensity of every patch under its attention, 0 to 1, on the CPU."""
        means = []
        for first in range(0, len(self.source), _MEASURED_AT_ONCE):
            last = min(first + _MEASURED_AT_ONCE, len(self.source))
            image, attention = self.source.pixels(np.arange(first, last)).unbind(dim=1)
            area = attention.sum(dim=(1, 2)).clamp_min(1e-6)
            means.append(((image * attention).sum(dim=(1, 2)) / area).cpu())
        return torch.cat(means)

    @cached_property
    def _spread(self) -> Tensor:
        organ = torch.from_numpy(self.organ)
        of_organ = [self.intensity[organ == n] for n in range(int(self.organ.max()) + 1)]
        return torch.stack([m.std() if len(m) > 1 else torch.tensor(0.0) for m in of_organ])

    @property
    def _on_cuda(self) -> bool:
        return self.source.device.type == "cuda"


def drop_attention(views: Tensor, share: float, generator: torch.Generator) -> None:
    """Set the attention of randomly chosen views to 0, in place; each view is drawn on its own.

    Handed the mask, an encoder may read the organ off it; of a view without, it has to find the
    organ in the image. A dense segmenter uses it in that way: 0 is the same as no channel.

    Args:
        views: `[patch, 2, channel, i, j]`; channel 1 is the attention, without it nothing is done.
        share: Probability of a view to lose its attention.
        generator: On the views' device.
    """
    if views.shape[2] == 1:
        return
    drawn = torch.rand(views.shape[:2], generator=generator, device=views.device)
    views[:, :, 1] *= (drawn >= share)[:, :, None, None]


def codes_of(values: Sequence[str], unknown: str) -> np.ndarray:
    """Return names as integers, by rising name; -1 for the unknown one."""
    names, codes = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    return np.where(names[codes] == unknown, -1, codes).astype(np.int64)
