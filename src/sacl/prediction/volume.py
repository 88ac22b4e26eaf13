"""Segment a whole scan, slice by slice, in memory that does not grow with organs × voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sacl.networks.device import autocast
from sacl.networks.segmenter import SegmenterSpec
from sacl.patches.query import coverage, cut, organ_regions, plan_boxes
from sacl.patches.region import dense_boxes
from sacl.patches.window import normalize
from sacl.prediction.assemble import fuse, labels_of_slice
from sacl.prediction.components import clean_components
from sacl.prediction.copies import mean_over_copies, wider
from sacl.types import Box, LabelMap, Volume


class Network(Protocol):
    """What is asked of a segmenter: its spec, and logits for pixels."""

    spec: SegmenterSpec

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return logits `[n, out_channels, i, j]` of pixels `[n, channel, i, j]`."""
        ...


@dataclass(frozen=True, eq=False)
class Predictor:
    """A segmenter ready to run: in eval mode, on its device.

    `copies` is the number of turned and scaled copies that every prediction is the mean of.
    """

    network: Network
    device: torch.device
    batch: int = 16
    keep_component: float = 0.0
    copies: int = 0

    @property
    def spec(self) -> SegmenterSpec:
        """The segmenter's spec."""
        return self.network.spec

    @property
    def scale(self) -> float:
        """How many times wider than what the network reads the pixels have to be cut."""
        return wider(self.spec.image_size, self.copies)

    @torch.inference_mode()
    def logits(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Return logits `[n, out_channels, side, side]` of `n` images `[channel, side, side]`.

        The images are cut `scale` times wider than the logits are.
        """

        def network(batch: Tensor) -> Tensor:
            with autocast(self.device):
                return self.network(batch.contiguous(memory_format=torch.channels_last))

        batch = torch.from_numpy(np.stack(pixels)).to(self.device)
        if self.copies == 0:
            return network(batch).float()
        return mean_over_copies(network, batch, self.spec.image_size, self.copies)


def predict_volume(
    predictor: Predictor,
    volume: Volume,
    window: tuple[float, float],
    coarse: LabelMap | None = None,
) -> LabelMap:
    """Return the predicted label map on the volume's grid.

    Args:
        predictor: The segmenter.
        volume: A canonical scan, of any size and spacing.
        window: The intensities that become 0 and 1.
        coarse: The scan's coarse label map on the same grid, where `spec.needs_coarse`. The query
            head predicts no organ that it does not hold; the dense head takes its square from it,
            and the whole slices where it holds none.
    """
    scheme = predictor.spec.label_scheme
    # Slices are read and written one by one: column order keeps each of them in one piece.
    labels = np.zeros(
        volume.grid.shape, np.uint8 if len(scheme.names) <= 255 else np.uint16, order="F"
    )
    assert coarse is not None or not predictor.spec.needs_coarse, "a coarse label map is needed"
    if predictor.spec.head == "dense":
        boxes = dense_boxes(predictor.spec.placement, volume.grid, coarse)
        _predict_slices(predictor, volume, window, boxes, labels)
    else:
        assert coarse is not None
        _predict_patches(predictor, volume, window, coarse, labels)
    if predictor.keep_component > 0:
        labels = clean_components(labels, len(scheme.names), predictor.keep_component, 0)
    return LabelMap(labels, volume.grid, scheme)


def _predict_slices(
    predictor: Predictor,
    volume: Volume,
    window: tuple[float, float],
    boxes: Sequence[Box],
    labels: np.ndarray,
) -> None:
    size, scale = predictor.spec.image_size, predictor.scale
    shape = (volume.grid.shape[0], volume.grid.shape[1])
    for first in range(0, len(boxes), predictor.batch):
        batch = boxes[first : first + predictor.batch]
        pixels = [
            cut(normalize(volume.voxels[:, :, box.start[2]], window), box, size, scale)[None]
            for box in batch
        ]
        for box, logit in zip(batch, predictor.logits(pixels), strict=True):
            labels[:, :, box.start[2]] = labels_of_slice(logit, box, shape)


def _predict_patches(
    predictor: Predictor,
    volume: Volume,
    window: tuple[float, float],
    coarse: LabelMap,
    labels: np.ndarray,
) -> None:
    """Fuse the organs' patches slice by slice; one slice's best logits are held at a time."""
    logits = _patch_logits(predictor, volume, window, coarse)
    for k, patches in groupby(logits, key=lambda patch: patch[0].start[2]):
        best = np.zeros(volume.grid.shape[:2], np.float32)
        for box, label, logit in patches:
            fuse(best, labels[:, :, k], logit, box, label)


def _patch_logits(
    predictor: Predictor, volume: Volume, window: tuple[float, float], coarse: LabelMap
) -> Iterator[tuple[Box, int, Tensor]]:
    """Yield box, label value and logits `[side, side]` of every organ's patches by rising slice."""
    planned = plan_patches(coarse, predictor.spec)
    size, scale, k_read, plane = predictor.spec.image_size, predictor.scale, -1, np.zeros(0)
    for first in range(0, len(planned), predictor.batch):
        batch = planned[first : first + predictor.batch]
        pixels = []
        for box, label in batch:
            k = box.start[2]
            if k != k_read:
                k_read, plane = k, normalize(volume.voxels[:, :, k], window)
            attention = coverage(coarse.voxels[:, :, k], label, box, size, scale)
            pixels.append(np.stack([cut(plane, box, size, scale), attention]))
        logits = predictor.logits(pixels).cpu()
        for (box, label), logit in zip(batch, logits, strict=True):
            yield box, label, logit[0]


def plan_patches(coarse: LabelMap, spec: SegmenterSpec) -> list[tuple[Box, int]]:
    """Return box and label value of all query patches of a scan, by rising slice and label."""
    placement = spec.placement
    rules = (placement.context, placement.min_side_mm, placement.slice_margin)
    planned = [
        (box, coarse.scheme.label_of(organ))
        for organ, region in organ_regions(coarse).items()
        for box in plan_boxes(coarse, organ, *rules, region)
    ]
    return sorted(planned, key=lambda patch: (patch[0].start[2], patch[1]))
