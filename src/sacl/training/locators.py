"""Train coarse networks, which tell where the organs are: on crops of volumes, or on whole slices.

On slices it is the dense segmenter, so coarse that the whole field of view is seen at once: it
learns in minutes, from all training scans, of which a teacher labels the unlabeled ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sacl.networks.coarse import CoarseNetwork, CoarseSpec
from sacl.networks.device import seeded
from sacl.networks.segmenter import Segmenter, SegmenterSpec, build_segmenter
from sacl.patches.query import cut, round_to_even
from sacl.patches.region import slice_boxes
from sacl.patches.store import IMAGE_SCALE, ScanSlices, StoreMeta, quantized, store_of_slices
from sacl.patches.views import VIEWS
from sacl.patches.window import normalize
from sacl.training.coarse import CoarseCase, CropTask, require_organs
from sacl.training.finetune import BALANCE, DenseTask
from sacl.training.pace import Plan
from sacl.training.sampler import StepRules
from sacl.training.teacher import train_by_plan
from sacl.types import LabelMap, Volume

MARGIN = 1.6
"""Slices are held this many times wider than they are seen, for turned and shrunken views."""
_LABELED = "locate: the labeled scans of a fold"


def slices_of(
    volume: Volume,
    window: tuple[float, float],
    size: int,
    reference: LabelMap | None = None,
    annotated: tuple[str, ...] = (),
    every: int = 1,
) -> ScanSlices:
    """Return every n-th axial slice of a scan, whole and `size` pixels wide without its margin."""
    boxes = slice_boxes(volume.grid)[::every]
    images = [
        cut(normalize(volume.voxels[:, :, box.start[2]], window), box, size, MARGIN)
        for box in boxes
    ]
    stored = quantized(np.stack(images), IMAGE_SCALE).astype(np.uint16)
    if reference is None:
        return ScanSlices(stored, None, ())
    labels = [
        cut(reference.voxels[:, :, box.start[2]], box, size, MARGIN, nearest=True) for box in boxes
    ]
    return ScanSlices(stored, np.stack(labels), annotated)


def train_on_slices(
    spec: SegmenterSpec,
    scans: Sequence[ScanSlices],
    plan: Plan,
    device: torch.device,
    *,
    checkpoint: Path | None = None,
    **how: Any,
) -> tuple[Segmenter, list[float]]:
    """Return a network, trained as by `training.teacher.train_by_plan`, and its losses.

    Raises:
        DataError: no labeled scan holds an organ.
    """
    stored = round_to_even(spec.image_size * MARGIN)
    meta = StoreMeta(0, 0, spec.image_size, stored, spec.organs, scheme=spec.scheme)
    store = store_of_slices(meta, scans, checkpoint and checkpoint.parent)
    require_organs([scan.labels for scan in scans if scan.labels is not None], _LABELED)
    network = build_segmenter(spec, plan.seed).to(device, memory_format=torch.channels_last)
    ranges = VIEWS[plan.augment or "strong"]
    rules = StepRules(batch=plan.batch, ranges=ranges, seed=plan.seed, device=device)
    task = DenseTask(store, rules, BALANCE, plan.copy_paste)
    return network, train_by_plan(network, task, plan, device, checkpoint=checkpoint, **how)


def train_coarse(
    spec: CoarseSpec,
    labeled: Sequence[CoarseCase],
    plan: Plan,
    device: torch.device,
    **how: Any,
) -> tuple[CoarseNetwork, list[float]]:
    """Return a coarse network, trained as by `training.teacher.train_by_plan`, and its losses.

    Raises:
        DataError: no case has an organ.
    """
    require_organs([case.labels for case in labeled], _LABELED)
    with seeded(plan.seed):
        network = CoarseNetwork(spec)
    task = CropTask(labeled, spec, plan, device)
    return network, train_by_plan(network, task, plan, device, **how)
