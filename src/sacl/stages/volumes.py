"""finetune: the segmenter on volumes, and the training scans on its grid, all of them in memory.

It starts from the coarse network's weights where they fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sacl.cohort.manifest import read_cohort
from sacl.networks.device import resolve_device, seeded
from sacl.networks.segmenter import VolumeSegmenter, VolumeSegmenterSpec
from sacl.patches.scan_ranges import measures_of, ranges_of
from sacl.patches.window import WindowRule
from sacl.prediction.coarse import ALL_LABELED, VolumeEnsemble, load_network
from sacl.progress import say, track
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.stages.scan import Scan
from sacl.training.coarse import CoarseCase, coarse_case, require_organs, spec_of_scans
from sacl.training.pace import Pace, Plan
from sacl.training.volumes import train_on_volumes
from sacl.types import Cohort

_LEARNING_RATE = 1e-2
_CHANNELS = 16
_MOST_VOXELS = 500_000_000
"""Voxels of unlabeled scans that take part at most; of a larger cohort every n-th scan."""


@dataclass(frozen=True, eq=False)
class VolumeStart:
    """What is trained, on which volumes and how, and the coarse network whose weights fit, if any.

    Of an unlabeled scan the labels are those of its coarse map. No encoder is pretrained.
    """

    settings: FinetuneSettings
    spec: VolumeSegmenterSpec
    labeled: Sequence[CoarseCase]
    unlabeled: Sequence[CoarseCase]
    coarse: VolumeEnsemble | None
    name: str = "volume"
    method: str = "none"

    def build(self, seed: int) -> VolumeSegmenter:
        """Return the segmenter, with the coarse network's weights where they fit."""
        with seeded(seed):
            segmenter = VolumeSegmenter(self.spec)
        if self.coarse is not None:
            segmenter.load_state_dict(self.coarse.networks[0].state_dict())
        return segmenter

    def train(
        self, workspace: Workspace, checkpoint: Path | None, pace: Pace
    ) -> tuple[VolumeSegmenter, list[float]]:
        """Train the segmenter; return it and the loss of every step."""
        settings, device = self.settings, resolve_device(workspace.device)
        segmenter = self.build(workspace.seed).to(device)
        plan = Plan(
            steps=settings.steps,
            teacher_steps=settings.teacher_steps,
            batch=settings.samples,
            learning_rate=settings.learning_rate or _LEARNING_RATE,
            augment=settings.augment,
            seed=workspace.seed,
        )
        losses = train_on_volumes(
            segmenter,
            self.labeled,
            self.unlabeled,
            plan,
            device,
            what=f"finetune ({self.name}, {plan.all_steps} steps)",
            checkpoint=checkpoint,
            pace=pace,
        )
        return segmenter, losses


def read_volumes(settings: FinetuneSettings, workspace: Workspace) -> VolumeStart:
    """Return what is trained and on what, from the cohort and its coarse networks and maps.

    Raises:
        DataError: no labeled scan holds an organ.
    """
    cohort, folder = read_cohort(workspace.require("ingest")), workspace.require("locate")
    cases = cohort.of_split("train")
    located = load_network(folder, ALL_LABELED, torch.device("cpu"))
    coarse = located if isinstance(located, VolumeEnsemble) else None
    if coarse:
        network = coarse.spec
    else:
        large = resolve_device(workspace.device).type != "cpu"
        native = [case.native.grid for case in cases]
        network = spec_of_scans(cohort.scheme, native, large, _CHANNELS)
    grid = (network.spacing_mm, network.in_plane_size)
    labeled = []
    for case in cohort.labeled:
        scan, how = Scan(case, cohort, workspace), (case.window, case.annotated)
        on_grid = coarse_case(scan.image, scan.reference, *how, *grid)
        labeled.append(on_grid.on_disk(workspace.folder("finetune")))
    require_organs(labeled, "finetune: the labeled scans")
    each = sum(math.prod(case.image.shape) for case in labeled) / len(labeled)
    taking_part = _unlabeled(cohort, each) if settings.teacher_steps else set()
    measures, unlabeled = [], []
    for case in track(cases, "read training scans"):
        scan = Scan(case, cohort, workspace)
        measures.append(measures_of(scan.image))
        if case.case_id in taking_part:
            on_grid = coarse_case(scan.image, scan.coarse, case.window, network.organs, *grid)
            on_grid = replace(on_grid, image=on_grid.image.half())
            unlabeled.append(on_grid.on_disk(workspace.folder("finetune")))
    window = WindowRule(cohort.modality, cohort.window_hu)
    spec = VolumeSegmenterSpec(network=network, window=window, scans=ranges_of(measures))
    return VolumeStart(settings, spec, labeled, unlabeled, coarse)


def _unlabeled(cohort: Cohort, voxels: float) -> set[str]:
    """Return which training scans without any reference take part, each of about so many voxels."""
    cases = cohort.unlabeled
    if not cases:
        say("finetune: every training scan is labeled, so the teacher's steps see labeled scans")
    every = max(1, math.ceil(len(cases) * voxels / _MOST_VOXELS))
    return {case.case_id for case in cases[::every]}
