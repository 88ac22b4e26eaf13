"""finetune: the segmenter on volumes, from the coarse network's weights where they fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sacl.cohort.manifest import read_cohort
from sacl.errors import DataError
from sacl.geometry import canonical_grid, volume_grid
from sacl.networks.device import resolve_device
from sacl.networks.encoder import State
from sacl.networks.volume_segmenter import VolumeSegmenter, VolumeSegmenterSpec
from sacl.patches.coarse_grid import CoarseGrid, coarse_grid, image_to_coarse, labels_to_coarse
from sacl.patches.scan_ranges import measures_of, ranges_of
from sacl.patches.views import VIEWS
from sacl.patches.window import WindowRule
from sacl.prediction.coarse import ALL_LABELED, VolumeEnsemble, load_network
from sacl.prediction.volume import VolumePredictor
from sacl.progress import say, track
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.stages.arms import Arm
from sacl.stages.scan import Scan
from sacl.training.coarse import CoarseCase, CropTask, coarse_case, volume_spec
from sacl.training.loop import Average, Plan, RatedParameters, train
from sacl.training.pace import Pace
from sacl.training.volumes import MixedCropTask, with_teacher
from sacl.types import Cohort, Grid

_LEARNING_RATE = 1e-2
_CHANNELS = 16
_MOST_VOXELS = 500_000_000
"""Voxels of unlabeled scans that are held in memory at most; of a larger cohort every n-th scan."""


@dataclass(frozen=True, eq=False)
class VolumeStart:
    """What is trained on which volumes, and the coarse network's weights where they fit."""

    spec: VolumeSegmenterSpec
    labeled: Sequence[CoarseCase]
    unlabeled: Sequence[CoarseCase]
    weights: State | None
    method: str = "none"

    def untrained(self, workspace: Workspace) -> VolumePredictor:
        """Return what predicts as a trained segmenter will, to measure how long that takes."""
        device = resolve_device(workspace.device)
        return VolumePredictor(VolumeSegmenter(self.spec).to(device).eval(), device)

    def train(
        self, arm: Arm, settings: FinetuneSettings, workspace: Workspace, pace: Pace
    ) -> tuple[VolumeSegmenter, list[float]]:
        """Train the segmenter; return it, or its teacher where there is one, and all losses."""
        device, seed = resolve_device(workspace.device), workspace.seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            segmenter = VolumeSegmenter(self.spec)
        if self.weights is not None:
            segmenter.load_state_dict(self.weights)
        segmenter.to(device)
        spec, ranges = self.spec.network, replace(VIEWS[settings.augment], blur=0.0)
        labeled = CropTask(self.labeled, spec, settings.batch or 1, seed, device, ranges)
        task: CropTask | MixedCropTask = labeled
        average: Average | None = None
        if settings.teacher_steps:
            task, average = with_teacher(labeled, self.unlabeled, segmenter, settings.steps, pace)
        steps = settings.steps + settings.teacher_steps
        rate = settings.learning_rate or _LEARNING_RATE
        losses = train(
            segmenter,
            task.loss,
            [RatedParameters(list(segmenter.parameters()), rate)],
            Plan(steps=steps),
            device,
            what=f"finetune ({arm.name}, {steps} steps)",
            checkpoint=workspace.folder("finetune") / arm.name / "training.pt",
            average=average,
            pace=pace,
        )
        trained = average.network if average else segmenter
        assert isinstance(trained, VolumeSegmenter), "the average is a copy of the network"
        return trained, losses


def read_volumes(settings: FinetuneSettings, workspace: Workspace) -> VolumeStart:
    """Return what is trained, from the cohort and its coarse networks and maps.

    Raises:
        DataError: no labeled scan holds an organ.
    """
    cohort, folder = read_cohort(workspace.require("ingest")), workspace.require("locate")
    coarse = load_network(folder, ALL_LABELED, torch.device("cpu"))
    weights = None
    if isinstance(coarse, VolumeEnsemble):
        network, weights = coarse.spec, coarse.networks[0].state_dict()
    else:
        large = resolve_device(workspace.device).type != "cpu"
        grids = [canonical_grid(case.native.grid) for case in cohort.of_split("train")]
        sides_mm = np.median([np.multiply(g.shape, g.spacing_mm) for g in grids], axis=0)
        own_mm = np.median([grid.spacing_mm for grid in grids], axis=0)
        spacing_mm, crop = volume_grid(own_mm.tolist(), sides_mm.tolist(), large)
        network = volume_spec(cohort.scheme, [spacing_mm], crop, None, _CHANNELS)
    train_cases, labeled_cases = cohort.of_split("train"), cohort.labeled
    labeled = [
        coarse_case(
            (scan := Scan(case, cohort, workspace)).image,
            scan.reference,
            case.window,
            case.annotated,
            network.spacing_mm,
            network.in_plane_size,
        )
        for case in labeled_cases
    ]
    if not any(bool(case.labels.any()) for case in labeled):
        raise DataError("finetune: the labeled scans hold no organ; check their references")
    spec = VolumeSegmenterSpec(
        network=network,
        window=WindowRule(cohort.modality, cohort.window_hu),
        scans=ranges_of([measures_of(Scan(c, cohort, workspace).image) for c in train_cases]),
    )
    unlabeled = _unlabeled(spec, workspace, cohort) if settings.teacher_steps else []
    return VolumeStart(spec, labeled, unlabeled, weights)


def _unlabeled(spec: VolumeSegmenterSpec, workspace: Workspace, cohort: Cohort) -> list[CoarseCase]:
    """Return training scans of subjects without any reference; their labels are the coarse maps'.

    These say where crops are drawn, no more.
    """
    seen = {case.subject_id for case in cohort.labeled}
    cases = [case for case in cohort.of_split("train") if case.subject_id not in seen]
    if not cases:
        say("finetune: every training scan is labeled, so the teacher's steps see labeled scans")
        return []
    network, organs = spec.network, len(spec.organs)

    def grid_of(grid: Grid) -> CoarseGrid:
        return coarse_grid(grid, network.spacing_mm, network.in_plane_size)

    voxels = sum(math.prod(grid_of(canonical_grid(case.native.grid)).shape) for case in cases)
    read = []
    for case in track(cases[:: max(1, math.ceil(voxels / _MOST_VOXELS))], "read unlabeled scans"):
        scan = Scan(case, cohort, workspace)
        grid, cpu = grid_of(scan.image.grid), torch.device("cpu")
        image = image_to_coarse(scan.image.voxels, case.window, grid, cpu)
        labels = labels_to_coarse(scan.coarse.voxels, organs, grid, cpu)
        annotated = torch.ones(organs, dtype=torch.bool)
        read.append(CoarseCase(image.half(), labels, annotated, grid.spacing_mm))
    return read
