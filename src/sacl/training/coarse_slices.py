"""Train a 2-D coarse network on whole slices; unlabeled scans take part, labeled by a teacher.

It is the dense segmenter, on slices so coarse that the whole field of view is seen at once: it
learns in minutes, from all training scans, where the organs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt, UInt16

from sacl.errors import DataError
from sacl.files.arrays import set_aside
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import Segmenter, SegmenterSpec, build_segmenter
from sacl.patches.query import cut, round_to_even
from sacl.patches.region import Placement, slice_boxes
from sacl.patches.store import IMAGE_SCALE, PatchStore, StoreMeta, quantized
from sacl.patches.views import VIEWS
from sacl.patches.window import WindowRule, normalize
from sacl.training.finetune import BALANCE, DenseTask
from sacl.training.loop import train
from sacl.training.pace import Pace, Plan
from sacl.training.sampler import StepRules
from sacl.training.teacher import with_teacher
from sacl.types import Cohort, LabelMap, Volume

MARGIN = 1.6
"""Slices are held this many times wider than they are seen, for turned and shrunken views."""


@dataclass(frozen=True, eq=False)
class ScanSlices:
    """All axial slices of a training scan, with their margin; no labels in an unlabeled scan.

    The images are in units of `store.IMAGE_SCALE`; `annotated` are the organs somebody looked for.
    """

    images: UInt16[np.ndarray, "k side side"]
    labels: UInt[np.ndarray, "k side side"] | None
    annotated: tuple[str, ...]

    def on_disk(self, folder: Path) -> ScanSlices:
        """Return the same, mapped from nameless files in a folder (`arrays.set_aside`)."""
        labels = None if self.labels is None else set_aside([self.labels], folder)
        return replace(self, images=set_aside([self.images], folder), labels=labels)


def slice_spec(cohort: Cohort, size: int, width: int) -> SegmenterSpec:
    """Return the network on a cohort's whole slices of `size` pixels."""
    return SegmenterSpec(
        encoder=EncoderSpec(width=width, in_channels=1),
        decoder="unet",
        head="dense",
        scheme=cohort.scheme.name,
        organs=cohort.scheme.names,
        image_size=size,
        window=WindowRule(cohort.modality, cohort.window_hu),
        placement=Placement(region="slice"),
    )


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
    pace: Pace | None = None,
    **how: Any,
) -> tuple[Segmenter, list[float]]:
    """Return a trained network, the teacher where there is one, and the loss of every step.

    `how` are further arguments of `training.loop.train`.

    Raises:
        DataError: no labeled scan holds an organ.
    """
    store = store_of(scans, spec, checkpoint and checkpoint.parent)
    if not store.dense_references.any():
        raise DataError("locate: the labeled scans of a fold hold no organ; check their references")
    network = build_segmenter(spec, plan.seed).to(device, memory_format=torch.channels_last)
    ranges = VIEWS[plan.augment or "strong"]
    rules = StepRules(batch=plan.batch, ranges=ranges, seed=plan.seed, device=device)
    labeled = DenseTask(store, rules, BALANCE, plan.copy_paste)
    task, how["average"] = with_teacher(labeled, network, plan.steps, plan.teacher_steps, pace)
    rates, how["checkpoint"] = {network: plan.learning_rate}, checkpoint
    return network, train(network, task.loss, rates, plan.all_steps, device, pace=pace, **how)


def store_of(
    scans: Sequence[ScanSlices], spec: SegmenterSpec, folder: Path | None = None
) -> PatchStore:
    """Return a store that holds the slices of some scans and no patches, on disk in a folder."""
    stored = round_to_even(spec.image_size * MARGIN)
    labeled = np.concatenate([np.full(len(s.images), s.labels is not None) for s in scans])
    annotated = [";".join(scan.annotated) for scan in scans for _ in scan.images]
    references = [scan.labels for scan in scans if scan.labels is not None]
    nothing = np.zeros((0, stored, stored), np.uint8)
    reference_row = np.where(labeled, np.cumsum(labeled) - 1, -1)
    return PatchStore(
        StoreMeta(0, 0, spec.image_size, stored, spec.organs, scheme=spec.scheme),
        index=pd.DataFrame(),
        dense_index=pd.DataFrame({"reference_row": reference_row, "annotated": annotated}),
        images=nothing,
        attention=nothing,
        references=nothing,
        dense_images=set_aside([scan.images for scan in scans], folder),
        dense_references=set_aside(references, folder) if references else nothing,
        dense_coarse=nothing,
    )
